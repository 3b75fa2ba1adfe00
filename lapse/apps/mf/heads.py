"""The head of a file of ratings: its format, and which of its columns are user, item and rating."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from lapse.apps._shared import columns, inputs

#: Separators that are looked for in the first line, in this order; otherwise white space.
SEPARATORS = (b"\t", b"::", b",", b";", b"|")
BANNER = b"%%matrixmarket"
MAX_INDEX = 2**31 - 1  # row and column numbers are int32
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: Lines after the first one that tell what columns contain, and the bytes that they may take.
PROBED, PROBED_BYTES = 500, 1 << 18
#: A number of at least this is a time in seconds (since 1973), not a rating.
TIME = 1e8

ROLES = ("user", "item", "rating")
#: What headers call the columns, by `columns.match`.
NAMES: dict[str, frozenset[str]] = {
    "user": columns.names("user userid uid u reviewerid customerid customer row member memberid"),
    "item": columns.names(
        "item itemid iid i movie movieid mid film product productid asin book bookid isbn track trackid song songid "
        "artist artistid business businessid parentasin animeid anime column col"
    ),
    "rating": columns.names("rating ratings score stars overall bookrating"),
}
#: If none is called a rating, one of these is taken.
COUNTS = {"rating": columns.names("value plays playcount weight count")}
#: Names of a first column that only numbers the lines.
INDEX = ("", "unnamed: 0", "index", "rownames")


@dataclass(frozen=True)
class Format:
    """The format of a file.

    Attributes
    ----------
    begin
        The offset from which lines may have ratings.
    separator
        The separator of fields; None: white space.
    fields
        The number of fields of the first line with ratings.
    columns
        The positions, from 0, of user, item and rating.
    has_quotes
        Whether fields may be quoted as in CSV.
    shape
        The numbers of rows, columns and entries of a MatrixMarket file; None for other files.
    note
        What was understood, if it is not obvious; "": nothing.
    doubts
        What looks wrong, a line each.
    """

    begin: int
    separator: bytes | None = None
    fields: int = 3
    columns: tuple[int, ...] = (0, 1, 2)
    has_quotes: bool = False
    shape: tuple[int, int, int] | None = None
    note: str = ""
    doubts: tuple[str, ...] = ()

    def split(self, line: bytes) -> list[bytes]:
        """The fields of a line.

        Files with tabs are sometimes edited by hand with an editor that writes spaces instead (as two lines of one copy
        of MovieLens 100k were): a line with another number of fields than the first one is split at white space if that
        gives the same number. Otherwise names may contain spaces.
        """
        if self.has_quotes and b'"' in line:
            return _split_quoted(line, self.separator)
        line = line.rstrip(b"\r\n")
        fields = line.split(self.separator)
        if self.separator == b"\t" and len(fields) != self.fields and len(words := line.split()) == self.fields:
            return words
        return fields


class BadLine(Exception):
    """The line at `offset` cannot be read, for this reason."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason


def show(text: bytes) -> str:
    """Bytes of a file for a message, abbreviated."""
    shown = text.strip().decode("utf-8", "backslashreplace")
    return repr(shown if len(shown) <= 60 else shown[:57] + "...")


def expected(line: bytes, problem: str) -> str:
    """The message on a line that is no rating."""
    return f"{show(line)} {problem}: a line must be 'row column rating', or --columns says where they are"


def read(file: IO[bytes], chosen: str | None) -> Format:
    """Determine the format of a file.

    Parameters
    ----------
    chosen
        The value of ``--columns``, if it is given.

    Raises
    ------
    BadLine
        If it cannot be told.
    """
    offset = 0
    for line in file:
        text = line.removeprefix(BYTE_ORDER_MARK) if offset == 0 else line
        if text.strip():
            if markup := inputs.markup_of(text):
                raise BadLine(offset, f"{show(text)} looks like {markup}: write it as lines 'user,item,rating' first")
            if text[: len(BANNER)].lower() == BANNER:
                if chosen is not None:
                    raise BadLine(0, "--columns is for text, but this is a MatrixMarket file: omit it")
                return _read_size(file, text, offset + len(line))
            return _Head(text, offset, offset + len(line), _probe(file)).format(chosen)
        offset += len(line)
    return Format(0)


