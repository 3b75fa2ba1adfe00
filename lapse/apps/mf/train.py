"""The training run: ratings, server, epochs, evaluation, model files.

Every step is collective over the ranks. A worker has a range of rows, the same in each epoch, and trains their ratings
in an order that depends on (seed, epoch, worker) alone: the same under every management technique.
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared import inputs, job, search
from lapse.apps._shared.memory import Room
from lapse.apps._shared.placement import NormalThenZero, Ranks, every, log_replicated, make_server
from lapse.apps._shared.recording import MOST_KEYS
from lapse.apps._shared.training import Training
from lapse.apps.mf import (
    data,
    held_out,
    matrix,
    model_io,
    placement,
    ranking,
    side_information,
    sides,
    stdlib_matrix,
    synthetic,
)
from lapse.apps.mf.alternating import Alternation
from lapse.apps.mf.descent import Descent
from lapse.apps.mf.matrix import Matrix
from lapse.apps.mf.options import STDLIB, searched
from lapse.apps.mf.pairwise import PairwiseRanking
from lapse.apps.mf.plan import Plan, kept_draws, model_of

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

FLOAT_BYTES = 4
#: The share of the training ratings that ``--search`` measures on.
VALIDATION = 0.1

#: What may be trained, and the ratings of ``--test``.
Ratings = tuple[data.Share, data.Share | None]


def run(args: argparse.Namespace, comm: Intracomm) -> None:
    """Train as the options say and print the ``RESULT`` line."""
    given = None
    if search.is_wanted(args):
        given = read_ratings(comm, args)
        args = search.choose("mf", comm, args, *searched(args), Trials(comm, args, *given).train)
    quality = ranking.FIGURES if args.implicit else ("rmse", "train_rmse")
    training = Training("mf", comm, args, quality=quality)
    if training.repeat_result():
        return
    plan = make_plan(comm, training.args, load(comm, training.args, given))
    hottest = np.argsort(-plan.matrix.column_counts, kind="stable")[:MOST_KEYS].tolist()
    names = plan.matrix.column_ids or range(1, plan.matrix.num_columns + 1)
    named = [(str(names[column]), plan.matrix.num_rows + column) for column in hottest]
    training.note_hot_keys(named, plan.placement.replicated_keys)
    with open_server(comm, plan, training.seed) as server:
        training.restore(server)
        went_well, state = train(server, plan, training)
        if went_well and not training.is_interrupted:
            write(comm, server, plan, state)
    if not went_well:
        has_rate = plan.args.solver in ("sgd", "bpr")
        way_out = f"a --learning-rate below {plan.args.learning_rate:g}, or " if has_rate else ""
        raise job.AppError(
            f"the training diverged: the loss is not finite. Choose {way_out}a --regularization other than "
            f"{plan.args.regularization:g}"
        )
    training.finish(**_figures(training.history))


class Trials:
    """Trainings of ``--search``, which are measured on a part of the training ratings.

    What the training itself holds out is left aside.

    Parameters
    ----------
    share, test
        See `read_ratings`.
    """

    def __init__(self, comm: Intracomm, args: argparse.Namespace, share: data.Share, test: data.Share | None) -> None:
        self._comm = comm
        if test is None:
            share = share.where(~matrix.is_held_out(share.identities, args.test_fraction, args.seed))
        self._ratings = matrix.assemble(comm, args.workers, share, None, VALIDATION, args.seed + 1)
        check_counts(args, self._ratings)
        if not self._ratings.num_held_out:
            raise job.AppError("--search: there are too few ratings to hold some out")

    def train(self, args: argparse.Namespace) -> float | None:
        """The score of a training with these options. Collective."""
        training = Training("mf", self._comm, args, is_logged=False)
        plan = make_plan(self._comm, args, self._ratings)
        with open_server(self._comm, plan, training.seed) as server:
            went_well, _ = train(server, plan, training)
        training.exit_if_interrupted()
        return training.history[-1][searched(args)[1].figure] if went_well else None


def write(comm: Intracomm, server: lapse.Server, plan: Plan, state: dict) -> None:
    """Write the model and the predictions, if they are asked for. Collective."""
    if plan.args.output is not None:
        model_io.save(server, plan, plan.args.output, state.get("kept", 0))
    if plan.args.predictions is not None:
        held_out.write_predictions(comm, server, plan, state.get("samples", 0), plan.args.predictions)


def _figures(history: list[dict]) -> dict:
    """The figures of the last epoch, for ``RESULT``."""
    last = history[-1] if history else {}
    names = ("rmse", "mae", "train_rmse", "rmse_covered", *ranking.FIGURES)
    return {name: last[name] for name in names if name in last}


# --- ratings ---------------------------------------------------------------------------------------


def load(comm: Intracomm, args: argparse.Namespace, given: Ratings | None = None) -> Matrix:
    """Read or generate the ratings, each rank a share, unless they are given; distribute them by rows. Collective."""
    share, test = given or read_ratings(comm, args)
    ratings = matrix.assemble(comm, args.workers, share, test, args.test_fraction, args.seed)
    check_counts(args, ratings)
    if args.ratings is not None:
        for doubt in matrix.doubts(comm, ratings, args.test is not None, args.test_fraction):
            if comm.rank == 0:
                log.warning(doubt)
    log.info(
        "%s training and %s held-out ratings of %s rows and %s columns, from %g to %g, on average %.4g",
        *(f"{n:,}" for n in (ratings.num_training, ratings.num_held_out, ratings.num_rows, ratings.num_columns)),
        ratings.low,
        ratings.high,
        ratings.mean,
    )
    return ratings


def read_ratings(comm: Intracomm, args: argparse.Namespace) -> Ratings:
    """Read or generate the ratings, each rank a share: all that may be trained, and those of ``--test``. Collective."""
    if args.ratings is None:
        if args.test is not None:
            raise job.AppError("--test requires --ratings FILE; of a synthetic matrix, --test-fraction is held out")
        check_memory(comm, args, args.rows, args.num_columns)
        share, test = job.collectively(comm, _synthetic_share, args, comm.rank, comm.size), None
    else:
        share = read(comm, locate(comm, args.ratings), args.columns)
        test = None
        if args.test is not None:
            test = read(comm, data.Source.of(inputs.share(comm, args.test)), args.columns)
        if share.shape is not None:
            check_memory(comm, args, *share.shape)
    return share, test


def check_counts(args: argparse.Namespace, ratings: Matrix) -> None:
    """Raise `AppError` if ratings cannot be counts, but should be."""
    if args.implicit and ratings.low < 0:
        raise job.AppError(f"--implicit takes ratings as counts, but the smallest one is {ratings.low:g}")


def _synthetic_share(args: argparse.Namespace, index: int, count: int) -> data.Share:
    try:
        recipe = synthetic.Recipe(
            args.rows, args.num_columns, args.entries, args.planted_rank, args.noise, args.exponent, args.seed
        )
    except ValueError as error:
        raise job.AppError(f"--entries: {error}") from None
    return synthetic.make_share(recipe, index, count)


def check_memory(comm: Intracomm, args: argparse.Namespace, rows: int, columns: int) -> None:
    """Raise `AppError` if the factors of so many rows and columns do not fit. Collective."""
    length, kept = model_of(args).length, kept_draws(args)
    copies = f" x {1 + kept} (--kept-draws)" if kept else ""
    keys = (rows + columns) * (1 + kept)
    Room.of(comm).check(
        f"{rows:,} rows and {columns:,} columns x {length} numbers (--rank {args.rank}) x {FLOAT_BYTES} bytes{copies}",
        keys * length * FLOAT_BYTES,
        keys,
        "choose a smaller --rank or more hosts; or, if most numbers of rows or columns are unused, give the ratings as "
        "lines 'row column rating' of text, of which only those that occur take memory",
    )


def check_side_information(comm: Intracomm, args: argparse.Namespace, rows: int, columns: int) -> None:
    """Raise `AppError` if what each worker needs for the side information of so many lines does not fit. Collective."""
    length = model_of(args).length
    counts = {"row": rows, "column": columns}
    lines = max((counts[side] for side in side_information.INFORMED[args.side_information]), default=0)
    workers = comm.size * args.workers
    Room.of(comm).check(
        f"--side-information {args.side_information} of {lines:,} lines in each of {workers:,} workers",
        workers * side_information.bytes_of(lines, length),
        0,
        "choose --side-information of the other side or none, or fewer workers",
    )


def locate(comm: Intracomm, ratings: str) -> data.Source:
    """The file of that name, or the matrix of the standard library of rank 0. Collective."""
    if ratings != STDLIB:
        return data.Source.of(inputs.share(comm, ratings))
    if Path(STDLIB).exists():
        log.warning(
            "--ratings %s means the standard library, not the file of that name in this folder; for the file, use ./%s",
            STDLIB,
            STDLIB,
        )
    return data.Source(stdlib_matrix.NAME, job.on_rank_0(comm, stdlib_matrix.standard_matrix))


def read(comm: Intracomm, source: data.Source, columns: str | None = None) -> data.Share:
    """Read this rank's share; `columns` is the value of ``--columns``. Collective."""
    form = job.on_rank_0(comm, data.read_format, source, columns)
    share = job.collectively(comm, data.read_share, source, comm.rank, comm.size, form)
    found = comm.allreduce(len(share))
    if form.shape is not None:
        job.collectively(comm, data.check_entries, source, form.shape[2], found)
    if form.note:
        log.info("%s: %s", source.name, form.note)
    for doubt in dict.fromkeys([*form.doubts, *comm.allgather(share.doubt)]):
        if doubt and comm.rank == 0:
            log.warning("%s: %s", source.name, doubt)
    if found == 0:
        raise job.AppError(f"{source.name} is empty: it has no rating")
    return share


