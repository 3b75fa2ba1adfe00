"""Bayesian personalized ranking (Rendle, Freudenthaler, Gantner, Schmidt-Thieme, UAI 2009).

What a user has should be ranked above what the user has not, by ``log(1 + exp(score of the other - score))``: an epoch
takes a step for each training rating, in random order, with one column that the server draws. The values of ratings do
not matter. Columns are shared by all workers, as in gradient descent by the algorithm ``plain``.
"""

from __future__ import annotations

import lapse
from lapse.apps._shared import streams
from lapse.apps._shared.training import Training
from lapse.apps.mf import model_io, ranking, schedule
from lapse.apps.mf.descent import go_through, localize_rows, train_some_at_once
from lapse.apps.mf.plan import Plan, make_trainer, part_of


class PairwiseRanking:
    """A run of Bayesian personalized ranking.

    Parameters
    ----------
    server, plan, training
        Of the run.

    Attributes
    ----------
    state
        What a checkpoint needs besides the values of the server: the loss of the last epoch.
    """

    def __init__(self, server: lapse.Server, plan: Plan, training: Training) -> None:
        self._server, self._plan, self._training = server, plan, training
        self.state: dict = training.state or {"loss": None}
        if plan.placement.moves:
            server.run(localize_rows, plan)

    def train(self, epoch: int) -> dict:
        """Train an epoch; returns figures of all workers. Collective."""
        rate = self._plan.args.learning_rate * self._plan.args.decay**epoch
        loss, ratings = self._server.run(train_epoch, self._server, self._plan, self._training, epoch, rate)[0]
        self.state = {"loss": loss}
        return {"ratings": ratings, "learning_rate": rate}

    def evaluate(self, is_due: bool) -> dict:
        """The loss, as it was before each step, and the figures of `ranking`, which are left out without `is_due`."""
        return self._server.run(_evaluate, self._plan, self.state["loss"], is_due)[0]


def _evaluate(kv: lapse.Worker, plan: Plan, loss: float | None, is_due: bool) -> dict:
    model_io.settle(kv, plan)
    return {"loss": loss, **ranking.evaluate(kv, plan, is_due)}


def train_epoch(
    kv: lapse.Worker, server: lapse.Server, plan: Plan, training: Training, epoch: int, rate: float
) -> tuple[float, int]:
    """Train the ratings of a worker once; returns the mean loss and the number of ratings of all workers."""
    part = part_of(kv, plan, plan.matrix.training)
    trainer = make_trainer(
        kv,
        plan,
        part,
        batch=plan.args.batch,
        lookahead=plan.placement.lookahead,
        localize=plan.placement.localized_columns,
        ranks=True,
    )
    order = schedule.plain_order(len(part), streams.generator(plan.args.seed, epoch, kv.id, schedule.ORDER))
    steps = train_some_at_once(plan, training, trainer, order, rate)
    go_through(kv, server, plan, training, epoch, part, trainer, steps)
    loss, ranked, trained = (kv.allreduce(each) for each in (trainer.loss, trainer.ranked, trainer.trained))
    return loss / max(ranked, 1), int(trained)
