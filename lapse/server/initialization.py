"""Floor 5. Setting initial values: every rank fills the keys that it holds, without messages."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lapse._store import Store
from lapse.options.initializers import Initializer
from lapse.options.tables import NamedTable, RowsOf, Tables
from lapse.server.digests import sha256_of_array
from lapse.server.rank_calls import RankCalls

BLOCK_KEYS = 4096
ROWS_AT_ONCE = 1 << 20  # of a table, whose keys are listed


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

    def digest() -> dict[str, str]:
        given[:] = check()
        keys, init = given
        return {"keys": f"{len(keys)} keys, sha256 {sha256_of_array(keys)[:16]}", "init": _described(init)}

    _compare(calls, digest)
    keys, init = given
    calls.come_to_rest("initialize")
    calls.attempt("the values of initialize", _fill, store, keys, init, own_seed)


def initialize_tables(calls: RankCalls, store: Store, tables: Tables, own_seed: int) -> None:
    """Set the values of all tables that have initial values, on all ranks."""
    _compare(calls, lambda: {f"init of table {table.name!r}": _described(table.init) for table in tables.values()})
    calls.come_to_rest("initialize")
    for table in tables.values():
        calls.attempt("the values of initialize", fill_rows, store, table, 0, own_seed)


def fill_rows(store: Store, table: NamedTable, first: int, seed: int) -> None:
    """Set the initial values of the rows of a table from `first` on, as far as they are here and the table has any."""
    if table.init is None:
        return
    for begin in range(table.first + first, table.end, ROWS_AT_ONCE):
        keys = np.arange(begin, min(begin + ROWS_AT_ONCE, table.end))
        _fill(store, keys, RowsOf(table), seed)


def distinct(keys: np.ndarray) -> np.ndarray:
    """The keys in ascending order, each once."""
    flat = keys.reshape(-1)
    return flat if (flat[1:] > flat[:-1]).all() else np.unique(flat)  # mostly they are given so


def _compare(calls: RankCalls, digest: Callable[[], dict[str, str]]) -> None:
    digests = calls.attempt("the arguments of initialize", digest)
    for rank, theirs in enumerate(digests):
        for name, first in digests[0].items():
            if theirs[name] != first:
                raise ValueError(
                    f"initialize needs the same {name} on all ranks: {first} on rank 0, {theirs[name]} on rank {rank}"
                )


def _described(init: Initializer) -> str:
    """What initializers that differ between ranks differ in, as far as that can be seen."""
    fn = getattr(init, "fn", None)
    if fn is not None:
        return f"function {getattr(fn, '__qualname__', type(fn).__qualname__)}"
    text = repr(init)
    return type(init).__qualname__ if " at 0x" in text else text


def _fill(store: Store, keys: np.ndarray, init: Initializer, seed: int) -> None:
    keys = keys[store.is_here(keys)]
    for length, group in _by_length(store, keys):
        for first in range(0, len(group), BLOCK_KEYS):
            part = group[first : first + BLOCK_KEYS]
            values = np.asarray(init.values(part, length, seed))
            if values.shape != (len(part), length):
                raise ValueError(
                    f"the initializer returned values of shape {values.shape} for {len(part)} keys of length {length}, "
                    f"not {(len(part), length)}"
                )
            store.fill(part, values.astype(store.dtype).reshape(-1))


def _by_length(store: Store, keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    if store.length >= 0:
        yield store.length, keys
        return
    lengths = store.value_length(keys)
    for length in np.unique(lengths):
        yield int(length), keys[lengths == length]
