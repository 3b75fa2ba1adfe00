"""The chooser of keys to replicate: both rules, by hand on small numbers, and its errors."""

import doctest

import numpy as np
import pytest

import lapse
from lapse.options import hot_spots
from lapse.options.hot_spots import REMOTE_BYTES, saved_bytes

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
    accesses, ranks, size = 3.0, 4, 400.0
    relocating = accesses * 3 / 4 * (size + 24) + accesses * (1 - np.exp(-9 / 4)) * REMOTE_BYTES
    senders = 4 * (1 - np.exp(-3 / 4)) * 3 / 4
    receivers = 3 * (1 - np.exp(-3))
    expected = relocating - (senders + receivers) * (size + 8)
    np.testing.assert_allclose(saved_bytes(accesses, ranks, size), expected)


def test_the_estimate_of_replication_is_what_happens_on_average():
    rng = np.random.default_rng(4)
    accesses, ranks, size = 2.5, 3, 100.0
    touched = rng.poisson(accesses / ranks, (200_000, ranks)) > 0
    messages = touched[:, 1:].sum(axis=1) + (ranks - 1) * touched.any(axis=1)  # rank 0 is the home
    of_others = rng.poisson(accesses * (ranks - 1) / ranks, 200_000) > 0  # while a key is on its way
    relocating = accesses * ((ranks - 1) / ranks * (size + 24) + of_others.mean() * REMOTE_BYTES)
    simulated = relocating - messages.mean() * (size + 8)
    np.testing.assert_allclose(saved_bytes(accesses, ranks, size), simulated, rtol=0.02)


def test_cost_takes_what_saves_most_within_the_memory():
    hot = lapse.choose_hot_spots(WORDS, ranks=4, rounds=100, value_lengths=100)
    assert hot.dtype == np.int64 and 0 < len(hot) <= 1000
    np.testing.assert_array_equal(hot, np.arange(len(hot)))  # the most frequent ones
    assert saved_bytes(WORDS[hot[-1]] / 100, 4, 400.0) > 0
    everything = lapse.choose_hot_spots(WORDS, ranks=4, rounds=100, value_lengths=100, memory=1)
    assert (saved_bytes(WORDS[everything] / 100, 4, 400.0) > 0).all()
    others = np.setdiff1d(np.arange(len(WORDS)), everything)
    assert (saved_bytes(WORDS[others] / 100, 4, 400.0) <= 0).all()
    assert len(lapse.choose_hot_spots(WORDS, ranks=4, rounds=100, memory=0.01)) <= 100


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
        ({"ranks": None}, ValueError, ["ranks=", "rounds="]),
        ({"rounds": None}, ValueError, ["ranks=", "rounds="]),
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
