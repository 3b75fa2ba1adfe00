"""A matrix of ratings, distributed: each worker has a range of rows, with their training and held-out ratings.

All ranks together assemble it from what each has read. The assignment of rows to workers and the order of ratings
depend on the ratings and on the number of workers only, not on which rank has read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lapse.apps._shared.job import AppError, on_rank_0
from lapse.apps.mf.data import Share
from lapse.apps.mf.heads import MAX_INDEX
from lapse.apps.mf.schedule import cut_evenly

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

#: Ratings as they are sent.
RECORD = np.dtype([("row", "i4"), ("column", "i4"), ("value", "f4"), ("held_out", "u1")])
#: Records that are sent to one rank at once: counts and sizes stay far below 2^31, however large the matrix.
RECORDS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Part:
    """Ratings of one worker, sorted by column, then row.

    Attributes
    ----------
    rows
        int32, counted from the worker's first row.
    columns
        int32.
    values
        float32.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def where(self, chosen: np.ndarray) -> Part:
        """The ratings that a boolean array selects."""
        return Part(self.rows[chosen], self.columns[chosen], self.values[chosen])


@dataclass(frozen=True)
class Matrix:
    """The matrix, as far as a rank has it.

    Attributes
    ----------
    bounds
        int64 of shape (workers + 1,): worker w has the rows ``bounds[w] .. bounds[w + 1] - 1``.
    row_counts, column_counts
        int64: the number of training ratings of each row and column.
    training, held_out
        The parts of this rank's workers.
    num_held_out
        The number of held-out ratings of all workers.
    mean, low, high
        Mean and range of all training ratings.
    row_ids, column_ids
        Names; None: the numbers from 1.
    """

    bounds: np.ndarray
    row_counts: np.ndarray
    column_counts: np.ndarray
    training: list[Part]
    held_out: list[Part]
    num_held_out: int
    mean: float
    low: float
    high: float
    row_ids: list[str] | None
    column_ids: list[str] | None

    @property
    def num_rows(self) -> int:
        return len(self.row_counts)

    @property
    def num_columns(self) -> int:
        return len(self.column_counts)

    @property
    def num_training(self) -> int:
        """The number of training ratings of all workers."""
        return int(self.row_counts.sum())


