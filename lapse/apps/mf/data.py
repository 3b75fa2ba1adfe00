"""Files of ratings: lines ``row column rating`` as text, csv or tsv, or MatrixMarket; also compressed by gzip.

Each rank reads its share of the lines. A plain file is read from the middle; a compressed one is decompressed by every
rank, but only the rank's own lines are parsed. A rating is identified by the offset of its line in the (decompressed)
text, so that what is decided by it, such as what is held out, does not depend on the number of ranks.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from lapse.apps._shared.files import is_gzip
from lapse.apps._shared.job import AppError

#: The ranks take turns in pieces of a compressed file of so many bytes.
PIECE = 1 << 20
#: Separators that are searched for in the first line, in this order; otherwise white space.
SEPARATORS = (b"\t", b"::", b",", b";")
BANNER = b"%%matrixmarket"
MAX_INDEX = 2**31 - 1  # row and column numbers are int32
MAX_VALUE = float(np.finfo(np.float32).max)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
    """

    name: str
    content: bytes | None = None

    @property
    def is_compressed(self) -> bool:
        """Whether the file is a gzip file, whatever its name."""
        return self.content is None and is_gzip(self.name)

    @property
    def size(self) -> int:
        """The number of bytes."""
        return os.path.getsize(self.name) if self.content is None else len(self.content)

    def open(self) -> io.BufferedIOBase:
        """A file of bytes, decompressed."""
        if self.content is not None:
            return io.BytesIO(self.content)
        return gzip.open(self.name, "rb") if self.is_compressed else open(self.name, "rb")


@dataclass(frozen=True)
class Format:
    """The format of a file, from its head.

    Attributes
    ----------
    begin
        The offset from which lines may have ratings.
    separator
        The separator of fields; None: white space.
    fields
        The number of fields of the first line.
    shape
        The numbers of rows, columns and entries of a MatrixMarket file; None for other files.
    """

    begin: int
    separator: bytes | None = None
    fields: int = 3
    shape: tuple[int, int, int] | None = None


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
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    identities: np.ndarray
    row_ids: list[str] | None = None
    column_ids: list[str] | None = None
    shape: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.values)


class BadLine(Exception):
    """The line at `offset` cannot be read, for this reason."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason


def read_share(source: Source, index: int = 0, count: int = 1) -> Share:
    """Read part `index` of `count` of a file; each rating is in one part.

    Raises
    ------
    RatingsError
        With the file, the line if there is one, and what is expected.
    """
    try:
        form = read_format(source)
        parse = _parse_named if form.shape is None else _parse_matrix_market
        return parse(_share_of_lines(source, form.begin, index, count), form)
    except BadLine as bad:
        raise RatingsError(f"{source.name}:{line_number(source, bad.offset)}: {bad.reason}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RatingsError(f"{source.name}: cannot be decompressed as gzip: {error}") from None


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


# --- the head of a file ----------------------------------------------------------------------------


def read_format(source: Source) -> Format:
    """Determine the format of a file."""
    with source.open() as file:
        offset = 0
        for line in file:
            text = line.removeprefix(BYTE_ORDER_MARK) if offset == 0 else line
            if text.strip():
                if text[: len(BANNER)].lower() == BANNER:
                    return _read_size(file, text, offset + len(line))
                return _guess(text, offset, offset + len(line))
            offset += len(line)
    return Format(0)


def _guess(line: bytes, offset: int, after: int) -> Format:
    """Determine separator and start by the first line, which may be a header: one without a number."""
    separator = next((s for s in SEPARATORS if s in line), None)
    fields = _split(line, separator)
    if len(fields) < 3:
        raise BadLine(offset, _expected(line, f"has {len(fields)} fields"))
    is_header = not any(_is_number(text) for text in fields)
    return Format(after if is_header else offset, separator, len(fields))


def _read_size(file, banner: bytes, offset: int) -> Format:
    """The banner and the size line of MatrixMarket (Boisvert, Pozo, Remington 1996)."""
    words = banner.decode("latin-1").lower().split()[1:]
    if (
        words[:2] != ["matrix", "coordinate"]
        or words[2:3] not in (["real"], ["double"], ["integer"])
        or words[3:] != ["general"]
    ):
        raise BadLine(
            0,
            f"'{' '.join(words)}' is not a supported kind of MatrixMarket file: must be 'matrix "
            f"coordinate real general' (or integer)",
        )
    for line in file:
        if line.strip() and not line.startswith(b"%"):
            return Format(offset + len(line), shape=_parse_size(line, offset))
        offset += len(line)
    raise BadLine(offset, "the file ends before the size line 'rows columns entries'")


def _parse_size(line: bytes, offset: int) -> tuple[int, int, int]:
    try:
        rows, columns, entries = map(int, line.split())
    except ValueError:
        raise BadLine(offset, f"{_show(line)} is not a size line 'rows columns entries'") from None
    if not (0 <= rows <= MAX_INDEX and 0 <= columns <= MAX_INDEX and entries >= 0):
        raise BadLine(
            offset,
            f"a matrix of {rows} x {columns} with {entries} entries: the numbers of rows and "
            f"columns must be at most {MAX_INDEX:,}",
        )
    return rows, columns, entries


# --- lines -----------------------------------------------------------------------------------------


def _share_of_lines(source: Source, begin: int, index: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Offsets and lines of one part of `count`, from offset `begin` on."""
    cut = _alternating_lines if source.is_compressed else _adjacent_lines
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


