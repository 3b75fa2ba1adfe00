"""The training run: ratings, server, epochs, evaluation, model files.

Every step is collective over the ranks. A worker has a range of rows, the same in each epoch, and trains their ratings
in an order that depends on (seed, epoch, worker) alone: the same under every management technique.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared import inputs, job, streams
from lapse.apps._shared.memory import Room
from lapse.apps._shared.metrics import local_share
from lapse.apps._shared.options import pace_options
from lapse.apps._shared.placement import NormalThenZero, Ranks, every, log_replicated, make_server
from lapse.apps._shared.progress import Progress
from lapse.apps._shared.training import Training
from lapse.apps.mf import data, matrix, model_io, placement, schedule, stdlib_matrix, synthetic
from lapse.apps.mf._kernel import Trainer
from lapse.apps.mf._model import Model
from lapse.apps.mf.matrix import Matrix, Part
from lapse.apps.mf.options import STDLIB
from lapse.apps.mf.placement import Placement

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: Batches between two checks of the clock and of signals.
BATCHES_AT_ONCE = 8
#: Ratings of a batch in evaluation, in which nothing changes.
EVALUATED_AT_ONCE = 16384
#: With so many ratings per element, the factors of a row or column are determined as well as the noise allows.
COVERED = 10
FLOAT_BYTES = 4
#: Factors of the bold driver after an epoch in which the loss decreased or increased (Gemulla et al.).
FASTER, SLOWER = 1.05, 0.5


@dataclass(frozen=True)
class Plan:
    """What all workers know for training and evaluation."""

    args: argparse.Namespace
    matrix: Matrix
    model: Model
    placement: Placement

    @property
    def num_keys(self) -> int:
        """Row i has the key i, column j the key ``num_rows + j``."""
        return self.matrix.num_rows + self.matrix.num_columns


def run(args: argparse.Namespace, comm: Intracomm) -> None:
    """Train as the options say and print the ``RESULT`` line."""
    training = Training("mf", comm, args, quality=("rmse", "train_rmse"))
    if training.repeat_result():
        return
    plan = make_plan(comm, training.args, load(comm, training.args))
    with open_server(comm, plan, training.seed) as server:
        training.restore(server)
        went_well = train(server, plan, training)
        if plan.args.output is not None and went_well and not training.is_interrupted:
            model_io.save(server, plan, plan.args.output)
    if not went_well:
        raise job.AppError(
            f"the training diverged: the loss is not finite. Choose a --learning-rate below "
            f"{plan.args.learning_rate:g}, or a --regularization other than "
            f"{plan.args.regularization:g}"
        )
    training.finish(**_figures(training.history))


def _figures(history: list[dict]) -> dict:
    """The figures of the last epoch, for ``RESULT``."""
    last = history[-1] if history else {}
    return {name: last[name] for name in ("rmse", "train_rmse", "rmse_covered") if name in last}


# --- ratings ---------------------------------------------------------------------------------------


def load(comm: Intracomm, args: argparse.Namespace) -> Matrix:
    """Read or generate the ratings, each rank a share, and distribute them by rows. Collective."""
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
    ratings = matrix.assemble(comm, args.workers, share, test, args.test_fraction, args.seed)
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
    length = model_of(args).length
    Room.of(comm).check(
        f"{rows:,} rows and {columns:,} columns x {length} numbers (--rank {args.rank}) x {FLOAT_BYTES} bytes",
        (rows + columns) * length * FLOAT_BYTES,
        rows + columns,
        "choose a smaller --rank or more hosts; or, if most numbers of rows or columns are unused, give the ratings as "
        "lines 'row column rating' of text, of which only those that occur take memory",
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
    ranks = Ranks.of(comm)
    chosen = job.collectively(comm, placement.decide, comm, args, ratings, model.length, ranks)
    per_round = placement.ratings_per_round(args, ratings, ranks.count)
    log_replicated(chosen, ratings.num_columns, "columns", every(per_round, "ratings"))
    return Plan(args, ratings, model, chosen)


def model_of(args: argparse.Namespace, mean: float = 0.0, low: float = 0.0, high: float = 0.0) -> Model:
    """The model that the options describe, of ratings with this mean and range."""
    return Model(
        rank=args.rank,
        biases=not args.no_biases,
        adagrad=args.step == "adagrad",
        mean=mean,
        low=low,
        high=high,
        regularization=args.regularization,
        bias_regularization=args.bias_regularization,
    )


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


def make_trainer(
    kv: lapse.Worker,
    plan: Plan,
    part: Part,
    *,
    batch: int,
    lookahead: int = 0,
    localize: np.ndarray | None = None,
    exclusive: bool = False,
) -> Trainer:
    """The kernel for some ratings of a worker."""
    first, end = plan.matrix.bounds[kv.id : kv.id + 2].tolist()
    columns = plan.matrix.num_columns
    return Trainer(
        kv,
        plan.model,
        part.rows,
        part.columns,
        part.values,
        first_row=first,
        num_rows=end - first,
        first_column=plan.matrix.num_rows,
        num_columns=columns,
        batch=batch,
        lookahead=lookahead,
        localize=np.zeros(columns, np.uint8) if localize is None else localize,
        exclusive=exclusive,
        **pace_options(plan.args),
    )


def part_of(kv: lapse.Worker, plan: Plan, parts: list[Part]) -> Part:
    """The part of a worker among those of its rank."""
    return parts[kv.id - kv.rank * plan.args.workers]


# --- training --------------------------------------------------------------------------------------


def train(server: lapse.Server, plan: Plan, training: Training) -> bool:
    """Run the remaining epochs while the loss is finite; returns whether it is."""
    if plan.placement.moves:
        server.run(localize_rows, plan)
    rates = Rates(plan.args, training.state)
    for epoch in training.epochs(server):
        used = rates.rate(epoch)
        counted = server.run(train_epoch, server, plan, training, epoch, used)[0]
        training.meet()
        figures: dict = {"loss": None}
        if not training.is_interrupted:
            with training.evaluating():
                figures = evaluate(server, plan)
            if not math.isfinite(figures["loss"]):  # it will not recover, and is not saved
                return False
        state = rates.learn(figures["loss"]) if not training.is_partial else rates.state
        training.end_epoch(**figures, **counted, learning_rate=used, state=state)
    last = training.history[-1] if training.history else {}
    if last.get("loss", 0) is None and not training.is_partial and not training.is_interrupted:
        last.update(evaluate(server, plan))  # the run before was stopped between its last block and this
    return True


def localize_rows(kv: lapse.Worker, plan: Plan) -> None:
    """Localize the rows of a worker; they stay on its rank."""
    first, end = plan.matrix.bounds[kv.id : kv.id + 2]
    kv.localize(np.arange(first, end)).wait()


class Rates:
    """Learning rates: decaying, constant (AdaGrad) or those of the bold driver.

    Parameters
    ----------
    args
        With ``step``, ``learning_rate`` and ``decay``.
    state
        The state of the run that is resumed, or None.
    """

    def __init__(self, args: argparse.Namespace, state: dict | None) -> None:
        self._step, self._decay = args.step, args.decay
        self.state = state or {"rate": args.learning_rate, "loss": None}

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0."""
        return self.state["rate"] * (self._decay**epoch if self._step == "sgd" else 1.0)

    def learn(self, loss: float | None) -> dict:
        """Record the training loss of a complete epoch; returns the state to resume from."""
        rate, before = self.state["rate"], self.state["loss"]
        if self._step == "bold-driver" and loss is not None and before is not None:
            rate *= FASTER if loss < before else SLOWER
        self.state = {"rate": rate, "loss": loss}
        return self.state


