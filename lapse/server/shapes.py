"""Floor 5. What a server and its checkpoint must have in common, and which keys are which when tables have grown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lapse._store import Store
from lapse.errors import CheckpointError
from lapse.options.optimizers import Optimizer
from lapse.options.tables import Tables
from lapse.server.digests import sha256_of_integers

BLOCK_KEYS = 65536

Manifest = dict[str, Any]
Optimizers = list[tuple[int, Optimizer | None]]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a server and its checkpoint must have in common.

    Attributes
    ----------
    num_keys : int
    dtype : str
    value_lengths : int or str
        Elements of every value, or a digest of the lengths by key if they vary.
    tables : dict of str to [int, int], optional
        Rows and length of each table, in the order of their keys.
    optimizers : list of [int, dict or None], optional
        For consecutive ranges of keys the end, and what the optimizer is whose states are saved.
    """

    num_keys: int
    dtype: str
    value_lengths: int | str
    tables: dict[str, list[int]] | None = None
    optimizers: list[list[Any]] | None = None

    def as_manifest(self) -> Manifest:
        """The fields that are there, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def shape_of(store: Store, tables: Tables | None = None, optimizers: Optimizers | None = None) -> Shape:
    """The `Shape` of the values of a `Store`, with the states of `optimizers`."""
    described = [[end, optimizer and optimizer.describe()] for end, optimizer in optimizers or []]
    shapes = None if tables is None else tables.shapes()
    lengths: int | str = store.length
    if store.length < 0:
        lengths = f"sha256:{sha256_of_integers(store.value_length(keys) for keys in _blocks_of_keys(store.num_keys))}"
    return Shape(store.num_keys, store.dtype.name, lengths, shapes, described or None)


def _blocks_of_keys(num_keys: int) -> Iterator[np.ndarray]:
    for first in range(0, num_keys, BLOCK_KEYS):
        yield np.arange(first, min(first + BLOCK_KEYS, num_keys))


# Comparing --------------------------------------------------------------------------------------------


def check_shape(path: Any, manifest: Manifest, ours: Shape) -> None:
    """Raise when a checkpoint does not fit a server.

    Tables may have grown, and there may be new ones. A checkpoint without states fits every optimizer.

    Raises
    ------
    CheckpointError
        It names what differs.
    """
    names = ["num_keys", "dtype", "value_lengths"]
    theirs = manifest.get("tables")
    if theirs is not None and ours.tables is not None and not _are_same(theirs, ours.tables):
        _check_tables(path, theirs, ours.tables)
        names = ["dtype"]
    for name in names:
        if manifest[name] != getattr(ours, name):
            raise CheckpointError(
                f"{path}: {name} is {_cut(manifest[name])} in the checkpoint, but {getattr(ours, name)!r} in this "
                "server: load it into a server with the keys, lengths and dtype of the one that saved it"
            )
    if manifest.get("optimizers") is not None:
        _check_optimizers(path, manifest, ours)


def _cut(value: Any) -> str:
    """A value for a message, which must not be as long as a file."""
    shown = repr(value)
    return shown if len(shown) <= 200 else shown[:197] + "..."


def _are_same(theirs: dict[str, list[int]], ours: dict[str, list[int]]) -> bool:
    return list(theirs.items()) == list(ours.items())  # in the same order


def _check_tables(path: Any, theirs: dict[str, list[int]], ours: dict[str, list[int]]) -> None:
    for name, (rows, length) in theirs.items():
        if name not in ours:
            raise CheckpointError(
                f"{path} has a table {name!r}, but this server has {', '.join(map(repr, ours))}: give it one of that "
                "name"
            )
        if ours[name][1] != length:
            raise CheckpointError(
                f"{path}: rows of table {name!r} have {length} elements in the checkpoint, but {ours[name][1]} in this "
                "server"
            )
        if ours[name][0] < rows:
            raise CheckpointError(
                f"{path}: table {name!r} has {rows} rows in the checkpoint, but {ours[name][0]} in this server: it may "
                "have more of them, but not fewer"
            )


def _check_optimizers(path: Any, manifest: Manifest, ours: Shape) -> None:
    """Whether the states in a checkpoint are those of this server's optimizers."""
    renumber = renumbering(manifest, ours)
    first = 0
    for end, theirs in manifest["optimizers"]:
        own = _optimizer_at(int(renumber(np.array([first]))[0]), ours)
        if own != theirs:
            where = _name_of(first, manifest)
            raise CheckpointError(
                f"{path} was saved with the optimizer {_shown(theirs)}{where}, but this server has {_shown(own)}: use "
                "the same, or save with state=False and begin the states anew"
            )
        first = end


def _optimizer_at(key: int, shape: Shape) -> dict[str, Any] | None:
    return next((optimizer for end, optimizer in shape.optimizers or [] if key < end), None)


def _name_of(key: int, manifest: Manifest) -> str:
    end = 0
    for name, (rows, _) in (manifest.get("tables") or {}).items():
        end += rows
        if key < end:
            return f" for table {name!r}"
    return ""


def _shown(described: dict[str, Any] | None) -> str:
    if described is None:
        return "none"
    parameters = ", ".join(f"{name}={value}" for name, value in described.items() if name != "name")
    return f"{described.get('name')}({parameters})"


# Keys -------------------------------------------------------------------------------------------------


def renumbering(manifest: Manifest, ours: Shape) -> Callable[[np.ndarray], np.ndarray]:
    """What gives keys of a checkpoint the numbers that their rows have in this server."""
    theirs = manifest.get("tables")
    if theirs is None or ours.tables is None or _are_same(theirs, ours.tables):
        return lambda keys: keys
    ends = np.cumsum([rows for rows, _ in theirs.values()])
    own = dict(zip(ours.tables, np.cumsum([0, *(rows for rows, _ in ours.tables.values())])))
    shifts = np.array([own[name] - end + rows for (name, (rows, _)), end in zip(theirs.items(), ends)])
    return lambda keys: keys + shifts[np.searchsorted(ends, keys, side="right")]


def new_rows(manifest: Manifest, tables: Tables | None) -> dict[str, int]:
    """The first row of each table that the checkpoint does not have, for tables that have such rows."""
    theirs = manifest.get("tables")
    if theirs is None or tables is None:
        return {}
    rows = {name: theirs[name][0] if name in theirs else 0 for name in tables}
    return {name: first for name, first in rows.items() if first < tables[name].num_rows}


def is_tables(given: Any) -> bool:
    """Whether a manifest's tables look like some."""
    return isinstance(given, dict) and all(
        isinstance(shape, list) and len(shape) == 2 and all(type(number) is int and number > 0 for number in shape)
        for shape in given.values()
    )


def is_optimizers(given: Any, num_keys: int) -> bool:
    """Whether a manifest's optimizers look like some."""
    if not isinstance(given, list) or not all(isinstance(entry, list) and len(entry) == 2 for entry in given):
        return False
    ends = [end for end, _ in given]
    return (
        all(type(end) is int for end in ends)
        and all(optimizer is None or isinstance(optimizer, dict) for _, optimizer in given)
        and ends == sorted(ends)
        and bool(ends)
        and ends[-1] == num_keys
    )
