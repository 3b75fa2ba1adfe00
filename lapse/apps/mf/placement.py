"""Which technique manages which row and column.

Row i has the key i, column j the key ``num_rows + j``. A row is used by one worker only, and is localized once. Columns
are shared in the column-wise and the plain algorithm, and in ranking, which draws some of them as negatives; hot ones
are replicated. In DSGD no two workers use a column at
the same time, so that nothing needs to be replicated; nor in the alternating solvers, which set a row or column once in
an epoch, on the worker that owns it.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared import placement as shared
from lapse.apps._shared.placement import Ranks, Usage
from lapse.apps.mf.matrix import Matrix
from lapse.apps.mf.options import BATCHES_PER_ROUND, HOTTEST_PER_ROUND

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


#: Few columns on a rank; see `shared.choose_scheme`.
MIN_LOCAL_COLUMNS = 100


@dataclass(frozen=True, kw_only=True)
class Placement(shared.Placement):
    """How the server and the kernel manage rows and columns.

    Attributes
    ----------
    localized_columns
        Per column, uint8: whether a batch localizes it ahead.
    moves
        Whether rows, blocks of DSGD, and columns of alternating solvers, are localized.
    """

    localized_columns: np.ndarray
    moves: bool


def decide(comm: Intracomm, args: argparse.Namespace, matrix: Matrix, length: int, ranks: Ranks) -> Placement:
    """Decide by the options and the ratings; the same on all ranks. Collective.

    `length` is that of a value.
    """
    shares_columns = args.solver == "bpr" or (args.solver == "sgd" and args.algorithm != "dsgd")
    moves = shared.localizes(args, ranks)
    ahead = moves and shares_columns
    localized = np.full(matrix.num_columns, ahead, np.uint8)
    replicated, replication = shared.not_replicated()
    scheme = shared.choose_scheme(args, ranks, matrix.num_columns, MIN_LOCAL_COLUMNS)
    if shares_columns and shared.replicates(args, ranks):
        usage = count_usage(comm, args, matrix)
        per_round = ratings_per_round(args, matrix, ranks.count)
        replicated, replication = shared.replicate(
            args, usage, ranks, per_round, length, scheme=scheme, first=matrix.num_rows
        )
        if args.step == "adagrad":
            replication = dataclasses.replace(replication, combine="adagrad")
        localized[replicated - matrix.num_rows] = 0
    return Placement(
        localize=ahead,
        lookahead=args.lookahead if ahead else 0,
        replicated_keys=replicated,
        replication=replication,
        sampling=negatives_of(args, matrix, scheme),
        localized_columns=localized,
        moves=moves,
    )


def negatives_of(args: argparse.Namespace, matrix: Matrix, scheme: str) -> lapse.Sampling | None:
    """How ranking draws columns, all alike; None for the other solvers."""
    if args.solver != "bpr":
        return None
    columns = lapse.Uniform(matrix.num_rows, matrix.num_rows + matrix.num_columns)
    return shared.make_sampling(args, scheme, columns)


def count_usage(comm: Intracomm, args: argparse.Namespace, matrix: Matrix) -> Usage:
    """Estimate the use of columns by batches. Collective."""
    batch, algorithm = args.batch, args.algorithm if args.solver == "sgd" else "plain"
    mine = np.zeros(matrix.num_columns)
    for part in matrix.training:
        counts = np.bincount(part.columns, minlength=matrix.num_columns)
        mine += expected_batches(counts, batch, algorithm)
    uses = np.empty_like(mine)
    comm.Allreduce(mine, uses)
    rows = np.zeros(matrix.num_rows)  # never replicated, but their size counts: replicas take a share of all values
    used = np.concatenate([rows, uses])
    if args.solver != "bpr":
        return Usage(used, matrix.num_training)
    batches = matrix.num_training / batch
    drawn = -batches * np.expm1(-batch / matrix.num_columns)
    sampled = np.concatenate([rows, np.full(matrix.num_columns, drawn)])
    return Usage(used, matrix.num_training, sampled, batches)


def expected_batches(counts: np.ndarray, batch: int, algorithm: str) -> np.ndarray:
    """The number of a worker's batches that are expected to use each column, from its number of ratings per column.

    Plain: each rating of a column is in any batch. Column-wise: the ratings of a column are one run, which is in one
    batch and in another one for each boundary that it crosses.
    """
    if algorithm == "columnwise":
        return (counts > 0) + np.maximum(counts - 1, 0) / batch
    batches = max(-(-counts.sum() // batch), 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # with a single batch the logarithm is minus infinity, rightly
        return np.where(counts > 0, batches * -np.expm1(counts * np.log1p(-1 / batches)), 0.0)


def ratings_per_round(args: argparse.Namespace, matrix: Matrix, ranks: int) -> int:
    """The maximum number of ratings of all ranks between two synchronizations of replicas.

    Between two of them, each rank changes a hot column by what it knows, and the changes are summed: with large steps
    and many ratings of that column the sum overshoots, and the training diverges.
    """
    if args.sync_ratings is not None:
        return args.sync_ratings
    hottest = matrix.column_counts.max() / matrix.num_training
    return max(int(min(BATCHES_PER_ROUND * args.batch * args.workers * ranks, HOTTEST_PER_ROUND / hottest)), 1)