def train_epoch(
    kv: lapse.Worker, server: lapse.Server, plan: Plan, training: Training, epoch: int, rate: float
) -> dict:
    """Train the ratings of a worker once; returns figures of all workers."""
    part = part_of(kv, plan, plan.matrix.training)
    trainer = make_trainer(
        kv,
        plan,
        part,
        batch=plan.args.batch,
        lookahead=plan.placement.lookahead,
        localize=plan.placement.localized_columns,
        exclusive=plan.args.algorithm == "dsgd",
    )
    ratings = plan.matrix.num_training
    progress = Progress.of_epoch(kv, plan.args, epoch, ratings, "ratings")
    pass_over = train_blocks if plan.args.algorithm == "dsgd" else train_in_order
    for _ in pass_over(kv, plan, training, epoch, rate, part, trainer):
        progress.show(
            trainer.trained / max(len(part), 1) * ratings,
            lambda: {"local": f"{100 * local_share(server.stats()):.0f}%"},
        )
    trainer.finish()
    training.note_computing(trainer.computing_seconds)
    progress.close()
    return {"ratings": int(kv.allreduce(trainer.trained))}


def train_blocks(
    kv: lapse.Worker, plan: Plan, training: Training, epoch: int, rate: float, part: Part, trainer: Trainer
) -> Iterator[None]:
    """DSGD: in each sub-epoch, the ratings of a worker in a block of columns that no other worker uses."""
    square = schedule.LatinSquare(plan.matrix.column_counts, kv.num_workers, plan.args.seed, epoch)
    rng = streams.generator(plan.args.seed, epoch, kv.id, schedule.ORDER)
    for order in square.orders(kv.id, part.rows, part.columns, plan.args.batch, rng):
        # the barrier between sub-epochs, at which all agree whether there is another
        if kv.allreduce(int(training.should_stop()), op="max"):
            break
        if plan.placement.moves:
            # wait, because the first batch needs most of the block anyway
            kv.localize(plan.matrix.num_rows + np.unique(part.columns[order])).wait()
        trainer.train(order, rate)
        trainer.finish()  # otherwise others would take the block before all updates have arrived
        yield


