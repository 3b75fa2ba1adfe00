"""Files of ratings: lines ``row column rating`` as text, csv or tsv, or MatrixMarket; also compressed (`inputs`).

Each rank reads its share of the lines. A plain file is read from the middle; a compressed one is decompressed by every
rank, but only the rank's own lines are parsed. A rating is identified by the offset of its line in the (decompressed)
text, so that what is decided by it, such as what is held out, does not depend on the number of ranks.
"""

from __future__ import annotations

import contextlib
import io
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import IO

import numpy as np

from lapse.apps._shared import inputs
from lapse.apps._shared.inputs import Input
from lapse.apps._shared.job import AppError
from lapse.apps.mf import heads
from lapse.apps.mf.heads import BYTE_ORDER_MARK, BadLine, Format, expected, show

#: The ranks take turns in pieces of a compressed file of so many bytes.
PIECE = 1 << 20
MAX_VALUE = float(np.finfo(np.float32).max)


class RatingsError(AppError):
    """A file that cannot be read as ratings; the message names file and line."""


@dataclass(frozen=True)
class Source:
    """A file, or a named text in memory.

    Attributes
    ----------
    name
        The file; or a name for messages.
    content
        The text; None: that of the file.
    found
        The file, if it is recognized already.
    """

    name: str
    content: bytes | None = None
    found: Input | None = None

    @classmethod
    def of(cls, found: Input) -> Source:
        """A file that is recognized."""
        return cls(found.name, found=found)

    @cached_property
    def file(self) -> Input:
        """The file, recognized."""
        return self.found or inputs.recognize(self.name)

    @property
    def is_direct(self) -> bool:
        """Whether reading can begin in the middle."""
        return self.content is not None or self.file.is_direct

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.file.size if self.content is None else len(self.content)

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """A file of bytes, decompressed; see `Input.open`."""
        if self.content is not None:
            yield io.BytesIO(self.content)
            return
        with self.file.open() as file:
            yield file


@dataclass
class Share:
    """Some ratings.

    Attributes
    ----------
    rows, columns
        int32: indexes into `row_ids` and `column_ids`, or, if these are None, the row and column numbers.
    values
        float32.
    identities
        uint64: they identify ratings.
    row_ids, column_ids
        Distinct names; None for a matrix of known `shape`.
    shape
        The numbers of rows and columns; None if names are collected.
    doubt
        What looks wrong; "": nothing.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    identities: np.ndarray
    row_ids: list[str] | None = None
    column_ids: list[str] | None = None
    shape: tuple[int, int] | None = None
    doubt: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def where(self, chosen: np.ndarray) -> Share:
        """The ratings that a boolean array selects; names stay."""
        some = {name: getattr(self, name)[chosen] for name in ("rows", "columns", "values", "identities")}
        return replace(self, **some)


def read_format(source: Source, chosen: str | None = None) -> Format:
    """Determine the format of a file.

    Parameters
    ----------
    chosen
        The value of ``--columns``, if it is given.

    Raises
    ------
    RatingsError
        With the file, the line if there is one, and what is expected.
    """
    with _naming_lines(source), source.open() as file:
        return heads.read(file, chosen)


def read_share(source: Source, index: int = 0, count: int = 1, form: Format | None = None) -> Share:
    """Read part `index` of `count` of a file; each rating is in one part.

    Parameters
    ----------
    form
        What `read_format` returns; None: determine it here.

    Raises
    ------
    RatingsError
        As `read_format`.
    """
    form = read_format(source) if form is None else form
    parse = _parse_named if form.shape is None else _parse_matrix_market
    with _naming_lines(source):
        return parse(_share_of_lines(source, form.begin, index, count), form)


@contextlib.contextmanager
def _naming_lines(source: Source) -> Iterator[None]:
    try:
        yield
    except BadLine as bad:
        raise RatingsError(f"{source.name}:{line_number(source, bad.offset)}: {bad.reason}") from None


def line_number(source: Source, offset: int) -> int:
    """The number (from 1) of the line at an offset."""
    lines = 1
    with source.open() as file:
        while offset > 0 and (piece := file.read(min(offset, PIECE))):
            lines += piece.count(b"\n")
            offset -= len(piece)
    return lines


def check_entries(source: Source, declared: int, found: int) -> None:
    """Compare the number of entries that a MatrixMarket file declares with that of all its shares."""
    if declared != found:
        raise RatingsError(
            f"{source.name}: {found:,} entries, but the size line declares {declared:,}: is the file complete?"
        )


# --- lines -----------------------------------------------------------------------------------------


def _share_of_lines(source: Source, begin: int, index: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Offsets and lines of one part of `count`, from offset `begin` on."""
    cut = _adjacent_lines if source.is_direct else _alternating_lines
    with source.open() as file:
        yield from cut(file, source, begin, index, count)


