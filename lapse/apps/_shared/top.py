"""The highest scores of the rows of a matrix that is mapped and read in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

#: Elements of a matrix that are read at once.
ELEMENTS = 1 << 20


class Answers(NamedTuple):
    """What fits best, from the best on.

    Attributes
    ----------
    ids
        Row numbers, int64, shape (n,).
    scores
        float32, shape (n,).
    names
        The names of the rows.
    """

    ids: np.ndarray
    scores: np.ndarray
    names: list[str]


class Best:
    """The `k` highest scores for each of some queries; among equal ones the row with the lower number counts.

    Parameters
    ----------
    queries
        How many queries there are.
    k
        How many rows are wanted; there may be fewer.
    left_out
        For each query, the numbers of the rows that do not count.
    """

    def __init__(self, queries: int, k: int, left_out: Iterable[np.typing.ArrayLike] | None = None) -> None:
        self._k = k
        none: list[list[int]] = [[]] * queries
        self._left_out = [np.unique(np.asarray(ids, np.int64)) for ids in (none if left_out is None else left_out)]
        self._ids = [np.empty(0, np.int64) for _ in range(queries)]
        self._scores = [np.empty(0, np.float32) for _ in range(queries)]

    def add(self, first: int, scores: np.ndarray) -> None:
        """Add scores of the rows from `first` on, shape (queries, rows); NaN and -inf never count.

        Blocks must come in the order of rows; `scores` may be changed.
        """
        for i, row in enumerate(scores):
            gone = self._left_out[i]
            gone = gone[np.searchsorted(gone, first) : np.searchsorted(gone, first + len(row))]
            row[gone - first] = -np.inf
            self._add_row(i, first, row)

    def _add_row(self, i: int, first: int, row: np.ndarray) -> None:
        k = self._k
        floor = self._scores[i][-1] if len(self._scores[i]) >= k else -np.inf
        rows = np.flatnonzero(row > floor)  # not equal ones: their numbers are higher
        if len(rows) > 2 * k:
            some = row[rows]
            rows = rows[some >= np.partition(some, -k)[-k]]
        if not len(rows):
            return
        scores = np.concatenate([self._scores[i], row[rows]])
        ids = np.concatenate([self._ids[i], rows + first])
        order = np.argsort(-scores, kind="stable")[:k]  # ids are in order where scores are equal
        self._ids[i], self._scores[i] = ids[order], scores[order]

    def answers(self, names: Sequence[str]) -> list[Answers]:
        """For each query."""
        return [
            Answers(ids, scores.astype(np.float32), [names[j] for j in ids.tolist()])
            for ids, scores in zip(self._ids, self._scores, strict=True)
        ]


def blocks(matrix: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of a matrix, a block at a time: the number of the first one, and the block."""
    at_once = max(ELEMENTS // max(matrix.shape[1], 1), 1)
    for first in range(0, len(matrix), at_once):
        yield first, np.asarray(matrix[first : first + at_once])


def scaled(vector: np.ndarray) -> np.ndarray:
    """A vector of length 1 in the same direction; 0 stays."""
    return vector / (float(np.linalg.norm(vector)) or 1.0)


class Cosines:
    """The cosines of the rows of a matrix with vectors; the lengths of rows are computed once, 4 bytes each."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = matrix
        self._lengths: np.ndarray | None = None

    def unit(self, row: int) -> np.ndarray:
        """A row, of length 1 (or 0)."""
        return scaled(np.asarray(self._matrix[row], np.float32))

    def blocks(self, vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The cosines with `vectors`, shape (n, dim), of unit length: first row, shape (n, rows of the block)."""
        known = self._lengths
        lengths = np.empty(len(self._matrix), np.float32) if known is None else known
        for first, block in blocks(self._matrix):
            some = lengths[first : first + len(block)]
            if known is None:
                np.sqrt(np.einsum("ij,ij->i", block, block), out=some)
                some[some == 0] = np.inf
            yield first, (block @ vectors.T / some[:, None]).T
        self._lengths = lengths