def _probe(file: IO[bytes]) -> list[bytes]:
    lines: list[bytes] = []
    size = 0
    while len(lines) < PROBED and size < PROBED_BYTES and (line := file.readline(PROBED_BYTES)):
        size += len(line)
        if line.strip() and line.endswith((b"\n", b"\r")):
            lines.append(line)
    return lines


class _Head:
    """The first line and those after it."""

    def __init__(self, line: bytes, offset: int, after: int, probed: list[bytes]) -> None:
        self._line, self._offset, self._after = line, offset, after
        self._separator = next((s for s in SEPARATORS if len(line.split(s)) >= columns.TAKEN), None)
        if self._separator is None:
            self._separator = next((s for s in SEPARATORS if s in line), None)
        self._has_quotes = self._separator in (b",", b";") or (line.startswith(b'"') and self._separator != b"::")
        try:
            self._first = self._split(line)
        except ValueError as error:
            raise BadLine(offset, str(error)) from None
        self._rows = []
        for each in probed:
            with contextlib.suppress(ValueError):  # reported with its line when it is read
                self._rows.append(self._split(each))
        self._header = [field.decode("utf-8", "replace").strip() for field in self._first]
        self._doubts: list[str] = []

    def _split(self, line: bytes) -> list[bytes]:
        return Format(0, self._separator, len(line), has_quotes=self._has_quotes).split(line)

    def format(self, chosen: str | None) -> Format:
        """All of it."""
        shift = self._row_names()
        if chosen is not None:
            taken, is_header = self._chosen(chosen, shift)
            return self._result(taken, is_header, shift, "")
        if len(self._first) + shift < columns.TAKEN:
            raise BadLine(self._offset, expected(self._line, f"has {len(self._first)} fields"))
        found = columns.match(self._header, NAMES)
        found["rating"] = found["rating"] or columns.match(self._header, COUNTS)["rating"]
        all_named = all(len(at) == 1 for at in found.values())
        if not any(is_number(field) for field in self._first):
            taken, note = self._by_header(found, shift)
            return self._result(taken, True, shift, note)
        if all_named and not is_number(self._first[found["rating"][0]]):
            taken, note = self._by_header(found, shift)
            return self._result(taken, True, shift, note)
        self._doubt_order()
        return self._result((0, 1, 2), False, 0, "")

    def _row_names(self) -> int:
        """1 if lines have a name that the header has not, as R writes them."""
        longer = len(self._first) + 1
        if not self._rows or any(is_number(field) for field in self._first):
            return 0
        return int(all(len(row) == longer and row[-1].strip() for row in self._rows[:20]))

    def _chosen(self, chosen: str, shift: int) -> tuple[tuple[int, ...], bool]:
        width = len(self._first) + shift
        header = [""] * shift + self._header
        try:
            if not columns.are_numbers(chosen):
                return columns.choose(chosen, header, width), True
            taken = columns.choose(chosen, None, width)
        except ValueError as error:
            raise BadLine(self._offset, str(error)) from None
        rating = taken[ROLES.index("rating")] - shift
        return taken, not is_number(self._first[max(rating, 0)]) and not self._is_odd(taken)

    def _is_odd(self, taken: Sequence[int]) -> bool:
        """Whether a first line without a rating has other numbers: then it is a bad line, not a header."""
        return any(is_number(self._first[at]) for at in taken if at < len(self._first))

    def _by_header(self, found: dict[str, list[int]], shift: int) -> tuple[tuple[int, ...], str]:
        names = [""] * shift + self._header
        if all(len(at) == 1 for at in found.values()):
            taken = tuple(found[role][0] + shift for role in ROLES)
            return taken, "" if taken == (0, 1, 2) else columns.describe(taken, ROLES, names)
        first = int(shift == 0 and len(names) > columns.TAKEN and names[0].lower() in INDEX) + shift
        usual = tuple(range(first, first + columns.TAKEN))
        fits = all(not at or at == [usual[i] - shift] for i, at in enumerate(found.values()))
        if not fits or len(names) < first + columns.TAKEN:
            raise BadLine(
                self._offset,
                f"cannot tell which of the columns {', '.join(map(repr, names))} are user, item and rating: say it by "
                "--columns USER,ITEM,RATING (names or numbers from 1)",
            )
        note = columns.describe(usual, ROLES, names)
        if len(names) > first + columns.TAKEN:
            self._doubts.append(f"taken are {note}; if these are others, say so by --columns")
            note = ""
        return usual, note

    def _doubt_order(self) -> None:
        """Add what looks wrong about the first columns of a file without a header."""
        width, rows = len(self._first), [self._first, *self._rows]
        numbers = [[_number(row[at]) for row in rows if len(row) > at] for at in range(min(width, 4))]
        if self._first == [b"0", b"1", b"2", b"3"][:width]:
            self._doubts.append("the first line is 0, 1, 2: if it numbers the columns, remove it")
        if width > columns.TAKEN and len(rows) > 9 and _counts(numbers[0]):
            self._doubts.append("the first column numbers the lines: if it is no user, use --columns 2,3,4")
        elif width > columns.TAKEN + 1 or (width > columns.TAKEN and not all(x >= TIME for x in numbers[3])):
            self._doubts.append(
                f"there is no header, and columns 1, 2 and 3 of {width} are taken for user, item and rating; if these "
                "are others, say so by --columns"
            )
        users, ratings = len(set(numbers[0])), len(set(numbers[2]))
        if users <= 20 < ratings / 2 and all(x.is_integer() and x < TIME for x in numbers[2]):
            self._doubts.append(
                f"column 3 has {ratings} different integers in the first lines, and column 1 only {users} values: if "
                "the order is another one than user, item, rating, say so by --columns"
            )

    def _result(self, taken: tuple[int, ...], is_header: bool, shift: int, note: str) -> Format:
        rows = self._rows if is_header else [self._first, *self._rows]
        ratings = [_number(row[taken[2]]) for row in rows if len(row) > taken[2]]
        if ratings and all(x >= TIME for x in ratings):
            self._doubts.append("ratings look like times: if they are in another column, say so by --columns")
        return Format(
            self._after if is_header else self._offset,
            self._separator,
            len(self._first) + shift,
            taken,
            self._has_quotes,
            note=note,
            doubts=tuple(self._doubts),
        )


