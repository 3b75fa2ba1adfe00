"""Counting, subsampling and the noise distribution."""

from collections import Counter

import numpy as np

from lapse.apps.word2vec.vocabulary import Vocabulary, merge_counts

COUNTS = {"the": 1000, "of": 500, "rare": 2, "b": 7, "a": 7, "once": 1}


def test_words_by_falling_count_then_alphabet():
    vocabulary = Vocabulary.from_counts(COUNTS, min_count=2)
    assert vocabulary.words == ["the", "of", "a", "b", "rare"]
    assert vocabulary.counts.tolist() == [1000, 500, 7, 7, 2]
    assert vocabulary.total == 1516
    assert [vocabulary.index.get(word) for word in ("of", "unknown", "the")] == [1, None, 0]


def test_nothing_frequent_enough():
    assert len(Vocabulary.from_counts(COUNTS, min_count=5000)) == 0
    assert len(Vocabulary.from_counts({})) == 0


def test_subsampling_follows_the_formula():
    vocabulary = Vocabulary.from_counts(COUNTS)
    keep = vocabulary.keep_probability(1e-3)
    share = vocabulary.counts / vocabulary.total
    expected = np.minimum(1, (np.sqrt(share / 1e-3) + 1) * 1e-3 / share)
    np.testing.assert_allclose(keep, expected)
    assert keep[-1] == 1


def test_without_subsampling_every_word_is_kept():
    thresholds = Vocabulary.from_counts(COUNTS).keep_thresholds(0)
    assert (thresholds == 2**32 - 1).all()


def test_counters_are_added():
    assert merge_counts(Counter(a=1), Counter(a=2, b=1)) == {"a": 3, "b": 1}
