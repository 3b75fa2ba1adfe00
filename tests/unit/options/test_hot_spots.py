"""The chooser of keys to replicate: both rules, by hand on small numbers, and its errors."""

import doctest

import numpy as np
import pytest

import lapse
from lapse.options import hot_spots
from lapse.options.hot_spots import Cost

WORDS = 1e6 / np.arange(1, 10001)  # accesses as Zipf's law has them


def test_the_examples_of_the_documentation():
    assert doctest.testmod(hot_spots).failed == 0


def test_mean_takes_keys_above_a_multiple_of_the_mean():
    counts = [10, 0, 0, 0, 0, 0, 0, 0, 0, 10]
    assert lapse.choose_hot_spots(counts, rule="mean", multiple=4.9).tolist() == [0, 9]
    assert lapse.choose_hot_spots(counts, rule="mean", multiple=5).tolist() == []
    assert lapse.choose_hot_spots(np.zeros(5), rule="mean").tolist() == []
    hot = lapse.choose_hot_spots(WORDS, rule="mean")
    assert hot.dtype == np.int64
    np.testing.assert_array_equal(hot, np.flatnonzero(100 * WORDS.mean() < WORDS))


def test_the_estimate_is_what_the_notes_say():
    accesses, size = 3.0, 400.0
    cost = Cost(4, 1, lapse.Network(latency=2e-5, bytes_per_second=1e9, record_seconds=1e-7), in_flight=20, wire=0.5)
    relocating = accesses * 3 / 4 * (3 * 108e-9 + 400e-9) + accesses * (1 - np.exp(-9 / 4)) * 1e-6
    senders = 4 * (1 - np.exp(-3 / 4)) * 3 / 4
    receivers = 3 * (1 - np.exp(-3))
    expected = relocating - (senders + receivers) * (208e-9 + 200e-9) - accesses * 500e-9
    np.testing.assert_allclose(cost.saved_seconds(accesses, size), expected)
    np.testing.assert_allclose(cost.of_round, 4 * 2 * 2e-5)


def test_the_estimate_of_replication_is_what_happens_on_average():
    rng = np.random.default_rng(4)
    accesses, ranks, size = 2.5, 3, 100.0
    touched = rng.poisson(accesses / ranks, (200_000, ranks)) > 0
    messages = touched[:, 1:].sum(axis=1) + (ranks - 1) * touched.any(axis=1)  # rank 0 is the home
    of_others = rng.poisson(accesses * (ranks - 1) / ranks, 200_000) > 0  # while a key is on its way
    cost = Cost(ranks, 1, lapse.Network(latency=1e-3, bytes_per_second=1, record_seconds=0), in_flight=1e-5)
    relocating = accesses * ((ranks - 1) / ranks * (size + 24) + of_others.mean() * 100)
    simulated = relocating - messages.mean() * (size + 8) - accesses * size
    np.testing.assert_allclose(cost.saved_seconds(accesses, size), simulated, rtol=0.02)


def test_cost_takes_what_saves_most_within_the_memory():
    hot = lapse.choose_hot_spots(WORDS, ranks=4, rounds=1000, value_lengths=100)
    assert hot.dtype == np.int64 and 0 < len(hot) <= 1000
    np.testing.assert_array_equal(hot, np.arange(len(hot)))  # the most frequent ones
    everything = lapse.choose_hot_spots(WORDS, ranks=4, rounds=3000, value_lengths=100, memory=1)
    assert 0 < len(everything) < len(WORDS)
    assert (Cost(4).saved_seconds(WORDS[everything] / 3000, 400.0) > 0).all()
    others = np.setdiff1d(np.arange(len(WORDS)), everything)
    assert (Cost(4).saved_seconds(WORDS[others] / 3000, 400.0) <= 0).all()
    assert len(lapse.choose_hot_spots(WORDS, ranks=4, rounds=100, memory=0.01)) <= 100


def chosen(replication, **changed):
    arguments = {"ranks": 4, "value_lengths": 100, "memory": 1, **changed}
    return len(lapse.choose_hot_spots(WORDS, replication=replication, **arguments))


def test_the_number_of_rounds_follows_from_max_pending_and_what_is_chosen():
    sizes = [chosen(lapse.Replication(max_pending=pending)) for pending in (1, 300, 1000, 100_000)]
    assert sizes == sorted(sizes) and sizes[0] == 0 and 0 < sizes[1] < sizes[2] < sizes[3] == len(WORDS)
    number = chosen(lapse.Replication(max_pending=1000))
    rounds = WORDS[:number].sum() / 4000
    assert Cost(4).saved_seconds(WORDS[number - 1] / rounds, 400.0) > 0


def test_a_slower_network_and_smaller_messages_replicate_more():
    pace = lapse.Replication(max_pending=500)
    usual, fast = lapse.Network(), lapse.Network(latency=1e-7)
    assert chosen(pace, network=fast) < chosen(pace, network=usual)
    assert chosen(pace, in_flight=1000) < chosen(pace)
    slow = lapse.Network(bytes_per_second=1e8)
    assert chosen(pace, network=slow) < chosen(lapse.Replication(max_pending=500, wire="bfloat16"), network=slow)


def test_keys_that_take_part_rarely_cost_less():
    rates = WORDS / WORDS.sum() * 1000
    assert chosen(lapse.Replication(max_pending=500)) < chosen(lapse.Replication(max_pending=500, rates=rates))
    with pytest.raises(ValueError, match="rates.*3.*10000"):
        chosen(lapse.Replication(max_pending=500, rates=[1, 2, 3]))