def _split_quoted(line: bytes, separator: bytes | None) -> list[bytes]:
    text = line.rstrip(b"\r\n").decode("latin-1")
    delimiter = " " if separator is None else separator.decode()[:1]
    try:
        row = next(csv.reader([text], delimiter=delimiter, skipinitialspace=separator is None), [])
    except csv.Error as error:
        raise ValueError(f"{show(line)} is not a line of CSV: {error}") from None
    return [field.encode("latin-1") for field in row]


def is_number(text: bytes) -> bool:
    """Whether a field is a number."""
    return not math.isnan(_number(text))


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _counts(numbers: list[float]) -> bool:
    """Whether each number is one more than that before it, from 0 or 1 on."""
    return numbers[0] in (0, 1) and all(x == numbers[0] + i for i, x in enumerate(numbers))


# --- MatrixMarket -----------------------------------------------------------------------------------


def _read_size(file: IO[bytes], banner: bytes, offset: int) -> Format:
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
        rows, width, entries = map(int, line.split())
    except ValueError:
        raise BadLine(offset, f"{show(line)} is not a size line 'rows columns entries'") from None
    if not (0 <= rows <= MAX_INDEX and 0 <= width <= MAX_INDEX and entries >= 0):
        raise BadLine(
            offset,
            f"a matrix of {rows} x {width} with {entries} entries: the numbers of rows and "
            f"columns must be at most {MAX_INDEX:,}",
        )
    return rows, width, entries