# --- the server ------------------------------------------------------------------------------------


def make_plan(comm: Intracomm, args: argparse.Namespace, ratings: Matrix) -> Plan:
    """Make the decisions that hold for all epochs. Collective."""
    model = model_of(args, mean=ratings.mean, low=ratings.low, high=ratings.high)
    check_memory(comm, args, ratings.num_rows, ratings.num_columns)
    if args.solver == "gibbs":
        check_side_information(comm, args, ratings.num_rows, ratings.num_columns)
    ranks = Ranks.of(comm)
    chosen = job.collectively(comm, placement.decide, comm, args, ratings, model.length, ranks)
    per_round = placement.ratings_per_round(args, ratings, ranks.count)
    log_replicated(chosen, ratings.num_columns, "columns", every(per_round, "ratings"))
    turns = None if args.solver in ("sgd", "bpr") else sides.both(comm, ratings, args.workers)
    return Plan(args, ratings, model, chosen, turns)


def start_values(args: argparse.Namespace) -> NormalThenZero:
    """Initial values: random factors, all else 0. (If the factors of both sides were 0, they would stay 0.)"""
    return NormalThenZero(lambda length: args.rank, args.init_std)


def open_server(comm: Intracomm, plan: Plan, seed: int) -> lapse.Server:
    """A server with the factors initialized.

    Those of rows and columns without training ratings remain 0, so that a held-out rating there is predicted by the
    mean and the bias of the other side.
    """
    server = make_server(comm, plan.args, plan.placement, plan.num_keys, plan.model.length, seed)
    counts = np.concatenate([plan.matrix.row_counts, plan.matrix.column_counts])
    server.initialize(np.flatnonzero(counts), start_values(plan.args))
    return server


