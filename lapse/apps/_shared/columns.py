"""Which columns of a file are taken: by ``--columns``, by the names in a header, or by their order."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: How many columns the applications need.
TAKEN = 3


@dataclass(frozen=True)
class ColumnsType:
    """A type for `argparse`: three columns between commas, each by its number from 1 or its name in the header."""

    expected: str  # such as "user,item,rating"
    metavar: str = "A,B,C"

    def __call__(self, text: str) -> str:
        chosen = split(text)
        if len(chosen) != TAKEN or not all(chosen) or len(set(chosen)) != TAKEN:
            raise argparse.ArgumentTypeError(
                f"{text!r} does not name three columns: it must be {self.expected}, each by its number from 1 or its "
                "name in the header"
            )
        return text


def names(text: str) -> frozenset[str]:
    """Names of columns, for `match`."""
    return frozenset(text.split())


def split(chosen: str) -> list[str]:
    """The three columns that ``--columns`` names."""
    return [name.strip() for name in chosen.split(",")]


def are_numbers(chosen: str) -> bool:
    """Whether ``--columns`` needs no header."""
    return all(_is_number(name) for name in split(chosen))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def choose(chosen: str, header: Sequence[str] | None, width: int) -> tuple[int, ...]:
    """The positions, from 0, of the columns that ``--columns`` names.

    Parameters
    ----------
    header
        The names in the first line, None if it is none; names are compared exactly, then without case.
    width
        The number of columns.

    Raises
    ------
    ValueError
        For a column that does not exist; the message names those that do.
    """
    positions = tuple(_position(name, header, width) for name in split(chosen))
    if len(set(positions)) != TAKEN:
        raise ValueError(f"--columns {chosen} names a column twice")
    return positions


def _position(name: str, header: Sequence[str] | None, width: int) -> int:
    known = [] if header is None else [each.strip() for each in header]
    if name in known:
        return known.index(name)
    lower = [each.lower() for each in known]
    if lower.count(name.lower()) == 1:
        return lower.index(name.lower())
    if _is_number(name) and len(name) < 10 and 1 <= int(name) <= width:
        return int(name) - 1
    there = f"the header names {', '.join(map(repr, known))}" if header is not None else "there is no header"
    raise ValueError(f"--columns: no column {name!r}: {there}, and columns have the numbers from 1 to {width}")


def match(header: Sequence[str], roles: Mapping[str, frozenset[str]]) -> dict[str, list[int]]:
    """For each role the positions of the columns whose names say that they have it.

    Names are compared by their letters and digits, in lower case: ``userId``, ``user_id`` and ``user_id:token`` are the
    same.
    """
    words = [re.sub(r"[^a-z0-9]", "", name.partition(":")[0].lower()) for name in header]
    return {role: [at for at, word in enumerate(words) if word in known] for role, known in roles.items()}


def describe(positions: Sequence[int], roles: Sequence[str], header: Sequence[str] | None) -> str:
    """Which columns are taken, for a message."""
    if header is None:
        return ", ".join(f"{role}: column {at + 1}" for role, at in zip(roles, positions))
    return ", ".join(f"{role}: {header[at].strip()!r} (column {at + 1})" for role, at in zip(roles, positions))
