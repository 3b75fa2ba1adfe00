"""Loss and errors of the model that the server holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

import lapse
from lapse.apps.mf import model_io
from lapse.apps.mf.matrix import Part
from lapse.apps.mf.plan import Plan, make_trainer, part_of

#: Ratings of a batch in evaluation, in which nothing changes.
EVALUATED_AT_ONCE = 16384
#: With so many ratings per element, the factors of a row or column are determined as well as the noise allows.
COVERED = 10


@dataclass(frozen=True)
class Sums:
    """Sums over ratings: see `Model.evaluate`; and how many ratings there are."""

    squares: float
    clipped: float
    penalty: float
    absolute: float
    count: float

    @property
    def loss(self) -> float | None:
        """The mean loss; None without ratings."""
        return (self.squares + self.penalty) / self.count if self.count else None


def evaluate(server: lapse.Server, plan: Plan, on_training: bool = True, on_held_out: bool = True) -> dict:
    """Loss and RMSE on training ratings, RMSE and mean absolute error on held-out ones. Collective.

    The loss is the mean over the training ratings of the squared error plus the regularization of the parameters of the
    prediction. Errors are those of predictions, which are clipped to the range of the training ratings.
    """
    sums = server.run(evaluate_parts, plan, on_training, on_held_out)[0].tolist()
    training, covered, others = (Sums(*each) for each in sums)
    figures = {}
    if on_training:
        figures["loss"] = training.loss
    if on_held_out:
        figures |= {"rmse": _rmse(covered, others), "mae": _mae(covered, others)}
    if on_training:
        figures["train_rmse"] = _rmse(training)
    if on_held_out and plan.args.ratings is None:
        figures["rmse_covered"] = _rmse(covered)
    return figures


def _rmse(*parts: Sums) -> float | None:
    count = sum(part.count for part in parts)
    return math.sqrt(sum(part.clipped for part in parts) / count) if count else None


def _mae(*parts: Sums) -> float | None:
    count = sum(part.count for part in parts)
    return sum(part.absolute for part in parts) / count if count else None


def evaluate_parts(kv: lapse.Worker, plan: Plan, on_training: bool = True, on_held_out: bool = True) -> np.ndarray:
    """Sums over all workers' training ratings, covered held-out ones, and other held-out ones.

    Returns
    -------
    numpy.ndarray of shape (3, 5)
        See `Sums`.
    """
    model_io.settle(kv, plan)
    held_out = part_of(kv, plan, plan.matrix.held_out)
    covered = is_covered(plan, held_out, int(plan.matrix.bounds[kv.id]))
    training = part_of(kv, plan, plan.matrix.training)
    if not on_training:
        training = training.where(np.zeros(len(training), bool))
    if not on_held_out:
        held_out, covered = held_out.where(np.zeros(len(held_out), bool)), np.zeros(0, bool)
    parts = [training, held_out.where(covered), held_out.where(~covered)]
    sums = [(*make_trainer(kv, plan, part, batch=EVALUATED_AT_ONCE).evaluate(), len(part)) for part in parts]
    return kv.allreduce(np.array(sums, np.float64))


def is_covered(plan: Plan, part: Part, first_row: int) -> np.ndarray:
    """Which ratings are in rows and columns with enough training ratings to determine their factors."""
    least = COVERED * plan.args.rank
    return (plan.matrix.row_counts[first_row + part.rows] >= least) & (plan.matrix.column_counts[part.columns] >= least)
