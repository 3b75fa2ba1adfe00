"""A synthetic text: words by Zipf's law, and topics whose words stand together.

The number of occurrences of the r-th most frequent word is in proportion to 1 / r. The most frequent words (a tenth of
the vocabulary, at most `COMMON`) occur everywhere; each other word belongs to a topic, and a sentence has, besides
common words, words of one topic only. So there is something to learn, and there are as many rare words as in real text.

A part of the text depends on the seed and its place only: workers generate their own shares, and any number of them the
same text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lapse.apps._shared.job import on_rank_0
from lapse.apps.word2vec.text import Sentences, Text, checked
from lapse.apps.word2vec.vocabulary import Selection

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

#: Words of a sentence.
SENTENCE = 20
#: The number of common words, at most, and their share of the vocabulary.
COMMON, COMMON_SHARE = 100, 10
#: Words of a topic, unless there are fewer than `MIN_TOPICS`.
TOPIC, MIN_TOPICS = 1000, 10
#: Sentences that are generated at once, from one random stream.
PART = 5000
DISTINCT = 11  # keeps these streams apart from those of the training


@dataclass(frozen=True)
class Recipe:
    """The properties of the text.

    Attributes
    ----------
    words
        Size of the vocabulary; word 0 is the most frequent one.
    length
        Words of the text.
    seed
        Seed of all random streams.
    """

    words: int
    length: int
    seed: int = 1

    @property
    def sentences(self) -> int:
        """Their number; the last one may be short."""
        return -(-self.length // SENTENCE)

    @property
    def common(self) -> int:
        """The number of words that belong to no topic."""
        return min(COMMON, -(-self.words // COMMON_SHARE))

    @property
    def topics(self) -> int:
        """Their number."""
        return min(max(self.words // TOPIC, MIN_TOPICS), max(self.words - self.common, 1))

    def topic_of(self, words: np.ndarray) -> np.ndarray:
        """The topic of each word; -1: a common one."""
        return np.where(words < self.common, -1, (words - self.common) % self.topics)

    @cached_property
    def _by_topic(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The words, common ones first and then topic by topic; the sums of weights up to each; where topics begin."""
        words = np.arange(self.words)
        order = np.argsort(self.topic_of(words), kind="stable")
        sums = np.cumsum(1.0 / (order + 1.0))
        starts = np.searchsorted(self.topic_of(order), np.arange(self.topics + 1))
        return order.astype(np.int32), sums, np.concatenate([[0.0], sums])[starts]

    def part(self, number: int) -> np.ndarray:
        """Some sentences: words, int32, of shape (sentences, `SENTENCE`)."""
        order, sums, bounds = self._by_topic
        rng = np.random.default_rng((self.seed, DISTINCT, number))
        count = min(PART, self.sentences - number * PART)
        shape = (count, SENTENCE)
        total, common = sums[-1], bounds[0]
        topics = np.searchsorted(bounds, common + (total - common) * rng.random(count), side="right") - 1
        topics = np.minimum(topics, self.topics - 1)[:, None]  # in proportion to the weight of their words
        among_common = rng.random(shape) * total < common
        if self.common == self.words:
            among_common[:] = True
            topics = np.zeros_like(topics)
        low = np.where(among_common, 0.0, bounds[topics])
        high = np.where(among_common, common, bounds[np.minimum(topics + 1, len(bounds) - 1)])
        chosen = np.searchsorted(sums, low + (high - low) * rng.random(shape), side="right")
        return order[np.minimum(chosen, self.words - 1)]

    def share(self, index: int, count: int) -> np.ndarray:
        """The words of a share of the text, sentence after sentence."""
        first, end = (self.sentences * number // count for number in (index, index + 1))
        words = np.concatenate([np.empty(0, np.int32), *self._rows(first, end)])
        return words[: self.length - first * SENTENCE]  # the last sentence

    def _rows(self, first: int, end: int) -> Iterator[np.ndarray]:
        for number in range(first // PART, -(-end // PART)):
            begin = number * PART
            yield self.part(number)[max(first - begin, 0) : end - begin].ravel()


def survey(comm: Intracomm, recipe: Recipe, workers: int, selection: Selection) -> Text:
    """Generate the shares of this rank's workers, and count the words of all. Collective."""
    shares = range(comm.rank * workers, (comm.rank + 1) * workers)
    generated = [recipe.share(index, comm.size * workers) for index in shares]
    mine = sum((np.bincount(words, minlength=recipe.words) for words in generated), np.zeros(recipe.words, np.int64))
    counts = np.empty_like(mine)
    comm.Allreduce(mine, counts)
    names = [f"w{word}" for word in range(recipe.words)]
    occurring = {name: count for name, count in zip(names, counts.tolist(), strict=True) if count}
    vocabulary = on_rank_0(comm, selection.of, occurring)
    numbers = np.array([vocabulary.index.get(name, -1) for name in names], np.int32)
    lengths = [length for part in comm.allgather([len(words) for words in generated]) for length in part]
    kept = {index: _encode(words, numbers) for index, words in zip(shares, generated, strict=True)}
    return checked(Text(f"synthetic text of {recipe.words:,} words", vocabulary, lengths, kept), selection.min_count)


def _encode(words: np.ndarray, numbers: np.ndarray) -> Sentences:
    ends = np.minimum(np.arange(SENTENCE, len(words) + SENTENCE, SENTENCE), len(words))
    return Sentences.without_rare_words(numbers[words], ends)