def test_nothing_is_replicated_if_rounds_cost_more_than_it_saves():
    counts = [1000, 0, 0, 0]
    assert lapse.choose_hot_spots(counts, ranks=4, rounds=1, memory=1).tolist() == [0]
    network = lapse.Network(latency=1, bytes_per_second=1e12)
    assert len(lapse.choose_hot_spots(counts, ranks=4, rounds=1, memory=1, network=network, in_flight=1e6)) == 0


@pytest.mark.parametrize("name", ["latency", "bytes_per_second", "record_seconds"])
def test_bad_networks(name):
    with pytest.raises(ValueError, match=f"{name}.*-1"):
        lapse.Network(**{name: -1})
    with pytest.raises(TypeError, match=f"{name}.*'x'"):
        lapse.Network(**{name: "x"})
    with pytest.raises(ValueError, match="bytes_per_second is 0"):
        lapse.Network(bytes_per_second=0)


def test_cost_replicates_less_when_it_synchronizes_more_often():
    sizes = [
        len(lapse.choose_hot_spots(WORDS, ranks=4, rounds=rounds, memory=1))
        for rounds in (1, 10, 100, 1000, 10**6, 10**9)
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 10 * sizes[4] and sizes[-1] == 0


def test_keys_that_nobody_accesses_and_a_rank_alone_are_left_out():
    assert lapse.choose_hot_spots(np.zeros(10), ranks=4, rounds=1).tolist() == []
    assert lapse.choose_hot_spots(np.full(10, 1e9), ranks=1, rounds=1).tolist() == []
    counts = [0, 1e9, 0, 0]
    assert lapse.choose_hot_spots(counts, ranks=4, rounds=1, memory=1).tolist() == [1]
    assert lapse.choose_hot_spots(counts, ranks=4, rounds=1, memory=0).tolist() == []


def test_values_of_different_lengths_count_by_their_size():
    counts, lengths = [1e6, 1e6, 1e6, 0], [1000, 10, 10, 1000]
    chosen = [
        lapse.choose_hot_spots(counts, ranks=2, rounds=1, value_lengths=lengths, memory=memory).tolist()
        for memory in (0.004, 0.005, 0.01, 0.51, 1)
    ]
    assert chosen == [[], [1], [1, 2], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    "changed, error, words",
    [
        ({"counts": [[1, 2]]}, ValueError, ["shape (1, 2)"]),
        ({"counts": []}, ValueError, ["shape (0,)"]),
        ({"counts": 5}, ValueError, ["shape ()"]),
        ({"counts": ["a"]}, TypeError, ["numbers"]),
        ({"counts": [True]}, TypeError, ["bool"]),
        ({"counts": [1, -3]}, ValueError, ["-3.0 at key 1"]),
        ({"counts": [1, np.nan]}, ValueError, ["nan at key 1"]),
        ({"rule": "median"}, ValueError, ["'median'", "cost, mean"]),
        ({"rule": "mean", "multiple": -1}, ValueError, ["multiple", "-1"]),
        ({"rule": "mean", "multiple": "x"}, TypeError, ["multiple", "'x'"]),
        ({"rule": "mean", "multiple": np.nan}, ValueError, ["multiple", "nan"]),
        ({"ranks": None}, ValueError, ["ranks="]),
        ({"rounds": None}, ValueError, ["replication=", "rounds="]),
        ({"rounds": None, "replication": lapse.Replication()}, ValueError, ["max_pending", "rounds="]),
        ({"in_flight": 0.5}, ValueError, ["in_flight", "0.5"]),
        ({"ranks": 0}, ValueError, ["ranks", "0", "1"]),
        ({"ranks": 2.0}, TypeError, ["ranks", "2.0"]),
        ({"rounds": 0}, ValueError, ["rounds", "0", "positive"]),
        ({"rounds": -1}, ValueError, ["rounds", "-1"]),
        ({"memory": 1.5}, ValueError, ["memory", "1.5"]),
        ({"memory": None}, TypeError, ["memory", "None"]),
        ({"value_lengths": 0}, ValueError, ["value_lengths", "0"]),
        ({"value_lengths": [1, 2, 3]}, ValueError, ["(3,)", "2 keys"]),
        ({"value_lengths": [1, 0]}, ValueError, ["0 at key 1"]),
        ({"value_lengths": [1.0, 2.0]}, TypeError, ["float64"]),
    ],
)
def test_bad_arguments(changed, error, words):
    arguments = {"counts": [5, 1], "ranks": 2, "rounds": 10, **changed}
    with pytest.raises(error) as caught:
        lapse.choose_hot_spots(arguments.pop("counts"), **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_where_all_ranks_share_memory_nothing_is_replicated():
    counts = np.array([10_000, 100, 1, 0])
    alone = lapse.choose_hot_spots(counts, ranks=4, rounds=10, memory=1)
    pairs = lapse.choose_hot_spots(counts, ranks=4, rounds=10, memory=1, sharing=2)
    assert 0 in pairs and set(pairs) <= set(alone)
    assert len(lapse.choose_hot_spots(counts, ranks=4, rounds=10, memory=1, sharing=4)) == 0
    with pytest.raises(ValueError, match="sharing.*5"):
        lapse.choose_hot_spots(counts, ranks=4, rounds=10, sharing=5)
