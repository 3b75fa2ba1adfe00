"""Floor 5. Setting initial values: every rank fills the keys that it holds, without messages."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lapse._store import Store
from lapse.options.initializers import Initializer
from lapse.server.digests import sha256_of_array
from lapse.server.rank_calls import RankCalls

BLOCK_KEYS = 4096


def initialize(
    calls: RankCalls, store: Store, check: Callable[[], tuple[np.ndarray, Initializer]], own_seed: int
) -> None:
    """Set the values of some keys on all ranks; see `Server.initialize`.

    Parameters
    ----------
    check : callable
        Returns the keys, sorted and distinct, and the initializer; raises what is wrong with those that were given.
    own_seed : int
    """
    given: list[Any] = []

    def digest() -> tuple[str, str]:
        given[:] = check()
        keys, init = given
        return f"{len(keys)} keys, sha256 {sha256_of_array(keys)[:16]}", _described(init)

    digests = calls.attempt("the arguments of initialize", digest)
    for rank, theirs in enumerate(digests):
        for name, first, other in zip(("keys", "init"), digests[0], theirs):
            if other != first:
                raise ValueError(
                    f"initialize needs the same {name} on all ranks: {first} on rank 0, {other} on rank {rank}"
                )
    keys, init = given
    calls.come_to_rest("initialize")
    calls.attempt("the values of initialize", _fill, store, keys[store.is_here(keys)], init, own_seed)


def _described(init: Initializer) -> str:
    """What initializers that differ between ranks differ in, as far as that can be seen."""
    fn = getattr(init, "fn", None)
    if fn is not None:
        return f"function {getattr(fn, '__qualname__', type(fn).__qualname__)}"
    text = repr(init)
    return type(init).__qualname__ if " at 0x" in text else text


def _fill(store: Store, keys: np.ndarray, init: Initializer, seed: int) -> None:
    lengths = store.value_length(keys)
    for length in np.unique(lengths):
        group = keys[lengths == length]
        for first in range(0, len(group), BLOCK_KEYS):
            part = group[first : first + BLOCK_KEYS]
            values = np.asarray(init.values(part, int(length), seed))
            if values.shape != (len(part), length):
                raise ValueError(
                    f"the initializer returned values of shape {values.shape} for {len(part)} keys of length {length}, "
                    f"not {(len(part), int(length))}"
                )
            store.fill(part, values.astype(store.dtype).reshape(-1))
