"""Draws of the sampler that are kept for the model.

One draw predicts worse than the mean over many. A model that has the factors of several draws side by side, divided by
the square root of their number, is as simple as that of one: the product of a row and a column is the mean of the
products of the draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import lapse
from lapse.apps._shared.files import pull_rows
from lapse.apps.mf.plan import Plan, kept_draws

#: Values that are copied at once.
COPIED_AT_ONCE = 16384


def is_kept(plan: Plan, sample: int) -> bool:
    """Whether a draw is one of those that are kept: they are spread evenly over all that count, from 0."""
    kept, samples = kept_draws(plan.args), plan.args.epochs - plan.args.burn_in
    return (sample + 1) * kept // samples > sample * kept // samples


def keep(kv: lapse.Worker, plan: Plan, place: int) -> None:
    """Copy the present values to a place, from 0. Collective over all workers."""
    assert plan.sides is not None
    first = plan.first_kept_key + place * plan.num_factors
    for side in plan.sides:
        keys = side.keys_of(kv.id)
        for begin in range(0, len(keys), COPIED_AT_ONCE):
            some = keys[begin : begin + COPIED_AT_ONCE]
            kv.set(first + some, kv.pull(some).wait())
    kv.wait_all()
    kv.barrier()


def pull_mean(kv: lapse.Worker, plan: Plan, keys: np.ndarray, kept: int, at_once: int) -> Iterator[np.ndarray]:
    """The values of the model that predicts the mean of the first `kept` places; without any, the present values.

    Yields
    ------
    array of float32, shape (n, rank * kept), or (n, rank * kept + 1) with the bias in the end
        Of the next keys, `at_once` at most.
    """
    if kept == 0:
        yield from pull_rows(kv, keys, at_once)
        return
    rank = plan.model.rank
    places = [plan.first_kept_key + place * plan.num_factors + keys for place in range(kept)]
    for values in zip(*(pull_rows(kv, place, at_once) for place in places), strict=True):
        factors = np.concatenate([draw[:, :rank] for draw in values], axis=1) / np.float32(np.sqrt(kept))
        yield np.hstack([factors, np.mean([draw[:, rank:] for draw in values], axis=0)])
