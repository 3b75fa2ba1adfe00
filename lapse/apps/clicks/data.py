"""Synthetic clicks: the same on any number of ranks.

The categories of a field are drawn by a law like Zipf's: their logarithm is uniform. Field and category are hashed to a
key, and each key has a weight that the model has to find.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Of each field.
CATEGORIES = np.geomspace(4, 500_000, 20)
FIELDS = len(CATEGORIES)
#: Examples that are drawn together, and belong to one worker.
BLOCK = 4096
#: Test examples for each one of the training.
TEST_SHARE = 0.1
#: Of the weights, which are normally distributed; and what is added to their sum.
WEIGHT_STD, BIAS = 0.6, -1.0


@dataclass(frozen=True)
class Examples:
    """Some examples.

    Attributes
    ----------
    keys
        int64 of shape (n, FIELDS).
    clicked
        uint8 of shape (n,).
    """

    keys: np.ndarray
    clicked: np.ndarray

    def part(self, first: int, end: int) -> Examples:
        """Those from `first` to `end`."""
        return Examples(self.keys[first:end], self.clicked[first:end])


class Recipe:
    """How examples are drawn.

    Parameters
    ----------
    num_keys, seed
        What they depend on.
    """

    def __init__(self, num_keys: int, seed: int) -> None:
        self._num_keys, self._seed = num_keys, seed
        self._weights = np.random.default_rng((seed, 0)).normal(0, WEIGHT_STD, num_keys)

    def draw(self, numbers: range) -> list[Examples]:
        """Draw blocks by their numbers."""
        return [self._draw_block(number) for number in numbers]

    def _draw_block(self, number: int) -> Examples:
        rng = np.random.default_rng((self._seed, 1, number))
        category = (CATEGORIES ** rng.random((BLOCK, FIELDS))).astype(np.uint64)
        keys = self._hash(category)
        chance = 1 / (1 + np.exp(-self._weights[keys].sum(axis=1) - BIAS))
        return Examples(keys, (rng.random(BLOCK) < chance).astype(np.uint8))

    def _hash(self, category: np.ndarray) -> np.ndarray:
        mixed = (category << np.uint64(8)) + np.arange(FIELDS, dtype=np.uint64)
        for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
            mixed = _fold(mixed) * np.uint64(factor)
        return (_fold(mixed) % np.uint64(self._num_keys)).astype(np.int64)


def _fold(numbers: np.ndarray) -> np.ndarray:
    return numbers ^ (numbers >> np.uint64(32))


def blocks_of(count: int, workers: int) -> tuple[range, range]:
    """The numbers of the blocks of training and test; each worker has one of each at least."""
    training = max(workers, -(-count // BLOCK))
    return range(training), range(training, training + max(workers, int(training * TEST_SHARE)))