def train_in_order(
    kv: lapse.Worker, plan: Plan, training: Training, epoch: int, rate: float, part: Part, trainer: Trainer
) -> Iterator[None]:
    """Column-wise or plain: all ratings of a worker in a random order, while others use the same columns."""
    rng = streams.generator(plan.args.seed, epoch, kv.id, schedule.ORDER)
    if plan.args.algorithm == "columnwise":
        order = schedule.columnwise_order(part.columns, plan.matrix.num_columns, rng)
    else:
        order = schedule.plain_order(len(part), rng)
    at_once = plan.args.batch * BATCHES_AT_ONCE
    for begin in range(0, len(order), at_once):
        if training.should_stop():
            break
        trainer.train(order[begin : begin + at_once], rate)
        yield


# --- evaluation ------------------------------------------------------------------------------------


def evaluate(server: lapse.Server, plan: Plan) -> dict:
    """Loss and RMSE on training ratings, RMSE on held-out ones. Collective.

    The loss is the mean over the training ratings of the squared error plus the regularization of the parameters of the
    prediction. RMSEs are of predictions, which are clipped to the range of the training ratings.
    """
    training, covered, others = (_mean(sums) for sums in server.run(evaluate_parts, plan)[0])
    figures = {"loss": training[0], "rmse": _rmse(covered, others), "train_rmse": _rmse(training)}
    if plan.args.ratings is None:
        figures["rmse_covered"] = _rmse(covered)
    return figures


def _mean(sums: np.ndarray) -> tuple[float | None, float, int]:
    """Loss, sum of squared errors of predictions, and number, from the sums over ratings."""
    squares, clipped, penalty, count = sums.tolist()
    return (squares + penalty) / count if count else None, clipped, int(count)


def _rmse(*parts: tuple) -> float | None:
    count = sum(part[2] for part in parts)
    return math.sqrt(sum(part[1] for part in parts) / count) if count else None


def evaluate_parts(kv: lapse.Worker, plan: Plan) -> np.ndarray:
    """Sums over all workers' training ratings, covered held-out ones, and other held-out ones.

    Returns
    -------
    numpy.ndarray of shape (3, 4)
        Squared errors, those of clipped predictions, penalty, and how many.
    """
    model_io.settle(kv, plan)
    held_out = part_of(kv, plan, plan.matrix.held_out)
    covered = is_covered(plan, held_out, int(plan.matrix.bounds[kv.id]))
    parts = [part_of(kv, plan, plan.matrix.training), held_out.where(covered), held_out.where(~covered)]
    sums = [(*make_trainer(kv, plan, part, batch=EVALUATED_AT_ONCE).evaluate(), len(part)) for part in parts]
    return kv.allreduce(np.array(sums, np.float64))


def is_covered(plan: Plan, part: Part, first_row: int) -> np.ndarray:
    """Which ratings are in rows and columns with enough training ratings to determine their factors."""
    least = COVERED * plan.args.rank
    return (plan.matrix.row_counts[first_row + part.rows] >= least) & (plan.matrix.column_counts[part.columns] >= least)