def _adjacent_lines(file, source: Source, begin: int, index: int, count: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in the part's range of bytes."""
    length = max(source.size - begin, 0)
    offset, end = (begin + length * i // count for i in (index, index + 1))
    if offset > begin:  # a line that begins in the previous part belongs to it
        file.seek(offset - 1)
        offset += len(file.readline()) - 1
    else:
        file.seek(offset)
    while offset < end and (line := file.readline()):
        yield offset, line
        offset += len(line)


def _alternating_lines(file, source: Source, begin: int, index: int, count: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in every `count`-th piece."""
    offset = 0
    for line in file:
        if offset >= begin and offset // PIECE % count == index:
            yield offset, line
        offset += len(line)


# --- ratings ---------------------------------------------------------------------------------------


@dataclass
class _Columns:
    """Ratings while they are collected, in four arrays that grow."""

    rows: array = field(default_factory=lambda: array("i"))
    columns: array = field(default_factory=lambda: array("i"))
    values: array = field(default_factory=lambda: array("f"))
    offsets: array = field(default_factory=lambda: array("Q"))

    def add(self, row: int, column: int, value: float, offset: int) -> None:
        self.rows.append(row)
        self.columns.append(column)
        self.values.append(value)
        self.offsets.append(offset)

    def share(self, **names) -> Share:
        return Share(
            np.array(self.rows, np.int32),
            np.array(self.columns, np.int32),
            np.array(self.values, np.float32),
            np.array(self.offsets, np.uint64),
            **names,
        )


class _Names(dict):
    """Numbers names in the order of their first occurrence; spaces around them are no part of them."""

    def __init__(self) -> None:
        self._texts: list[bytes] = []
        self._spaced: dict[bytes, int] = {}  # by the name without spaces: those that have had some
        self.doubted: bytes | None = None

    def __missing__(self, name: bytes) -> int:
        text = name.strip()
        if not text:
            raise ValueError("an empty name")
        known = self._spaced.get(text) if name == text else self.get(text, self._spaced.get(text))
        if known is None:
            text.decode()
            known = len(self._texts)
            self._texts.append(text)
        else:
            self.doubted = text
        if name != text:
            self._spaced[text] = known
        self[name] = known
        return known

    def texts(self) -> list[str]:
        return [name.decode() for name in self._texts]


def _parse_named(lines: Iterator[tuple[int, bytes]], form: Format) -> Share:
    rows, columns, found = _Names(), _Names(), _Columns()
    row_at, column_at, value_at = form.columns
    least = max(form.columns) + 1
    for offset, line in lines:
        try:
            fields = form.split(line.removeprefix(BYTE_ORDER_MARK) if offset == 0 else line)
        except ValueError as error:
            raise BadLine(offset, str(error)) from None
        if len(fields) < least:
            if not line.strip():
                continue
            raise BadLine(offset, expected(line, f"has {len(fields)} fields"))
        value = _value(fields[value_at], line, offset)
        try:
            found.add(rows[fields[row_at]], columns[fields[column_at]], value, offset)
        except UnicodeDecodeError:
            raise BadLine(
                offset, f"{show(line)} has a name that is not UTF-8: convert it first (iconv -f LATIN1 -t UTF-8)"
            ) from None
        except ValueError:
            raise BadLine(offset, expected(line, "has an empty name")) from None
    doubted = rows.doubted or columns.doubted
    doubt = f"names that differ by spaces around them are one, such as {show(doubted)}" if doubted else ""
    return found.share(row_ids=rows.texts(), column_ids=columns.texts(), doubt=doubt)


def _parse_matrix_market(lines: Iterator[tuple[int, bytes]], form: Format) -> Share:
    assert form.shape is not None
    num_rows, num_columns, _ = form.shape
    found = _Columns()
    for offset, line in lines:
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3:
            raise BadLine(offset, f"{show(line)} is not an entry 'row column value'")
        row, column = (_index(text, most, line, offset) for text, most in zip(fields, (num_rows, num_columns)))
        found.add(row, column, _value(fields[2], line, offset), offset)
    return found.share(shape=(num_rows, num_columns))


def _index(text: bytes, most: int, line: bytes, offset: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        raise BadLine(offset, f"{show(line)} has the index {show(text)}, which must be from 1 to {most:,}")
    return number - 1


def _value(text: bytes, line: bytes, offset: int) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadLine(offset, expected(line, f"has the rating {show(text)}, which is not a number")) from None
    if not abs(value) <= MAX_VALUE:  # NaN too
        raise BadLine(
            offset, f"{show(line)} has the rating {show(text)}, which must be finite and at most {MAX_VALUE:.3g}"
        )
    return value
