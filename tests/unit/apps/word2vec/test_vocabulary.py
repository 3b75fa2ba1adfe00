"""Counting, subsampling and the noise distribution."""

from collections import Counter

import numpy as np

from lapse.apps.word2vec.vocabulary import Selection, merge_counts

COUNTS = {"the": 1000, "of": 500, "rare": 2, "b": 7, "a": 7, "once": 1}


def test_words_by_falling_count_then_alphabet():
    vocabulary = Selection(min_count=2).of(COUNTS)
    assert vocabulary.words == ["the", "of", "a", "b", "rare"]
    assert vocabulary.counts.tolist() == [1000, 500, 7, 7, 2]
    assert vocabulary.total == 1516
    assert [vocabulary.index.get(word) for word in ("of", "unknown", "the")] == [1, None, 0]


def test_the_most_frequent_words_and_those_to_continue_from():
    chosen = Selection(min_count=2, most=4, start=["once", "absent"]).of(COUNTS)
    assert chosen.words == ["the", "of", "a", "b"]
    chosen = Selection(min_count=5, start=["once", "absent"]).of(COUNTS)
    assert chosen.words == ["the", "of", "a", "b", "once", "absent"]
    assert chosen.counts.tolist() == [1000, 500, 7, 7, 1, 0]
    assert chosen.keep_probability(1e-3)[-1] == 1
    for exponent in (0.75, 0, -1):
        np.testing.assert_allclose(chosen.noise(exponent)[:-1], chosen.counts[:-1] ** float(exponent))
        assert chosen.noise(exponent)[-1] == 0  # a word that the text lacks is no negative


def test_nothing_frequent_enough():
    assert len(Selection(min_count=5000).of(COUNTS)) == 0
    assert len(Selection().of({})) == 0


def test_subsampling_follows_the_formula():
    vocabulary = Selection().of(COUNTS)
    keep = vocabulary.keep_probability(1e-3)
    share = vocabulary.counts / vocabulary.total
    expected = np.minimum(1, (np.sqrt(share / 1e-3) + 1) * 1e-3 / share)
    np.testing.assert_allclose(keep, expected)
    assert keep[-1] == 1


def test_without_subsampling_every_word_is_kept():
    thresholds = Selection().of(COUNTS).keep_thresholds(0)
    assert (thresholds == 2**32 - 1).all()


def test_counters_are_added():
    assert merge_counts(Counter(a=1), Counter(a=2, b=1)) == {"a": 3, "b": 1}
