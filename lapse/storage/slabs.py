"""Floor 1. How many keys have which length and which optimizer: what the slabs of a store are planned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

BLOCK = 65536  # keys at a time: the process would keep the memory of large temporary arrays

Parameters = dict[str, Any]


class SlabPlan(NamedTuple):
    """What the values of a slab have in common.

    Attributes
    ----------
    length : int
        Elements of each.
    optimizer : dict or None
        The parameters of what their gradients are applied with.
    num_rows : int
        How many keys have such values.
    """

    length: int
    optimizer: Parameters | None
    num_rows: int


def plan_slabs(
    num_keys: int, lengths: int | np.ndarray, optimizers: Sequence[tuple[int, Parameters | None]] = ()
) -> tuple[list[SlabPlan], Callable[[int], np.ndarray] | None]:
    """Which slabs a store needs.

    Parameters
    ----------
    num_keys : int
    lengths : int or int array of shape (num_keys,)
        Elements per value.
    optimizers : sequence of (int, dict or None)
        The keys from the end of the one before up to this end have an optimizer of these parameters, or none. Empty: no
        key has one.

    Returns
    -------
    slabs : list of SlabPlan
        In ascending order of their lengths.
    number : callable or None
        `number(first)` gives the slab of each of the `BLOCK` keys from `first` on, as a uint32 array; None if there is
        one slab only.
    """
    kinds: list[Parameters | None] = []
    ends, kind_of = [], []
    for end, parameters in optimizers or [(num_keys, None)]:
        if parameters not in kinds:
            kinds.append(parameters)
        ends.append(end)
        kind_of.append(kinds.index(parameters))
    if isinstance(lengths, int) and len(kinds) == 1:
        return [SlabPlan(lengths, kinds[0], num_keys)], None

    def codes(first: int) -> np.ndarray:
        last = min(first + BLOCK, num_keys)
        kind = np.array(kind_of)[np.searchsorted(ends, np.arange(first, last), side="right")]
        return (lengths if isinstance(lengths, int) else lengths[first:last].astype(np.int64)) * len(kinds) + kind

    total: Counter[int] = Counter()
    for first in range(0, num_keys, BLOCK):
        total.update(dict(zip(*map(np.ndarray.tolist, np.unique(codes(first), return_counts=True)))))
    distinct = np.array(sorted(total), dtype=np.int64)
    slabs = [SlabPlan(code // len(kinds), kinds[code % len(kinds)], total[code]) for code in distinct.tolist()]
    return slabs, lambda first: np.searchsorted(distinct, codes(first)).astype(np.uint32)
