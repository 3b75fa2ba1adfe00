"""Which vectors are replicated, and how often replicas are synchronized: decided from the text."""

import argparse

import numpy as np
import pytest
from lapse.apps.word2vec._counter import Counter

import lapse
from lapse.apps._shared import placement as shared
from lapse.apps._shared.placement import Ranks, Usage
from lapse.apps.word2vec import placement
from lapse.apps.word2vec.options import make_parser
from lapse.apps.word2vec.text import Sentences, Text
from lapse.apps.word2vec.vocabulary import Selection
from mpi4py import MPI

COUNTS = {f"w{i}": 1000 // (i + 1) for i in range(50)}
VOCABULARY = Selection().of(COUNTS)


def options(*given):
    return make_parser().parse_args([str(option) for option in given])


def usage(positive, sampled=0.0, units=1000.0, words=50_000):
    positive = np.asarray(positive, dtype=float)
    return Usage(positive, words, np.broadcast_to(sampled, positive.shape), units)


def choose_scheme(args, vocabulary, ranks, sharing=1):
    return shared.choose_scheme(args, Ranks(ranks, sharing), len(vocabulary), placement.MIN_LOCAL_WORDS)


def choose_replicated(args, usage, scheme, ranks):
    return shared.replicate(args, usage, Ranks(ranks), 2000, args.dim, scheme=scheme)[0]


def test_noise_is_frequency_to_three_quarters_and_never_an_input_vector():
    weights = placement.noise(VOCABULARY)
    np.testing.assert_allclose(weights[1::2], VOCABULARY.counts**0.75)
    assert not weights[::2].any()


@pytest.mark.parametrize("management, scheme", [("classic", "naive"), ("lapse", "preloc"), ("lapse2", "local")])
def test_each_management_has_a_sampling_scheme(management, scheme):
    many = Selection().of({f"w{i}": 5 for i in range(1000)})
    args = options("--management", management)
    assert choose_scheme(args, many, 8) == scheme
    assert shared.make_sampling(args, scheme, lapse.Weighted(placement.noise(many))).scheme == scheme
    args = options(
        "--management", management, "--sampling-scheme", "pool", "--sampling-reuse", 4, "--sampling-postpone"
    )
    assert choose_scheme(args, many, 8) == "pool"
    chosen = shared.make_sampling(args, "pool", lapse.Weighted(placement.noise(many)))
    assert (chosen.scheme, chosen.reuse, chosen.postpone) == ("pool", 4, True)


def test_negatives_stay_where_they_are_if_only_relocation_moves_vectors(monkeypatch):
    monkeypatch.setattr(Ranks, "of", lambda comm: Ranks(8))
    nothing = Sentences.without_rare_words(np.empty(0, np.int32), np.empty(0, np.int64))
    text = Text("text", Selection().of({f"w{i}": 5 for i in range(1000)}), [0], {0: nothing})
    chosen = placement.decide(MPI.COMM_SELF, options("--management", "lapse"), text)
    assert chosen.sampling.scheme == "naive" and not chosen.is_localized.any()
    chosen = placement.decide(MPI.COMM_SELF, options("--management", "lapse", "--sampling-scheme", "preloc"), text)
    assert chosen.sampling.scheme == "preloc"


@pytest.mark.parametrize("scheme, is_long", [("naive", True), ("pool", False)])
def test_negatives_that_repeat_are_not_shared_by_many_words(scheme, is_long):
    text = Text("text", VOCABULARY, [10**6], {})
    chosen = placement.decide(MPI.COMM_SELF, options("--sampling-scheme", scheme), text)
    assert chosen.unit == (placement.LONG_UNIT if is_long else placement.SHORT_UNIT)
    given = placement.pair_options(options("--sampling-scheme", scheme), VOCABULARY, chosen.unit)
    assert given["negative_reuse"] == (placement.LONG_UNIT.reuse if is_long else 1)


def test_a_round_has_several_units_of_each_worker():
    words = placement.words_per_round(options(), a_text())
    pairs = placement.expected_pairs(options(), a_text(), words)
    sizes = [placement.choose_unit(options(), a_text(), Ranks(2**i), words).pairs for i in range(20)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == placement.LONG_UNIT.pairs
    for ranks, size in zip(2 ** np.arange(20), sizes, strict=True):
        assert size == placement.FEWEST_PAIRS or size * ranks * placement.UNITS_OF_A_ROUND <= pairs
    assert sizes[-1] == placement.FEWEST_PAIRS
    with_more = placement.choose_unit(options("--workers", 4), a_text(), Ranks(64), words)
    assert with_more == placement.choose_unit(options(), a_text(), Ranks(256), words)


def test_few_words_are_not_drawn_among_those_of_the_text_at_hand():
    assert choose_scheme(options(), VOCABULARY, 8) == "preloc"
    assert choose_scheme(options(), VOCABULARY, 8, sharing=8) == "naive"
    assert choose_scheme(options("--sampling-scheme", "pool"), VOCABULARY, 8, sharing=8) == "pool"
    assert choose_scheme(options("--sampling-scheme", "local"), VOCABULARY, 8) == "local"


def test_without_negatives_nothing_is_sampled():
    text = Text("", VOCABULARY, [1000], {})
    assert placement.decide(MPI.COMM_SELF, options("--negative", 0), text).sampling is None
    assert placement.decide(MPI.COMM_SELF, options(), text).sampling.scheme == "naive"


def test_replicate_takes_the_keys_that_are_used_most():
    chosen = choose_replicated(options("--replicate", 2), usage([1, 9, 3, 7]), "local", 4)
    assert sorted(chosen) == [1, 3]
    assert len(choose_replicated(options("--replicate", 0), usage([1, 9]), "local", 4)) == 0


def test_by_default_at_most_a_tenth_is_replicated():
    chosen = choose_replicated(options(), usage(np.arange(1000.0) + 1000), "local", 4)
    assert len(chosen) == 100
    assert chosen.min() == 900


def test_negatives_count_if_their_scheme_moves_them():
    """Key 0 is a frequent negative, key 1 a frequent word."""
    both = usage([0.0, 900.0] + [0.0] * 18, [950.0, 0.0] + [0.0] * 18)
    for scheme, expected in (("local", [1]), ("preloc", [0]), ("pool", [1])):
        chosen = choose_replicated(options("--replicate", 1), both, scheme, 4)
        assert chosen.tolist() == expected, scheme


def test_workers_wait_before_all_ranks_together_have_read_the_words_of_a_round():
    """Every unit pushes both replicated keys; 50 words a unit."""
    replicated = np.array([0, 1])
    for ranks in (2, 4, 8):
        pace = shared.pace(usage([1000.0] * 4), replicated, 2000, Ranks(ranks))
        words_of_all_ranks = 1.5 * pace.max_pending / 2 * 50 * ranks
        assert 0.7 * 2000 < words_of_all_ranks <= 2000


def test_vectors_that_are_used_often_are_not_held_for_long():
    replicated = np.array([0])
    for positive, expected in (([1000.0, 1.0, 0.0], 10), ([1000.0, 100.0, 0.0], 5), ([1000.0, 900.0, 1.0], 1)):
        assert placement.choose_block(options(), usage(positive), replicated) == expected
    assert placement.choose_block(options("--block", 7), usage([0.0] * 3), replicated) == 7


def test_the_pace_never_stops():
    pace = shared.pace(usage([0.0] * 4), np.arange(4), 1, Ranks(8))
    assert pace == lapse.Replication(max_pending=1)


def count(sentences, num_words, **parameters):
    counts = np.zeros(2 * num_words, dtype=np.int64)
    everything = dict(
        window=2,
        negative=5,
        keep=np.full(num_words, 2**32 - 1, np.uint32),
        unit_pairs=100,
        is_replicated=np.zeros(2 * num_words, np.uint8),
        block_units=1,
        lookahead=0,
        seeds=(1, 2),
    )
    counter = Counter(counts=counts, **{**everything, **parameters})
    words = np.array([word for sentence in sentences for word in sentence], np.int32)
    counter.add(words, np.cumsum([len(sentence) for sentence in sentences]).astype(np.int64))
    counter.finish()
    return counter, counts


def test_a_trial_run_counts_each_key_once_a_unit():
    counter, counts = count([[0, 1, 0, 1, 2]] * 3, 4)
    assert counter.units == 1
    assert counts.tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    counter, counts = count([[0, 1, 0, 1, 2]] * 100, 4)
    assert counter.units > 10
    assert (counts[:6] == counter.units).all() and not counts[6:].any()


@pytest.mark.parametrize("lookahead", [0, 1, 3])
@pytest.mark.parametrize("block_units", [1, 2, 7])
def test_no_pair_is_lost_in_blocks_and_behind_them(block_units, lookahead):
    expected, _ = count([[0, 1, 2, 3, 1]] * 200, 4)
    found, _ = count([[0, 1, 2, 3, 1]] * 200, 4, block_units=block_units, lookahead=lookahead)
    assert (found.units, found.pairs) == (expected.units, expected.pairs)


def test_the_kernel_refuses_what_it_cannot_use():
    for bad in (
        {"window": 0},
        {"negative": -1},
        {"block_units": 0},
        {"lookahead": -1},
        {"is_replicated": np.zeros(3, np.uint8)},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            count([[0, 1]], 4, **bad)
    with pytest.raises(IndexError):
        count([[0, 4]], 4)


def test_all_options_have_help(capsys):
    with pytest.raises(SystemExit):
        options("--help")
    shown = capsys.readouterr().out
    for name in (
        "--replicate",
        "--sync-words",
        "--sampling-scheme",
        "--sampling-reuse",
        "--sampling-postpone",
        "--block",
    ):
        assert name in shown
    assert isinstance(options(), argparse.Namespace)


def a_text(words=1_000_000):
    return Text("", VOCABULARY, [words], {})


def test_rounds_come_when_the_most_used_vector_has_gathered_enough():
    words = placement.words_per_round(options(), a_text())
    most = placement.expected_weights(options(), a_text()).max()
    assert words == pytest.approx(placement.WEIGHT_OF_A_ROUND / most, rel=1e-3)
    assert placement.words_per_round(options("--alpha", 0.05), a_text()) == pytest.approx(words / 2, rel=1e-3)
    sums = placement.words_per_round(options("--combine", "sum"), a_text())
    assert sums == pytest.approx(placement.WEIGHT_OF_SUMS / most, rel=1e-3)


def test_rounds_that_would_diverge_are_held_back_and_named(caplog):
    usual = placement.words_per_round(options(), a_text())
    assert placement.words_per_round(options("--sync-words", usual // 3), a_text()) == usual // 3
    assert not caplog.records
    assert placement.words_per_round(options("--sync-words", 10**9), a_text()) == usual
    assert "would diverge" in caplog.text


def test_expected_weights_are_those_of_a_count():
    """Each pair changes an input vector by all outputs, and each output by one input."""
    args = options("--sample", 0, "--window", 5, "--negative", 5, "--alpha", 0.1)
    total = VOCABULARY.total
    weights = placement.expected_weights(args, a_text(total))
    pairs = 6 * VOCABULARY.counts / total
    np.testing.assert_allclose(weights[::2], 0.1 * 6 * pairs)
    noise = placement.noise(VOCABULARY)[1::2]
    np.testing.assert_allclose(weights[1::2], 0.1 * (pairs + 5 * pairs.sum() * noise / noise.sum()))
    args.sg = 0  # all pairs of a word change its outputs once
    np.testing.assert_allclose(placement.expected_weights(args, a_text(total))[1::2], weights[1::2] / 6)


def test_all_vectors_are_replicated_if_they_fit():
    assert placement.number_of_replicas(options(), VOCABULARY) == 2 * len(VOCABULARY)
    assert placement.number_of_replicas(options("--replicate", 7), VOCABULARY) == 7
    little = options("--replica-memory", 1, "--dim", 10_000)
    assert placement.number_of_replicas(little, VOCABULARY) == 8
    assert placement.number_of_replicas(little, VOCABULARY, in_place=True) == 6