def _split(line: bytes, separator: bytes | None) -> list[bytes]:
    line = line.rstrip(b"\r\n")
    if separator in (b",", b";") and b'"' in line:
        row = next(csv.reader([line.decode("latin-1")], delimiter=separator.decode()))
        return [text.encode("latin-1") for text in row]
    return line.split(separator)


def _fields(line: bytes, form: Format) -> list[bytes]:
    """The fields of a line.

    Files with tabs are sometimes edited by hand with an editor that writes spaces instead (as two lines of one copy of
    MovieLens 100k were): a line with another number of fields than the first one is split at white space if that gives
    the same number. Otherwise names may contain spaces.
    """
    fields = _split(line, form.separator)
    if form.separator == b"\t" and len(fields) != form.fields and len(words := line.split()) == form.fields:
        return words
    return fields


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
    """Numbers names in the order of their first occurrence."""

    def __missing__(self, name: bytes) -> int:
        text = name.strip()
        if not text:
            raise ValueError("an empty name")
        text.decode()
        self[name] = len(self)
        return self[name]

    def texts(self) -> list[str]:
        return [name.decode() for name in self]


def _parse_named(lines: Iterator[tuple[int, bytes]], form: Format) -> Share:
    rows, columns, found = _Names(), _Names(), _Columns()
    for offset, line in lines:
        fields = _fields(line.removeprefix(BYTE_ORDER_MARK) if offset == 0 else line, form)
        if len(fields) < 3:
            if not line.strip():
                continue
            raise BadLine(offset, _expected(line, f"has {len(fields)} fields"))
        value = _value(fields[2], line, offset)
        try:
            found.add(rows[fields[0].strip()], columns[fields[1].strip()], value, offset)
        except UnicodeDecodeError:
            raise BadLine(offset, f"{_show(line)} has a name that is not UTF-8") from None
        except ValueError:
            raise BadLine(offset, _expected(line, "has an empty name")) from None
    return found.share(row_ids=rows.texts(), column_ids=columns.texts())


def _parse_matrix_market(lines: Iterator[tuple[int, bytes]], form: Format) -> Share:
    assert form.shape is not None
    num_rows, num_columns, _ = form.shape
    found = _Columns()
    for offset, line in lines:
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3:
            raise BadLine(offset, f"{_show(line)} is not an entry 'row column value'")
        row, column = (_index(text, most, line, offset) for text, most in zip(fields, (num_rows, num_columns)))
        found.add(row, column, _value(fields[2], line, offset), offset)
    return found.share(shape=(num_rows, num_columns))


def _index(text: bytes, most: int, line: bytes, offset: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        raise BadLine(offset, f"{_show(line)} has the index {_show(text)}, which must be from 1 to {most:,}")
    return number - 1


def _value(text: bytes, line: bytes, offset: int) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadLine(offset, _expected(line, f"has the rating {_show(text)}, which is not a number")) from None
    if not abs(value) <= MAX_VALUE:  # NaN too
        raise BadLine(
            offset, f"{_show(line)} has the rating {_show(text)}, which must be finite and at most {MAX_VALUE:.3g}"
        )
    return value


def _is_number(text: bytes) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _expected(line: bytes, problem: str) -> str:
    return f"{_show(line)} {problem}: a line must be 'row column rating'; further fields are ignored"


def _show(text: bytes) -> str:
    """Bytes of a file for a message, abbreviated."""
    shown = text.strip().decode("utf-8", "backslashreplace")
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")
