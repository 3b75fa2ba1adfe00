"""Predictions of given cells, from values that are pulled in blocks."""

from __future__ import annotations

import numpy as np

import lapse
from lapse.apps.mf.matrix import Part
from lapse.apps.mf.plan import Plan

#: Cells that are predicted at once.
CELLS_AT_ONCE = 65536


def predict(kv: lapse.Worker, plan: Plan, part: Part) -> np.ndarray:
    """Scores of the cells of a worker's ratings, in float64; they are not clipped."""
    scores = np.empty(len(part))
    first_row = plan.matrix.bounds[kv.id]
    for begin in range(0, len(part), CELLS_AT_ONCE):
        some = slice(begin, begin + CELLS_AT_ONCE)
        rows = _pull(kv, first_row + part.rows[some])
        columns = _pull(kv, plan.matrix.num_rows + part.columns[some])
        scores[some] = combine(plan, rows, columns)
    return scores


def combine(plan: Plan, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Scores of pairs of values, each of shape (n, length)."""
    rank = plan.model.rank
    scores = np.einsum("ij,ij->i", rows[:, :rank], columns[:, :rank], dtype=np.float64)
    return scores + plan.mean + rows[:, rank] + columns[:, rank] if plan.model.biases else scores


def _pull(kv: lapse.Worker, keys: np.ndarray) -> np.ndarray:
    different, places = np.unique(keys, return_inverse=True)
    return kv.pull(different).wait()[places]
