"""Floor 5. Setting initial values: every rank fills the keys that it holds, without messages."""

import numpy as np

from lapse._store import Store
from lapse.options.initializers import Initializer
from lapse.server.rank_calls import RankCalls

BLOCK_KEYS = 4096


def initialize(calls: RankCalls, store: Store, keys: np.ndarray, init: Initializer, seed: int) -> None:
    """Set the values of some keys on all ranks; see `Server.initialize`."""
    calls.come_to_rest("initialize")
    _fill(store, keys[store.is_here(keys)], init, seed)
    calls.exchange("the end of initialize")


def _fill(store: Store, keys: np.ndarray, init: Initializer, seed: int) -> None:
    lengths = store.value_length(keys)
    for length in np.unique(lengths):
        group = keys[lengths == length]
        for first in range(0, len(group), BLOCK_KEYS):
            part = group[first : first + BLOCK_KEYS]
            values = init.values(part, int(length), seed).astype(store.dtype)
            store.fill(part, values.reshape(-1))
