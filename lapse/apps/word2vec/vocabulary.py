"""The words to train: their counts, and how likely subsampling keeps an occurrence.

Index 0 is the most frequent word. The index decides a word's keys in the server: ``2 * index`` is
its input vector, ``2 * index + 1`` its output vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: The exponent of the noise distribution in Mikolov et al. 2013.
NOISE_POWER = 0.75


@dataclass(frozen=True)
class Vocabulary:
    """Words by decreasing frequency.

    Attributes
    ----------
    words
        The words; equally frequent ones in alphabetical order.
    counts
        The number of occurrences of each in the corpus.
    """

    words: list[str]
    counts: np.ndarray

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], min_count: int = 1) -> Vocabulary:
        """A vocabulary of the words that occur at least `min_count` times."""
        kept = [(word, count) for word, count in counts.items() if count >= min_count]
        kept.sort(key=lambda item: (-item[1], item[0]))
        return cls([word for word, _ in kept], np.array([n for _, n in kept], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def index(self) -> dict[str, int]:
        """The index of each word."""
        return {word: i for i, word in enumerate(self.words)}

    @property
    def total(self) -> int:
        """The number of words of the corpus that are in the vocabulary."""
        return int(self.counts.sum())

    def keep_probability(self, sample: float) -> np.ndarray:
        """The probability that subsampling keeps an occurrence of each word.

        The formula is that of the word2vec program: with ``f`` the word's share of the corpus,
        ``sqrt(sample / f) + sample / f``. `sample` 0 keeps everything.
        """
        if sample == 0:
            return np.ones(len(self))
        ratio = sample * self.total / self.counts
        return np.minimum(np.sqrt(ratio) + ratio, 1.0)

    def keep_thresholds(self, sample: float) -> np.ndarray:
        """`keep_probability` for 32 random bits: keep an occurrence if they are at most the threshold."""
        scaled = self.keep_probability(sample) * 2.0**32 - 1
        return np.clip(np.round(scaled), 0, 2**32 - 1).astype(np.uint32)


def merge_counts(mine: Counter, other: Counter) -> Counter:
    """Add the second counter to the first: the operation of a reduction over ranks."""
    mine.update(other)
    return mine
