"""Predictions of held-out ratings: of the final model, or means over the draws of a sampler.

A sampler adds each draw's predictions to sums. They are values of the server, behind the factors: two numbers for each
held-out rating, in the order of rows, columns and ratings, which does not depend on the number of workers. So they are
part of checkpoints.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared.files import write_text
from lapse.apps._shared.job import on_rank_0
from lapse.apps.mf.matrix import Part
from lapse.apps.mf.plan import Plan, part_of
from lapse.apps.mf.scores import predict

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def _sorted_part(kv: lapse.Worker, plan: Plan) -> tuple[Part, int]:
    """A worker's held-out ratings in the order of the sums, and how many come before. Collective over all workers."""
    part = part_of(kv, plan, plan.matrix.held_out)
    counts = np.zeros(kv.num_workers)
    counts[kv.id] = len(part)
    order = np.lexsort((part.values, part.columns, part.rows))
    return part.where(order), int(kv.allreduce(counts)[: kv.id].sum())


def _keys_of(plan: Plan, first: int, count: int) -> tuple[np.ndarray, int]:
    """The keys of the sums of some ratings, and where they begin within the first of them."""
    begin, end = 2 * first, 2 * (first + count)
    keys = np.arange(begin // plan.model.length, -(-end // plan.model.length))
    return plan.num_factors + keys, begin % plan.model.length


def add_sample(kv: lapse.Worker, plan: Plan) -> None:
    """Add the predictions of the present values, and their squares, to the sums. Collective over all workers."""
    part, first = _sorted_part(kv, plan)
    if len(part):
        deviations = predict(kv, plan, part) - plan.mean
        keys, at = _keys_of(plan, first, len(part))
        updates = np.zeros(len(keys) * plan.model.length, np.float32)
        updates[at : at + 2 * len(part)] = np.stack([deviations, deviations**2], axis=1).ravel()
        kv.push(keys, updates).wait()
    kv.barrier()


def mean_predictions(kv: lapse.Worker, plan: Plan, samples: int) -> tuple[Part, np.ndarray, np.ndarray]:
    """A worker's held-out ratings, their mean predictions and the standard deviations. Collective over all workers."""
    part, first = _sorted_part(kv, plan)
    if not len(part):
        return part, np.empty(0), np.empty(0)
    keys, at = _keys_of(plan, first, len(part))
    sums = kv.pull(keys).wait().ravel()[at : at + 2 * len(part)].reshape(-1, 2).astype(np.float64)
    mean, squares = (sums / samples).T
    return part, plan.mean + mean, np.sqrt(np.maximum(squares - mean**2, 0))


def evaluate(kv: lapse.Worker, plan: Plan, samples: int) -> dict:
    """The RMSE and mean absolute error of the mean predictions, clipped as in `evaluation`."""
    part, predicted, _ = mean_predictions(kv, plan, samples)
    errors = part.values - np.clip(predicted, plan.matrix.low, plan.matrix.high)
    squares, absolute, count = kv.allreduce(np.array([(errors**2).sum(), np.abs(errors).sum(), len(errors)])).tolist()
    return {"rmse": math.sqrt(squares / count), "mae": absolute / count}


def write_predictions(comm: Intracomm, server: lapse.Server, plan: Plan, samples: int, path: Path) -> None:
    """Write a line for each held-out rating: its row and column, the rating, the prediction. Collective.

    With `samples`, the prediction is the mean over as many draws, and the standard deviation follows.
    """
    found = server.run(_predictions, plan, samples)
    gathered = comm.gather(np.concatenate(found))
    on_rank_0(comm, _write, path, plan, samples, gathered)


def _predictions(kv: lapse.Worker, plan: Plan, samples: int) -> np.ndarray:
    if samples:
        part, predicted, deviations = mean_predictions(kv, plan, samples)
    else:
        part, _ = _sorted_part(kv, plan)
        predicted = deviations = predict(kv, plan, part)
    if not plan.args.implicit:
        predicted = np.clip(predicted, plan.matrix.low, plan.matrix.high)
    rows = part.rows + plan.matrix.bounds[kv.id]
    return np.stack([rows, part.columns, part.values, predicted, deviations], axis=1)


def _write(path: Path, plan: Plan, samples: int, gathered: list[np.ndarray]) -> None:
    row_names, column_names = (
        names if names is not None else range(1, count + 1)
        for names, count in (
            (plan.matrix.row_ids, plan.matrix.num_rows),
            (plan.matrix.column_ids, plan.matrix.num_columns),
        )
    )
    lines = ["row\tcolumn\trating\tprediction" + "\tdeviation" * bool(samples) + "\n"]
    for row, column, rating, predicted, deviation in np.concatenate(gathered).tolist():
        shown = f"{row_names[int(row)]}\t{column_names[int(column)]}\t{rating:g}\t{predicted:.5g}"
        lines.append(shown + (f"\t{deviation:.3g}\n" if samples else "\n"))
    write_text(path, "".join(lines))
