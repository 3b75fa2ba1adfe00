"""Which technique manages which value: what is localized ahead, replicated, or stays at home.

Row i has the key i, column j the key ``num_rows + j``. A row is used by one worker only, and is localized once. Columns
are shared in the column-wise and the plain algorithm; hot ones are replicated. In DSGD nothing is shared at a time, so
that nothing needs to be replicated.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

import lapse
from lapse.apps.mf.__main__ import BATCHES_PER_ROUND, HOTTEST_PER_ROUND
from lapse.apps.mf.matrix import Matrix

#: Workers wait at twice `max_pending`: half of the ratings that `--sync-ratings` allows, and a little less, since how
#: many of a batch's columns are replicated varies.
PACE = 0.5 * 0.9


@dataclass(frozen=True)
class Placement:
    """What the server and the kernel need to know of it.

    Attributes
    ----------
    is_replicated
        Per column, uint8.
    localize
        Per column, uint8: whether a batch localizes it ahead.
    moves
        Whether rows, and blocks of DSGD, are localized.
    lookahead
        Batches that are prepared ahead.
    replication
        For the server.
    """

    is_replicated: np.ndarray
    localize: np.ndarray
    moves: bool
    lookahead: int
    replication: lapse.Replication

    def replicated_keys(self, num_rows: int) -> np.ndarray:
        """The keys that are replicated, sorted."""
        return num_rows + np.flatnonzero(self.is_replicated)


def decide(comm, args: argparse.Namespace, matrix: Matrix, length: int, sharing: int = 1) -> Placement:
    """The same on all ranks, by the options and the ratings. Collective.

    `length` is that of a value; `sharing` ranks share memory.
    """
    moves = args.management != "classic" and sharing < comm.size  # else every value is local to all
    shares_columns = args.algorithm != "dsgd"
    replicated = np.zeros(matrix.num_columns, np.uint8)
    replication = lapse.Replication()
    if args.management == "lapse2" and shares_columns and (moves or args.replicate and comm.size > 1):
        uses = count_uses(comm, matrix, args.batch, args.algorithm)
        replicated[choose_replicated(args, matrix, uses, comm.size, length, sharing)] = 1
        replication = pace(args, matrix, uses, replicated, comm.size)
    ahead = moves and shares_columns
    return Placement(replicated, (1 - replicated) * np.uint8(ahead), moves, args.lookahead if ahead else 0, replication)


def count_uses(comm, matrix: Matrix, batch: int, algorithm: str) -> np.ndarray:
    """In how many batches of an epoch each column is expected, over all workers. Collective."""
    mine = np.zeros(matrix.num_columns)
    for part in matrix.training:
        counts = np.bincount(part.columns, minlength=matrix.num_columns)
        mine += expected_batches(counts, batch, algorithm)
    uses = np.empty_like(mine)
    comm.Allreduce(mine, uses)
    return uses


def expected_batches(counts: np.ndarray, batch: int, algorithm: str) -> np.ndarray:
    """In how many of a worker's batches each column is expected, for its ratings of each column.

    Plain: each of a column's ratings falls into any batch. Column-wise: they are one run, which touches a batch and
    another one for each border it goes across.
    """
    if algorithm == "columnwise":
        return (counts > 0) + np.maximum(counts - 1, 0) / batch
    batches = max(-(-counts.sum() // batch), 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # with a single batch the logarithm is minus infinity, as it should be
        return np.where(counts > 0, batches * -np.expm1(counts * np.log1p(-1 / batches)), 0.0)


def choose_replicated(args: argparse.Namespace, matrix: Matrix, uses: np.ndarray, ranks: int,
                      length: int, sharing: int = 1) -> np.ndarray:
    """The columns to replicate: those for which it costs less, or as many as `--replicate` says."""
    if args.replicate is not None:
        return np.argsort(-uses, kind="stable")[:args.replicate]
    rounds = max(matrix.num_training / ratings_per_round(args, matrix, ranks), 1)
    everything = np.concatenate([np.zeros(matrix.num_rows), uses])  # replicas may take a part of the size of all values
    hot = lapse.choose_hot_spots(everything, ranks=ranks, rounds=rounds, value_lengths=length, sharing=sharing)
    return hot - matrix.num_rows


def ratings_per_round(args: argparse.Namespace, matrix: Matrix, ranks: int) -> int:
    """Ratings of all ranks between two rounds, at most: by `--sync-ratings`, or such that no round has too many.

    Between two rounds each rank moves a hot column by all that it knows, and the moves are summed: with large steps and
    many ratings of that column they go too far, and the training diverges.
    """
    if args.sync_ratings is not None:
        return args.sync_ratings
    hottest = matrix.column_counts.max() / matrix.num_training
    return max(int(min(BATCHES_PER_ROUND * args.batch * args.workers * ranks, HOTTEST_PER_ROUND / hottest)), 1)


def pace(args: argparse.Namespace, matrix: Matrix, uses: np.ndarray, replicated: np.ndarray,
         ranks: int) -> lapse.Replication:
    """Rounds by work: all ranks together train at most `--sync-ratings` ratings between two of one rank."""
    pushes_per_rating = uses[replicated != 0].sum() / max(matrix.num_training, 1)
    most = PACE * pushes_per_rating * ratings_per_round(args, matrix, ranks) / ranks
    return lapse.Replication(max_pending=max(int(most), 1))
