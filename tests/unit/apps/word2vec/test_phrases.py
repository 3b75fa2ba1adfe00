"""Phrases: as the definition in plain Python, however the text is shared out and kept."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from lapse.apps.word2vec import corpus, phrases, text
from lapse.apps.word2vec.survey import survey
from lapse.apps.word2vec.vocabulary import Selection
from mpi4py import MPI

NAMES = ["new york", "new york city", "san francisco bay", "los los angeles"]


def write(path, sentences=400):
    rng = random.Random(1)
    with open(path, "w") as file:
        for _ in range(sentences):
            words = [rng.choice(NAMES) if rng.random() < 0.2 else f"w{rng.randrange(30)}" for _ in range(8)]
            file.write(" ".join(words) + "\n")
        file.write("new_york york new\n" * 3 + "new\nyork\n")
    return path


def joined(sentences, options):
    """One pass."""
    words = Counter(word for sentence in sentences for word in sentence)
    pairs = Counter(pair for sentence in sentences for pair in itertools.pairwise(sentence))
    total = sum(words.values())

    def is_phrase(a, b):
        score = (pairs[a, b] - options.min_count) / (words[a] * words[b]) * total
        return pairs[a, b] > options.min_count and score > options.threshold

    result = []
    for sentence in sentences:
        line, at = [], 0
        while at < len(sentence):
            both = at + 1 < len(sentence) and is_phrase(*sentence[at : at + 2])
            line.append("_".join(sentence[at : at + 1 + both]))
            at += 1 + both
        result.append(line)
    return result


@pytest.mark.parametrize("passes, kept", [(1, 1 << 26), (3, 1 << 26), (3, 0)])
@pytest.mark.parametrize("workers", [1, 3])
def test_as_the_definition(tmp_path, monkeypatch, passes, kept, workers):
    monkeypatch.setattr(corpus, "MAX_KEPT_WORDS", kept)
    monkeypatch.setattr(text, "BLOCK_WORDS", 100)
    monkeypatch.setattr(phrases, "AT_ONCE", 500)
    path = write(tmp_path / "text.txt")
    options = phrases.Options(passes, 5.0, 5)
    found = survey(MPI.COMM_SELF, [path], workers, Selection(3), options)
    expected = [line.split() for line in path.read_text().splitlines()]
    for _ in range(passes):
        expected = joined(expected, options)
    counts = Counter(word for sentence in expected for word in sentence)
    vocabulary = found.vocabulary
    assert dict(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True)) == {
        word: count for word, count in counts.items() if count >= 3
    }
    assert "new_york" in vocabulary.words
    assert ("new_york_city" in vocabulary.words) == (passes > 1)
    assert found.words == sum(counts.values())
    known = [[word for word in sentence if counts[word] >= 3] for sentence in expected]
    blocks = [block for worker in range(workers) for block in found.blocks(worker)]
    assert sum(block.read for block in blocks) == found.words
    read = [[vocabulary.words[i] for i in each] for b in blocks for each in np.split(b.words, b.ends[:-1])]
    assert [sentence for sentence in read if sentence] == [sentence for sentence in known if sentence]


def test_of_overlapping_phrases_the_first_one_is_joined():
    joining = phrases.Joining(3, np.array([0 * 3 + 1, 1 * 3 + 2]), np.array([3, 4], np.int32))
    ids, ends = joining.of(np.array([0, 1, 2, 1, 2, 0, 1, 0, -1], np.int32), np.array([3, 3, 6, 9]))
    assert ids.tolist() == [3, 2, 4, 0, 1, 0, -1]  # 0 at the end of a sentence, and 1 in the next one, are no pair
    assert ends.tolist() == [2, 2, 4, 7]
