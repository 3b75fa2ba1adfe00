"""The synthetic text: Zipf's law, topics, and the same text whoever generates it."""

import numpy as np
import pytest

from lapse.apps.word2vec.synthetic import PART, SENTENCE, Recipe


def whole(recipe):
    return recipe.share(0, 1)


def test_words_follow_zipfs_law():
    recipe = Recipe(words=1000, length=1_000_000)
    counts = np.bincount(whole(recipe), minlength=1000)
    expected = recipe.length / np.arange(1, 1001) / np.sum(1 / np.arange(1, 1001))
    # sentences of one topic are drawn together, so that counts vary more than those of single words
    np.testing.assert_allclose(counts, expected, rtol=0, atol=0.02 * expected[0])
    np.testing.assert_allclose(counts.reshape(10, 100).sum(1), expected.reshape(10, 100).sum(1), rtol=0.02)


def test_a_sentence_has_words_of_one_topic():
    recipe = Recipe(words=5000, length=100_000)
    topics = recipe.topic_of(whole(recipe).reshape(-1, SENTENCE))
    assert recipe.topics == 10 and recipe.common == 100
    for sentence in topics:
        assert len(np.unique(sentence[sentence >= 0])) <= 1
    assert 0.4 < np.mean(topics >= 0) < 0.7
    assert set(np.unique(topics)) == set(range(-1, 10))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 100])
def test_any_number_of_workers_generates_the_same_text(count):
    recipe = Recipe(words=700, length=2 * PART * SENTENCE + 1234)
    shares = [recipe.share(index, count) for index in range(count)]
    np.testing.assert_array_equal(np.concatenate(shares), whole(recipe))
    assert sum(map(len, shares)) == recipe.length
    lengths = np.array(list(map(len, shares)))
    assert lengths.max() - lengths.min() <= 2 * SENTENCE


def test_the_seed_decides():
    texts = [whole(Recipe(words=100, length=1000, seed=seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(texts[0], texts[1])
    assert np.any(texts[0] != texts[2])


@pytest.mark.parametrize("words", [1, 2, 9, 11])
def test_small_vocabularies(words):
    text = whole(Recipe(words=words, length=5000))
    assert len(text) == 5000 and set(np.unique(text)) == set(range(words))


def test_more_workers_than_sentences():
    recipe = Recipe(words=10, length=25)
    assert [len(recipe.share(index, 5)) for index in range(5)] == [0, 0, 20, 0, 5]