# --- training --------------------------------------------------------------------------------------


def train(server: lapse.Server, plan: Plan, training: Training) -> tuple[bool, dict]:
    """Run the remaining epochs while the loss is finite; returns whether it is, and the state of the method."""
    kinds: dict[str, type[Descent | PairwiseRanking | Alternation]] = {"sgd": Descent, "bpr": PairwiseRanking}
    method = kinds.get(plan.args.solver, Alternation)(server, plan, training)
    is_due = True
    for epoch in training.epochs(server):
        counted = method.train(epoch)
        training.meet()
        figures: dict = {"loss": None}
        if not training.is_interrupted:
            with training.evaluating():
                is_due = _is_due(plan.args, training, epoch)
                figures = method.evaluate(is_due)
            if not math.isfinite(figures["loss"]):  # it will not recover, and is not saved
                return False, method.state
        training.end_epoch(**figures, **counted, state=method.state)
    last = training.history[-1] if training.history else {}
    if (not is_due or last.get("loss", 0) is None) and not training.is_partial and not training.is_interrupted:
        last.update(method.evaluate(True))  # this run, or the one before, was stopped where nothing was due
    return True, method.state


def _is_due(args: argparse.Namespace, training: Training, epoch: int) -> bool:
    """Whether all figures are wanted after this epoch, from 0."""
    return training.is_partial or (epoch + 1) % args.evaluate_every == 0 or epoch + 1 >= args.epochs