def is_held_out(identities: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Select about this fraction of ratings, each by its identity and the seed alone.

    The function is the finalizer of SplitMix64 (Steele, Lea, Flood 2014), as in `lapse.options.initializers`.
    """
    root = np.random.SeedSequence((seed, 0x7E57)).generate_state(1, np.uint64)[0]
    x = (identities ^ root) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)) * 2.0**-53 < fraction


def assemble(comm: Intracomm, workers: int, share: Share, test: Share | None, fraction: float, seed: int) -> Matrix:
    """Assemble the matrix from what each rank has read. Collective.

    Parameters
    ----------
    workers
        The number of workers of each rank.
    share
        Ratings to train on, including those to hold out if there is no `test`.
    test
        Ratings to hold out; None: select the `fraction` of `share` by `seed`.
    """
    row_ids, column_ids, shape = _merge_names(comm, [share] if test is None else [share, test])
    if test is None:
        records = _records(share, is_held_out(share.identities, fraction, seed))
    else:
        records = np.concatenate([_records(share, False), _records(test, True)])
    row_counts, column_counts = (
        _sum(comm, np.bincount(records[axis][records["held_out"] == 0], minlength=size))
        for axis, size in zip(("row", "column"), shape)
    )
    if row_counts.sum() == 0:
        raise AppError("there are no ratings to train on")
    worker_of_row = cut_evenly(row_counts, comm.size * workers)
    bounds = np.searchsorted(worker_of_row, np.arange(comm.size * workers + 1))
    mean, low, high = _survey(comm, records)
    mine = exchange(comm, records, bounds[::workers])
    parts = [_sorted_parts(mine, bounds, worker) for worker in range(comm.rank * workers, (comm.rank + 1) * workers)]
    training, held_out = map(list, zip(*parts))
    return Matrix(
        bounds,
        row_counts,
        column_counts,
        training,
        held_out,
        comm.allreduce(sum(map(len, held_out))),
        mean,
        low,
        high,
        row_ids,
        column_ids,
    )


#: A matrix looks wrong if it has so many rows, and ratings in fewer of them than this share.
MANY_ROWS, FEW_USED = 100_000, 0.1


def doubts(comm: Intracomm, matrix: Matrix, has_test: bool, fraction: float) -> list[str]:
    """What looks wrong in a matrix that can be trained, a line each. Collective.

    Parameters
    ----------
    has_test
        Whether there is a file of held-out ratings.
    fraction
        The share of ratings to hold out otherwise.
    """
    found = []
    if matrix.low == matrix.high:
        found.append(f"all ratings are {matrix.low:g}: there is nothing to learn from them")
    for side, counts in (("rows", matrix.row_counts), ("columns", matrix.column_counts)):
        used = int(np.count_nonzero(counts))
        if len(counts) > MANY_ROWS and used < FEW_USED * len(counts):
            found.append(f"{used:,} of {len(counts):,} {side} have ratings: numbers without gaps take less memory")
    if again := comm.allreduce(sum(map(_count_repeated, matrix.training))):
        found.append(f"{again:,} ratings are of a cell that has another one, too: all of them are trained")
    if has_test:
        repeated, unknown = (comm.allreduce(n) for n in _compare_held_out(matrix))
        if repeated:
            found.append(f"{repeated:,} of {matrix.num_held_out:,} ratings of --test are of a cell in --ratings, too")
        if unknown > matrix.num_held_out / 2:
            found.append(
                f"{unknown:,} of {matrix.num_held_out:,} ratings of --test are of users or items without any in "
                "--ratings: do both files name them alike?"
            )
    elif fraction and not matrix.num_held_out:
        found.append("no rating is held out: there are too few for this --test-fraction")
    return found


def _count_repeated(part: Part) -> int:
    """How many ratings have the same row and column as the one before."""
    return int(((np.diff(part.rows) == 0) & (np.diff(part.columns) == 0)).sum())


def _compare_held_out(matrix: Matrix) -> tuple[int, int]:
    """Of this rank's held-out ratings: how many cells are trained, too, and how many rows or columns are not."""
    repeated = unknown = 0
    for training, held_out in zip(matrix.training, matrix.held_out):
        width = int(training.rows.max(initial=0)) + int(held_out.rows.max(initial=0)) + 1
        cells = [part.columns.astype(np.int64) * width + part.rows for part in (training, held_out)]
        repeated += int(np.isin(cells[1], cells[0]).sum())
        rows = np.zeros(width, bool)
        rows[training.rows] = True
        unknown += int((~(rows[held_out.rows] & (matrix.column_counts[held_out.columns] > 0))).sum())
    return repeated, unknown


def _merge_names(comm: Intracomm, shares: list[Share]) -> tuple[list[str] | None, list[str] | None, tuple[int, int]]:
    """Number rows and columns alike in all shares of all ranks, by sorted names; returns names and shape."""
    if len({one.shape is None for one in shares}) > 1 or (
        shares[0].shape is not None and len({one.shape for one in shares}) > 1
    ):
        shown = " and ".join(
            "ratings with names" if one.shape is None else f"{one.shape[0]} x {one.shape[1]}" for one in shares
        )
        raise AppError(
            f"--ratings and --test do not belong to one matrix ({shown}): give both as text, or both "
            f"as MatrixMarket of the same shape"
        )
    if shares[0].shape is not None:
        return None, None, shares[0].shape
    names: dict[str, list[str]] = {}
    for axis in ("row", "column"):
        merged = _union(comm, [getattr(one, f"{axis}_ids") for one in shares])
        numbers = {name: number for number, name in enumerate(merged)}
        for one in shares:
            translation = np.array([numbers[name] for name in getattr(one, f"{axis}_ids")], np.int32)
            setattr(one, f"{axis}s", translation[getattr(one, f"{axis}s")])
        names[axis] = merged
    return names["row"], names["column"], (len(names["row"]), len(names["column"]))


def _union(comm: Intracomm, lists: list[list[str]]) -> list[str]:
    """The names of all ranks, integers by value, others in alphabetical order. Collective."""
    gathered = comm.gather(sorted(set().union(*lists)))  # None on the other ranks
    return on_rank_0(comm, lambda: _sort_names(set().union(*gathered or ())))


def _sort_names(names: set[str]) -> list[str]:
    if len(names) > MAX_INDEX:
        raise AppError(f"{len(names):,} distinct names of rows or columns; the limit is {MAX_INDEX:,}")
    numeric = all(name.isascii() and name.isdigit() and len(name) < 19 for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numeric else None)


def _records(share: Share, held_out: np.ndarray | bool) -> np.ndarray:
    records = np.empty(len(share), RECORD)
    records["row"], records["column"], records["value"] = share.rows, share.columns, share.values
    records["held_out"] = held_out
    return records


def _sum(comm: Intracomm, mine: np.ndarray) -> np.ndarray:
    total = np.empty(len(mine), np.int64)
    comm.Allreduce(mine.astype(np.int64), total)
    return total


def _survey(comm: Intracomm, records: np.ndarray) -> tuple[float, float, float]:
    """Mean and range of the training ratings."""
    values = records["value"][records["held_out"] == 0].astype(np.float64)
    from mpi4py import MPI

    total, count = comm.allreduce(values.sum()), comm.allreduce(len(values))
    low = comm.allreduce(values.min(initial=np.inf), op=MPI.MIN)
    high = comm.allreduce(values.max(initial=-np.inf), op=MPI.MAX)
    return float(total / count), float(low), float(high)


def exchange(comm: Intracomm, records: np.ndarray, bounds: np.ndarray, axis: str = "row") -> np.ndarray:
    """Send each rating to the rank of its row, or of its "column", in rounds of bounded size. Collective."""
    destination = np.searchsorted(bounds, records[axis], side="right") - 1
    # ranks without rows share a bound with the next one: the search finds the last of them, which has the row
    records = records[np.argsort(destination, kind="stable")]
    ends = np.cumsum(np.bincount(destination, minlength=comm.size))
    starts = ends - np.bincount(destination, minlength=comm.size)
    rounds = comm.allgather(int(-(-(ends - starts).max(initial=0) // RECORDS_AT_ONCE)))
    received = []
    for turn in range(max(rounds)):
        pieces = [
            records[min(start + turn * RECORDS_AT_ONCE, end) : min(start + (turn + 1) * RECORDS_AT_ONCE, end)]
            for start, end in zip(starts, ends)
        ]
        received.append(_alltoall(comm, pieces))
    return np.concatenate(received) if received else np.empty(0, RECORD)


def _alltoall(comm: Intracomm, pieces: list[np.ndarray]) -> np.ndarray:
    from mpi4py import MPI

    sizes = np.array([piece.nbytes for piece in pieces], np.int64)
    coming = np.empty_like(sizes)
    comm.Alltoall(sizes, coming)
    outgoing, incoming = np.concatenate(pieces).view(np.uint8), np.empty(int(coming.sum()), np.uint8)
    comm.Alltoallv(
        [outgoing, sizes, np.cumsum(sizes) - sizes, MPI.BYTE], [incoming, coming, np.cumsum(coming) - coming, MPI.BYTE]
    )
    return incoming.view(RECORD)


def _sorted_parts(records: np.ndarray, bounds: np.ndarray, worker: int) -> tuple[Part, Part]:
    """The training and held-out ratings of a worker; sorted by value, too, so that reading order is irrelevant."""
    first, end = bounds[worker], bounds[worker + 1]
    mine = records[(records["row"] >= first) & (records["row"] < end)]
    mine = mine[np.lexsort((mine["value"], mine["row"], mine["column"]))]
    part = Part(mine["row"] - np.int32(first), mine["column"].copy(), mine["value"].copy())
    held_out = mine["held_out"] != 0
    return part.where(~held_out), part.where(held_out)
