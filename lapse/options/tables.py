"""Floor 1. Tables: rows with a name, a length, an optimizer and initial values of their own, in ranges of keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from lapse.base.checks import brief, check_int
from lapse.options.initializers import Initializer, as_initializer
from lapse.options.optimizers import Optimizer, check_optimizer

MAX_ROWS = 2**32 - 2
MAX_LENGTH = 2**29


@dataclasses.dataclass(frozen=True)
class Table:
    """What the rows of a table have in common.

    Parameters
    ----------
    num_rows : int
        Rows are the integers 0 .. num_rows - 1.
    length : int
        Elements of each.
    init : Normal, UniformValues, Constant, Columns, FromFile, ... or callable, optional
        Initial values, as of `Server.initialize`, but of rows instead of keys: they depend on the seed, the table's
        name and the row only. By default zeros.
    optimizer : lapse.optim.Optimizer, optional
        What `Worker.apply_gradients` does with gradients of the rows. Without one they can be pushed to only.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type or is out of range.
    """

    num_rows: int
    length: int
    init: Any = None
    optimizer: Optimizer | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_rows", check_int(self.num_rows, "num_rows", 1, MAX_ROWS))
        object.__setattr__(self, "length", check_int(self.length, "length", 1, MAX_LENGTH))
        object.__setattr__(self, "optimizer", check_optimizer(self.optimizer))
        object.__setattr__(self, "init", None if self.init is None else as_initializer(self.init))


@dataclasses.dataclass(frozen=True)
class NamedTable(Table):
    """A table among those of a server, as `Tables` gives it.

    Attributes
    ----------
    name : str
    first : int
        The key of its row 0.
    num_rows, length, init, optimizer
        As of `Table`.
    """

    name: str = ""
    first: int = 0

    @property
    def end(self) -> int:
        """The key behind that of the last row."""
        return self.first + self.num_rows

    def keys(self, ids: Any = None) -> np.ndarray:
        """The keys of rows.

        Parameters
        ----------
        ids : int or array_like of int, optional
            Numbers of rows, an array or a tensor of any integer dtype and shape; by default all of the table.

        Returns
        -------
        numpy.ndarray of int64
            Of the shape of `ids`.

        Raises
        ------
        IndexError
            When a number is outside 0 .. num_rows - 1: it names the table and the number.
        TypeError
            When they are not integers.
        """
        if ids is None:
            return np.arange(self.first, self.end)
        given = np.asarray(ids.detach() if hasattr(ids, "detach") else ids)
        if given.dtype.kind not in "iu" and (given.size or given.dtype.kind == "b"):
            raise TypeError(f"ids of table {self.name!r} must be integers, not {given.dtype}")
        if given.size and (given.min() < 0 or given.max() >= self.num_rows):
            bad = given[(given < 0) | (given >= self.num_rows)].flat[0]
            raise IndexError(f"id {bad} is outside the range 0 .. {self.num_rows - 1} of table {self.name!r}")
        return given.astype(np.int64, copy=False) + self.first

    def ids(self, keys: Any) -> np.ndarray:
        """The numbers of the rows that have these keys: the inverse of `keys`.

        Raises
        ------
        IndexError
            When a key is not one of this table.
        """
        given = np.asarray(keys, dtype=np.int64)
        if given.size and (given.min() < self.first or given.max() >= self.end):
            bad = given[(given < self.first) | (given >= self.end)].flat[0]
            raise IndexError(f"key {bad} is outside the range {self.first} .. {self.end - 1} of table {self.name!r}")
        return given - self.first


class Tables(Mapping[str, NamedTable]):
    """The tables of a server, in place of its `num_keys` and `value_lengths`: a mapping from names.

    Parameters
    ----------
    tables : dict of str to Table, optional
        For names that are no identifiers.
    **named : Table
        In this order they get the keys from 0 on.

    Raises
    ------
    TypeError, ValueError
        When there is none, or something else than a `Table`; when a name is empty, or given twice; when they have more
        rows together than there may be keys.

    Examples
    --------
    >>> tables = lapse.Tables(users=lapse.Table(1000, 8), items=lapse.Table(500, 8))
    >>> tables["items"].keys([0, 7])
    array([1000, 1007])
    """

    def __init__(self, tables: Mapping[str, Table] | None = None, /, **named: Table) -> None:
        if tables is not None and not isinstance(tables, Mapping):
            raise TypeError(f"tables must be a dict of names and tables, not {brief(tables)}")
        given = [*(tables or {}).items(), *named.items()]
        self._tables: dict[str, NamedTable] = {}
        first = 0
        for name, table in given:
            if not isinstance(name, str) or not name:
                raise TypeError(f"the name of a table must be a string that is not empty, not {brief(name)}")
            if not isinstance(table, Table):
                raise TypeError(f"table {name!r} must be a lapse.Table, not {brief(table)}")
            if name in self._tables:
                raise ValueError(f"table {name!r} is given twice")
            self._tables[name] = NamedTable(
                table.num_rows, table.length, table.init, table.optimizer, name=name, first=first
            )
            first += table.num_rows
        if not self._tables:
            raise ValueError("there is no table: give at least one, as in lapse.Tables(users=lapse.Table(1000, 8))")
        if first > MAX_ROWS:
            raise ValueError(f"the tables have {first} rows, but at most {MAX_ROWS} are supported")

    def __getitem__(self, name: str) -> NamedTable:
        try:
            return self._tables[name]
        except KeyError:
            raise KeyError(f"there is no table {name!r}: there are {', '.join(map(repr, self._tables))}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __repr__(self) -> str:
        return f"Tables({', '.join(f'{name}={t.num_rows} x {t.length}' for name, t in self._tables.items())})"

    @property
    def num_keys(self) -> int:
        """The rows of all tables."""
        return sum(table.num_rows for table in self.values())

    @property
    def value_lengths(self) -> int | np.ndarray:
        """Elements per value: one number if all tables agree, else an array of shape (num_keys,)."""
        lengths = [table.length for table in self.values()]
        if len(set(lengths)) == 1:
            return lengths[0]
        return np.repeat(np.array(lengths, dtype=np.int32), [table.num_rows for table in self.values()])

    @property
    def optimizers(self) -> list[tuple[int, Optimizer | None]]:
        """For each table the key behind its last one, and its optimizer."""
        return [(table.end, table.optimizer) for table in self.values()]

    def shapes(self) -> dict[str, list[int]]:
        """Rows and length of each, by name."""
        return {name: [table.num_rows, table.length] for name, table in self.items()}

    def table_of(self, key: int) -> NamedTable:
        """The table that has this key."""
        return next(table for table in self.values() if key < table.end)


class RowsOf:
    """The initializer of a table, for keys."""

    def __init__(self, table: NamedTable) -> None:
        self.table = table

    def values(self, keys: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Values of shape (len(keys), length)."""
        init: Initializer = self.table.init
        return init.values(keys - self.table.first, length, seed_of(seed, self.table.name))


def seed_of(seed: int, name: str) -> int:
    """The seed of a table's initial values: two tables with the same initializer do not begin alike."""
    return int.from_bytes(sha256(f"{seed} {name}".encode()).digest()[:7], "little")
