"""How well the items that a user turns out to like are ranked among those that the user has not been seen with.

For each row with held-out ratings, all columns without a training rating in that row are ranked by their score; the
held-out ones are the relevant ones. Figures are means over such rows:

- ndcg: the discounted gain of the first k, 1 / log2(1 + rank) per relevant one, as a share of the largest possible one
  (Järvelin & Kekäläinen 2002);
- recall: how many of the relevant ones are among the first k, divided by k or by their number if that is smaller;
- map: the mean precision at the ranks of the relevant ones among the first k, with the same divisor;
- auc: the probability that a relevant column is ranked above another one.
"""

from __future__ import annotations

import numpy as np

import lapse
from lapse.apps.mf.matrix import Part
from lapse.apps.mf.plan import Plan, part_of

FIGURES = ("ndcg", "recall", "map", "auc")
#: Scores that are computed at once.
SCORES_AT_ONCE = 1 << 22


def evaluate(kv: lapse.Worker, plan: Plan, is_due: bool) -> dict[str, float | None]:
    """The figures over all rows with held-out ratings, None without any; nothing without `is_due`. Collective."""
    if not is_due:
        return {}
    training, held_out = (part_of(kv, plan, parts) for parts in (plan.matrix.training, plan.matrix.held_out))
    *totals, ranked = kv.allreduce(rank(kv, plan, training, held_out, plan.args.top)).tolist()
    return {name: total / ranked if ranked else None for name, total in zip(FIGURES, totals)}


def rank(kv: lapse.Worker, plan: Plan, training: Part, held_out: Part, first: int) -> np.ndarray:
    """Sums of the figures over a worker's rows with held-out ratings, and how many rows there are; shape (5,).

    Parameters
    ----------
    first
        The k of the figures.
    """
    sums = np.zeros(len(FIGURES) + 1)
    if not len(held_out):
        return sums
    factors = kv.pull(plan.matrix.num_rows + np.arange(plan.matrix.num_columns)).wait()[:, : plan.model.rank]
    rows = np.unique(held_out.rows)
    at_once = max(SCORES_AT_ONCE // plan.matrix.num_columns, 1)
    for begin in range(0, len(rows), at_once):
        some = rows[begin : begin + at_once]
        mine = kv.pull(int(plan.matrix.bounds[kv.id]) + some).wait()[:, : plan.model.rank]
        seen, relevant = (_cells(part, some, len(factors)) for part in (training, held_out))
        sums += figures_of(mine @ factors.T, seen, relevant & ~seen, first)
    return sums


def _cells(part: Part, rows: np.ndarray, columns: int) -> np.ndarray:
    """Which cells of the given rows (sorted) have a rating."""
    cells = np.zeros((len(rows), columns), bool)
    place = np.searchsorted(rows, part.rows)
    known = (place < len(rows)) & (rows[np.minimum(place, len(rows) - 1)] == part.rows)
    cells[place[known], part.columns[known]] = True
    return cells


def figures_of(scores: np.ndarray, seen: np.ndarray, relevant: np.ndarray, first: int) -> np.ndarray:
    """Sums of the figures over rows, and the number of rows with something relevant.

    Parameters
    ----------
    scores, seen, relevant
        Of shape (rows, columns): float, bool, bool.
    first
        The k of the figures.
    """
    counts = relevant.sum(1)
    used = counts > 0
    scores, seen, relevant, counts = np.where(seen, -np.inf, scores)[used], seen[used], relevant[used], counts[used]
    first = min(first, scores.shape[1])
    top = np.argpartition(-scores, first - 1, axis=1)[:, :first]
    top = np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable"), 1)
    hits = np.take_along_axis(relevant, top, 1)
    possible = np.minimum(counts, first)
    ranks = np.arange(1, first + 1)
    discounts = 1 / np.log2(1 + ranks)
    gains = (hits * discounts).sum(1) / np.cumsum(discounts)[possible - 1]
    recalls = hits.sum(1) / possible
    precisions = (np.cumsum(hits, 1) / ranks * hits).sum(1) / possible
    return np.array([gains.sum(), recalls.sum(), precisions.sum(), _areas(scores, seen, relevant).sum(), len(counts)])


def _areas(scores: np.ndarray, seen: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """The area under the receiver operating characteristic of each row, from ranks; ties are broken by order."""
    order = np.argsort(scores, axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(scores.shape[1])[None, :], 1)
    places = places - seen.sum(1, keepdims=True)  # the seen ones are ranked below all others
    relevant_count = relevant.sum(1)
    others = scores.shape[1] - seen.sum(1) - relevant_count
    below = (places * relevant).sum(1) - relevant_count * (relevant_count - 1) / 2
    return np.where(others > 0, below / np.maximum(relevant_count * others, 1), 0.5)
