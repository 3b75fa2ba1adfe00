"""Random keys for the benchmarks."""

from __future__ import annotations

import numpy as np

UNIFORM, ZIPF = "uniform", "Zipf"


def draw(kind: str, num_keys: int, count: int, seed: int = 1) -> np.ndarray:
    """Random keys 0 .. num_keys - 1: uniform, or the i-th most frequent with probability proportional to 1 / i.

    Which keys are frequent is random too, so that frequent keys are not neighbours.
    """
    rng = np.random.default_rng(seed)
    if kind == UNIFORM:
        return rng.integers(0, num_keys, count)
    cumulated = np.cumsum(1.0 / np.arange(1, num_keys + 1))
    ranks = np.searchsorted(cumulated, rng.random(count) * cumulated[-1])
    return rng.permutation(num_keys)[np.minimum(ranks, num_keys - 1)]


class Stream:
    """Keys that continue from one measurement to the next, so that none finds the keys of the last one in the cache.

    Parameters
    ----------
    kind, num_keys, seed
        As in `draw`.
    share
        Keys per measurement.
    shares
        Number of shares after which the keys repeat.
    distinct
        Within each group of this many keys none is repeated, as `set` at the C level requires; 0: no such restriction.
    """

    def __init__(self, kind: str, num_keys: int, share: int, shares: int = 8, seed: int = 1, distinct: int = 0) -> None:
        keys = draw(kind, num_keys, share * shares, seed)
        if distinct > 1:
            keys = _make_distinct(keys.reshape(-1, distinct), num_keys).reshape(-1)
        self._shares = keys.reshape(shares, share)
        self._next = 0

    def take(self) -> np.ndarray:
        """The next share."""
        self._next += 1
        return self._shares[(self._next - 1) % len(self._shares)]


def _make_distinct(batches: np.ndarray, num_keys: int) -> np.ndarray:
    """Replace repeated keys of a batch by unused keys near them."""
    for batch in batches:
        unique, first = np.unique(batch, return_index=True)
        used = set(unique.tolist())
        for position in sorted(set(range(len(batch))) - set(first.tolist())):
            key = int(batch[position])
            while key in used:
                key = (key + 1) % num_keys
            used.add(key)
            batch[position] = key
    return batches
