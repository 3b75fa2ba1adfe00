"""The two sides of the matrix, rows and columns, for solvers that take them in turns.

A worker owns a range of the rows with all their ratings, and likewise a range of the columns: each rating is on the
worker of its row and on that of its column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lapse.apps.mf.matrix import RECORD, Matrix, exchange
from lapse.apps.mf.schedule import cut_evenly

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


@dataclass(frozen=True)
class Lines:
    """The rows (or columns) of a worker with their ratings, line by line.

    Attributes
    ----------
    starts
        int64 of shape (lines + 1,): the ratings of line i are those from ``starts[i]`` to ``starts[i + 1] - 1``.
    others
        int32: the other side of each rating, increasing within a line.
    values
        float32.
    """

    starts: np.ndarray
    others: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, lines: np.ndarray, others: np.ndarray, values: np.ndarray, count: int) -> Lines:
        """Sort ratings by their lines, which are counted from 0 to `count` - 1; equal cells by value."""
        order = np.lexsort((values, others, lines))
        starts = np.searchsorted(lines[order], np.arange(count + 1)).astype(np.int64)
        return cls(starts, others[order].astype(np.int32), values[order].astype(np.float32))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def cut(self, ratings: int) -> np.ndarray:
        """Bounds of runs of lines with about so many ratings each."""
        inner = np.searchsorted(self.starts, np.arange(ratings, self.starts[-1], ratings))
        return np.unique(np.concatenate([[0], inner, [len(self)]]))


@dataclass(frozen=True)
class Side:
    """The rows or the columns, as far as a rank has them.

    Attributes
    ----------
    name
        "row" or "column".
    first_key
        The key of line 0.
    bounds
        int64 of shape (workers + 1,): worker w has the lines ``bounds[w] .. bounds[w + 1] - 1``.
    lines
        Those of this rank's workers.
    """

    name: str
    first_key: int
    bounds: np.ndarray
    lines: list[Lines]

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def keys_of(self, worker: int) -> np.ndarray:
        """The keys of a worker's lines."""
        first, end = self.bounds[worker : worker + 2]
        return self.first_key + np.arange(first, end)


def both(comm: Intracomm, matrix: Matrix, workers: int) -> tuple[Side, Side]:
    """Rows and columns of a matrix; `workers` is the number of workers of each rank. Collective."""
    mine = range(comm.rank * workers, (comm.rank + 1) * workers)
    row_lines = [
        Lines.of(part.rows, part.columns, part.values, int(matrix.bounds[worker + 1] - matrix.bounds[worker]))
        for worker, part in zip(mine, matrix.training)
    ]
    worker_of_column = cut_evenly(matrix.column_counts, comm.size * workers)
    bounds = np.searchsorted(worker_of_column, np.arange(comm.size * workers + 1))
    records = exchange(comm, _records_of(matrix, mine), bounds[::workers], "column")
    return (
        Side("row", 0, matrix.bounds, row_lines),
        Side("column", matrix.num_rows, bounds, [_lines_of(records, bounds, worker) for worker in mine]),
    )


def _records_of(matrix: Matrix, workers: range) -> np.ndarray:
    records = np.zeros(sum(map(len, matrix.training)), RECORD)
    begin = 0
    for worker, part in zip(workers, matrix.training):
        some = records[begin : begin + len(part)]
        some["row"], some["column"], some["value"] = part.rows + matrix.bounds[worker], part.columns, part.values
        begin += len(part)
    return records


def _lines_of(records: np.ndarray, bounds: np.ndarray, worker: int) -> Lines:
    first, end = bounds[worker : worker + 2]
    mine = records[(records["column"] >= first) & (records["column"] < end)]
    return Lines.of(mine["column"] - first, mine["row"], mine["value"], int(end - first))
