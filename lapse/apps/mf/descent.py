"""Stochastic gradient descent: an epoch trains each rating once, in the order of the chosen algorithm."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

import lapse
from lapse.apps._shared import streams
from lapse.apps._shared.metrics import local_share
from lapse.apps._shared.progress import Progress
from lapse.apps._shared.training import Training
from lapse.apps.mf import schedule
from lapse.apps.mf._kernel import Trainer
from lapse.apps.mf.evaluation import evaluate
from lapse.apps.mf.matrix import Part
from lapse.apps.mf.plan import Plan, make_trainer, part_of

#: Batches between two checks of the clock and of signals.
BATCHES_AT_ONCE = 8
#: Factors of the bold driver after an epoch in which the loss decreased or increased (Gemulla et al.).
FASTER, SLOWER = 1.05, 0.5


class Descent:
    """A run of gradient descent.

    Parameters
    ----------
    server, plan, training
        Of the run.

    Attributes
    ----------
    state
        What a checkpoint needs besides the values of the server.
    """

    def __init__(self, server: lapse.Server, plan: Plan, training: Training) -> None:
        self._server, self._plan, self._training = server, plan, training
        self._rates = Rates(plan.args, training.state)
        if plan.placement.moves:
            server.run(localize_rows, plan)

    @property
    def state(self) -> dict:
        return self._rates.state

    def train(self, epoch: int) -> dict:
        """Train an epoch; returns figures of all workers. Collective."""
        rate = self._rates.rate(epoch)
        counted = self._server.run(train_epoch, self._server, self._plan, self._training, epoch, rate)[0]
        return {**counted, "learning_rate": rate}

    def evaluate(self, is_due: bool) -> dict:
        """The figures of quality of the present values; without `is_due` only the loss. Collective."""
        figures = evaluate(self._server, self._plan, on_held_out=is_due)
        if not self._training.is_partial:
            self._rates.learn(figures["loss"])
        return figures


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
    pass_over = train_blocks if plan.args.algorithm == "dsgd" else train_in_order
    steps = pass_over(kv, plan, training, epoch, rate, part, trainer)
    go_through(kv, server, plan, training, epoch, part, trainer, steps)
    return {"ratings": int(kv.allreduce(trainer.trained))}


def go_through(
    kv: lapse.Worker,
    server: lapse.Server,
    plan: Plan,
    training: Training,
    epoch: int,
    part: Part,
    trainer: Trainer,
    steps: Iterator[None],
) -> None:
    """Take all steps of an epoch, show how far they have come, and finish."""
    ratings = plan.matrix.num_training
    progress = Progress.of_epoch(kv, plan.args, epoch, ratings, "ratings")
    for _ in steps:
        progress.show(
            trainer.trained / max(len(part), 1) * ratings,
            lambda: {"local": f"{100 * local_share(server.stats()):.0f}%"},
        )
    trainer.finish()
    training.note_computing(trainer.computing_seconds)
    progress.close()


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
    yield from train_some_at_once(plan, training, trainer, order, rate)


def train_some_at_once(
    plan: Plan, training: Training, trainer: Trainer, order: np.ndarray, rate: float
) -> Iterator[None]:
    """Train ratings in an order, until there are no more or the training is to stop."""
    at_once = plan.args.batch * BATCHES_AT_ONCE
    for begin in range(0, len(order), at_once):
        if training.should_stop():
            break
        trainer.train(order[begin : begin + at_once], rate)
        yield
