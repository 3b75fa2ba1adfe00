"""The names of a model's rows, in a file of lines that is mapped: a million names take 8 MB of memory.

A name is read when it is asked for, and found by searching the file, so that no dictionary is needed. Lines end in LF
alone; a name may have any other character.
"""

from __future__ import annotations

import difflib
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lapse.apps._shared.job import AppError

#: Bytes that are looked at at once for the ends of lines.
BLOCK = 1 << 22
#: More names than these are found in one pass over the lines, fewer by one search each.
FEW = 16
#: The most names that are compared with an unknown one, how much their lengths differ, and how alike they must be.
COMPARED, LENGTHS, ALIKE = 50_000, 2, 0.7

#: A name, or its number from 0.
Name = str | int


class UnknownNameError(AppError, LookupError):
    """A name that the model does not have; the message suggests others."""


class Names(Sequence[str]):
    """The names in a file, one per line.

    Parameters
    ----------
    path
        The file.
    kind
        What a name names, for messages.
    before, after
        What precedes the name in its line: all until the first `before`; and what follows it: all from the last
        `after` on. Empty: nothing.

    Raises
    ------
    AppError
        For a line without `before` or `after`, with file and line: when it is read.
    """

    def __init__(self, path: Path, kind: str = "name", before: bytes = b"", after: bytes = b"") -> None:
        self.path, self.kind = path, kind
        self._before, self._after = before, after
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self._ends = self._line_ends()

    def _line_ends(self) -> np.ndarray:
        """Where lines end, in bytes."""
        data = np.frombuffer(self._data, np.uint8)
        found = [np.flatnonzero(data[at : at + BLOCK] == ord("\n")) + at for at in range(0, len(data), BLOCK)]
        if len(data) and data[-1] != ord("\n"):
            found.append(np.array([len(data)]))
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):  # int: str; slice: list of str
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(f"{self.kind} {index} of {len(self):,}")
        return _decode(self._raw(place))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._search(_encode(name)) is not None

    def index(self, name: str, start: int = 0, stop: int | None = None) -> int:
        """The number of a name, from 0.

        Raises
        ------
        UnknownNameError
            With names that are alike.
        """
        found = self._search(_encode(name))
        if found is None:
            raise self.unknown(name)
        return found

    def find(self, names: Iterable[str]) -> np.ndarray:
        """The numbers of names, -1 for unknown ones; int64."""
        wanted = [_encode(name) for name in names]
        if len(wanted) <= FEW:
            found = [self._search(name) for name in wanted]
            return np.array([-1 if place is None else place for place in found], np.int64)
        places = dict.fromkeys(wanted, -1)
        for i in range(len(self) - 1, -1, -1):  # backwards: of equal names the first one counts
            name = self._raw(i)
            if name in places:
                places[name] = i
        return np.array([places[name] for name in wanted], np.int64)

    def unknown(self, name: str) -> UnknownNameError:
        """The error for an unknown name."""
        alike = self.alike(name)
        hint = f"; did you mean {', '.join(map(repr, alike))}?" if alike else ""
        return UnknownNameError(f"the model has no {self.kind} {name[:80]!r}{hint}")

    def alike(self, name: str, most: int = 3) -> list[str]:
        """Names that are like `name`, among the first ones of about its length."""
        lengths = np.diff(self._ends, prepend=-1) - 1
        length = len(_encode(name))
        if self._before or self._after:  # a line has more than the name
            most_else = 12
            near = (lengths >= length - LENGTHS) & (lengths <= length + LENGTHS + most_else)
        else:
            near = np.abs(lengths - length) <= LENGTHS
        some = [self[i] for i in np.flatnonzero(near)[:COMPARED].tolist()]
        same = [other for other in some if other.casefold() == name.casefold()]
        others = difflib.get_close_matches(name, some, most, ALIKE)
        return list(dict.fromkeys(same + others))[:most]

    def _raw(self, place: int) -> bytes:
        begin = int(self._ends[place - 1]) + 1 if place else 0
        line = self._data[begin : int(self._ends[place])]
        name, mark = line, b"-"
        if self._before:
            _, mark, name = line.partition(self._before)
        if self._after and mark:
            name, mark, _ = line.rpartition(self._after)
        if not mark:
            raise AppError(f"{self.path}:{place + 1}: {line[:60]!r} is no line of names")
        return name

    def _search(self, name: bytes) -> int | None:
        """The first line with this name."""
        if b"\n" in name:
            return None
        start, end = self._before or b"\n", self._after or b"\n"
        if not self._before and len(self) and self._raw(0) == name:
            return 0
        needle = start + name + end
        at = self._data.find(needle)
        if at < 0:  # the last line may have no end
            return len(self) - 1 if len(self) and self._raw(len(self) - 1) == name else None
        while at >= 0:
            place = int(np.searchsorted(self._ends, at + len(start)))  # the line of the name's first byte
            if self._raw(place) == name:  # not a part of another line
                return place
            at = self._data.find(needle, at + 1)
        return None


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def numbers_of(names: Names, given: Sequence[Name]) -> np.ndarray:
    """The numbers of names, int64; numbers stay.

    Raises
    ------
    UnknownNameError
        For what is unknown.
    """
    texts = [name for name in given if isinstance(name, str)]
    found = dict(zip(texts, names.find(texts).tolist(), strict=True)) if texts else {}
    result = np.array([found[name] if isinstance(name, str) else name for name in given], np.int64)
    for name, number in zip(given, result.tolist(), strict=True):
        if isinstance(name, str) and number < 0:
            raise names.unknown(name)
        if not 0 <= number < len(names):
            raise UnknownNameError(f"{names.kind} {name}: the model has {len(names):,}, numbered from 0")
    return result


# --- names in a line with tabs between them ------------------------------------------------------------------------

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}


def escape(name: str) -> str:
    r"""A name for a line of fields: a tab, a line end and a backslash in it become ``\t``, ``\n``, ``\r``, ``\\``."""
    return "".join(_ESCAPES.get(letter, letter) for letter in name)


def unescape(text: str) -> str:
    """The name that `escape` made this of; a backslash before another letter stays."""
    parts, at = [], 0
    while (found := text.find("\\", at)) >= 0:
        following = text[found + 1 : found + 2]
        parts.append(text[at:found] + _UNESCAPES.get(following, "\\" + following))
        at = found + 2
    return "".join(parts) + text[at:]


def index_of_field(names: Names, field: str) -> int:
    """The number of the name in a field; without escapes, if only that is known.

    Raises
    ------
    UnknownNameError
        For an unknown one.
    """
    name = unescape(field)
    if name != field and name not in names and field in names:
        name = field
    return names.index(name)
