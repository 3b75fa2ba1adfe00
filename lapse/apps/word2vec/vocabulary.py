"""The words to train: their counts, and how likely subsampling keeps an occurrence.

Index 0 is the most frequent word. The index decides a word's keys in the server: ``2 * index`` is
its input vector, ``2 * index + 1`` its output vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: The exponent of the noise distribution in Mikolov et al. 2013.
NOISE_POWER = 0.75


@dataclass(frozen=True)
class Selection:
    """Which words of a text are trained.

    Attributes
    ----------
    min_count
        Those that occur at least so often.
    most
        Of these, so many of the most frequent ones; None: all.
    start
        Words that are trained in any case, as long as `most` leaves room: those of ``--start-vectors``.
    """

    min_count: int = 1
    most: int | None = None
    start: Sequence[str] = ()

    def of(self, counts: Mapping[str, int]) -> Vocabulary:
        """The vocabulary of a text with these counts.

        Words are in the order of their counts, and equally frequent ones in alphabetical order.
        """
        kept = {word: count for word, count in counts.items() if count >= self.min_count}
        kept.update((word, counts.get(word, 0)) for word in self.start)
        order = sorted(kept.items(), key=lambda item: (-item[1], item[0]))[: self.most]
        return Vocabulary([word for word, _ in order], np.array([n for _, n in order], dtype=np.int64))


@dataclass(frozen=True)
class Vocabulary:
    """Words by decreasing frequency.

    Attributes
    ----------
    words
        The words; equally frequent ones in alphabetical order.
    counts
        The number of occurrences of each in the corpus; 0 for a word of ``--start-vectors`` that the text lacks.
    """

    words: list[str]
    counts: np.ndarray

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
        ratio = sample * self.total / np.maximum(self.counts, 1)
        return np.minimum(np.sqrt(ratio) + ratio, 1.0)

    def keep_thresholds(self, sample: float) -> np.ndarray:
        """`keep_probability` for 32 random bits: keep an occurrence if they are at most the threshold."""
        scaled = self.keep_probability(sample) * 2.0**32 - 1
        return np.clip(np.round(scaled), 0, 2**32 - 1).astype(np.uint32)

    def noise(self, exponent: float = NOISE_POWER) -> np.ndarray:
        """The weight of each word as a negative: its count to the power of `exponent`; 0 if it does not occur."""
        weights = np.zeros(len(self))
        occurs = self.counts > 0
        weights[occurs] = self.counts[occurs].astype(np.float64) ** exponent
        return weights


def merge_counts(mine: Counter, other: Counter) -> Counter:
    """Add the second counter to the first: the operation of a reduction over ranks."""
    mine.update(other)
    return mine
