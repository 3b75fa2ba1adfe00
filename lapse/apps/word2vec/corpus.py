"""A streaming reader that divides a corpus into shares of sentences.

A corpus is a file with one sentence per line and words separated by white space, plain or compressed (`inputs`). It is
never held in memory as text. Each worker reads its own share, the same one every time:

* a plain file is divided by bytes into as many ranges as there are workers, moved to the next end of a line (in a line
  that is longer than `LINE_SEARCH`, to the next space: some corpora are a single line);
* a compressed file, or one of another encoding, cannot be read from the middle: every worker reads all of it and takes
  every n-th line.
"""

from __future__ import annotations

import io
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from lapse.apps._shared import inputs
from lapse.apps._shared.inputs import Input
from lapse.apps.word2vec._encoder import Encoder

#: Longer sentences are split into pieces of this many words (none is dropped).
MAX_SENTENCE = 10_000
#: Longer lines are read in pieces of at most this many bytes, to bound the memory.
MAX_PIECE = 1 << 20
#: How many bytes after the boundary of two shares an end of line is searched for.
LINE_SEARCH = 1 << 18
#: Encoded words of a share that are kept in memory (4 bytes each); a larger share is read again in each epoch.
MAX_KEPT_WORDS = 1 << 26
#: The maximum number of lines with bytes that are not UTF-8 whose numbers are reported.
MAX_REPORTED = 10

_BYTE_ORDER_MARK = "\ufeff"


@dataclass
class Survey:
    """The result of one pass over a share.

    Attributes
    ----------
    counts
        The number of occurrences of each word.
    words, lines
        The numbers of words, and of line ends in this share (if it is a range: the first line number of the next one).
    bad_lines
        The number of lines with bytes that are not UTF-8.
    first_bad
        The first of them, numbered from 0 within the share.
    """

    counts: Counter = field(default_factory=Counter)
    words: int = 0
    lines: int = 0
    bad_lines: int = 0
    first_bad: list[int] = field(default_factory=list)

    def note_bad(self, line: int) -> None:
        """Record that line number `line` of the share has bytes that are not UTF-8."""
        if self.first_bad and self.first_bad[-1] == line:
            return  # another piece of the same long line
        self.bad_lines += 1
        if len(self.first_bad) < MAX_REPORTED:
            self.first_bad.append(line)


class Share:
    """The part of a corpus that one of several workers reads.

    Parameters
    ----------
    source
        The file, recognized or not.
    index, count
        The number of this worker, and of all workers.
    bytes_wanted
        Of a plain file: where its part would begin and end, if lines could be cut (default: by `index` and `count`).
    """

    def __init__(
        self,
        source: Input | str | os.PathLike,
        index: int = 0,
        count: int = 1,
        bytes_wanted: tuple[int, int] | None = None,
    ) -> None:
        if not 0 <= index < count:
            raise ValueError(f"share {index} of {count} does not exist")
        self.source = source if isinstance(source, Input) else inputs.recognize(source)
        self.index = index
        self.count = count
        size = self.source.size
        self._bytes_wanted = bytes_wanted or (size * index // count, size * (index + 1) // count)

    def sentences(self, survey: Survey | None = None) -> Iterator[list[str]]:
        """Yield the sentences of this share, as lists of words, without empty lines.

        Parameters
        ----------
        survey
            If given, it is filled, except for ``counts``.
        """
        for line, chunk in self._chunks(survey):
            yield from _sentences(line, chunk, survey)

    def feed(self, encoder: Encoder, survey: Survey | None = None) -> Iterator[None]:
        """Pass the sentences of this share to an encoder; yields at least once per `MAX_PIECE` bytes.

        Parameters
        ----------
        survey
            If given, it is filled, except for ``counts``.
        """
        words = encoder.total
        for line, chunk in self._chunks(survey):
            if chunk.isascii():
                encoder.add_text(chunk, MAX_SENTENCE)
            else:
                for sentence in _sentences(line, chunk, survey):
                    encoder.add_sentence(sentence)
            yield
        if survey is not None:
            survey.words = encoder.total - words

    def survey(self, encoder: Encoder | None = None) -> Survey:
        """Count words and lines of this share in one pass; a new `encoder` may keep its words."""
        found, encoder = Survey(), Encoder() if encoder is None else encoder
        for _ in self.feed(encoder, found):
            if encoder.collected > MAX_KEPT_WORDS:
                encoder.forget()
        found.counts = Counter(dict(zip(encoder.words(), encoder.counts().tolist(), strict=True)))
        return found

    def _chunks(self, survey: Survey | None) -> Iterator[tuple[int, bytes]]:
        """Lines, or pieces of a long line, and the number of the first of them."""
        if self.source.is_direct:
            return self._ranged_chunks(survey)
        return self._striped_lines(survey)

    def _ranged_chunks(self, survey: Survey | None) -> Iterator[tuple[int, bytes]]:
        with self.source.open() as file:
            size = file.seek(0, os.SEEK_END)
            if size != self.source.size:  # shares would overlap, or leave something out
                raise inputs.InputError(
                    f"{self.source.name} has {size:,} bytes, but had {self.source.size:,} before: it must not change "
                    "while it is read"
                )
            start, end = (_cut(file, size, wanted) for wanted in self._bytes_wanted)
            file.seek(start)
            line = 0
            for chunk in _read_chunks(file, end - start):
                yield line, chunk
                line += chunk.count(b"\n")
                if survey is not None:
                    survey.lines = line

    def _striped_lines(self, survey: Survey | None) -> Iterator[tuple[int, bytes]]:
        line = number = 0
        try:
            with self.source.open() as file:
                for chunk in _read_chunks(file, None):
                    for piece in io.BytesIO(chunk):
                        if number % self.count == self.index:
                            yield line, piece
                            if survey is not None:
                                survey.lines += piece.endswith(b"\n")
                        number += 1
                        line += piece.endswith(b"\n")
        except inputs.DamagedError as error:
            raise inputs.DamagedError(f"{error} (after line {line:,})") from None


def _cut(file: IO[bytes], size: int, wanted: int) -> int:
    """Where a share begins that would begin at `wanted`: it depends on the file alone, so that neighbors agree."""
    if wanted in (0, size):
        return wanted
    file.seek(wanted - 1)  # a boundary at the start of a line stays there
    text = file.read(LINE_SEARCH)
    end = text.find(b"\n")
    if end < 0 and len(text) < LINE_SEARCH:
        return size  # within the last line, which has no end
    if end < 0:
        end = _first_space(text)
    return wanted + end if end >= 0 else wanted - 1 + len(text)


def _first_space(text: bytes) -> int:
    found = [at for at in (text.find(space) for space in (b" ", b"\t", b"\r")) if at >= 0]
    return min(found, default=-1)


def _read_chunks(file, length: int | None) -> Iterator[bytes]:
    """The next `length` bytes (None: all) as whole lines, or pieces of a line that is too long, split at a space."""
    left = sys.maxsize if length is None else length
    rest = b""
    while left > 0 and (read := file.read(min(MAX_PIECE - len(rest), left))):
        left -= len(read)
        chunk, rest = _split_chunk(rest + read)
        if chunk:
            yield chunk
    if rest:
        yield rest


def _split_chunk(text: bytes) -> tuple[bytes, bytes]:
    """The complete lines, and the beginning of the next one."""
    end = text.rfind(b"\n") + 1
    return (text[:end], text[end:]) if end else _split_piece(text)


def _sentences(first: int, chunk: bytes, survey: Survey | None) -> Iterator[list[str]]:
    """The sentences of a chunk that begins with line number `first`."""
    for line, piece in enumerate(io.BytesIO(chunk), first):
        words = _decode(piece, line, survey).split()
        for start in range(0, len(words), MAX_SENTENCE):
            yield words[start : start + MAX_SENTENCE]


def _split_piece(text: bytes) -> tuple[bytes, bytes]:
    """The complete words, and the beginning of the next one."""
    if len(text) < MAX_PIECE:
        return b"", text
    at = max(text.rfind(b" "), text.rfind(b"\t"), text.rfind(b"\r")) + 1
    if at == 0:  # a single word of a megabyte; at least no character is split
        at = len(text) - 1
        while at > 1 and text[at] & 0xC0 == 0x80:
            at -= 1
    return text[:at], text[at:]


def _decode(piece: bytes, line: int, survey: Survey | None) -> str:
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        text = piece.decode("utf-8", errors="replace")
        if survey is not None:
            survey.note_bad(line)
    return text.removeprefix(_BYTE_ORDER_MARK) if line == 0 else text


def describe_bad_lines(path: str, surveys: list[Survey], from_file_start: bool) -> list[str]:
    """Messages about bytes that are not UTF-8: the numbers of the first lines, then the total.

    Parameters
    ----------
    surveys
        Those of all shares, in order (their ``counts`` are not used).
    from_file_start
        Whether they number lines from the start of the file, as those of a compressed one do.
    """
    numbers, first = [], 1
    for survey in surveys:
        numbers += [first + line for line in survey.first_bad]
        if not from_file_start:
            first += survey.lines
    total = sum(survey.bad_lines for survey in surveys)
    shown = sorted(set(numbers))[:MAX_REPORTED]
    messages = [f"{path}:{line}: bytes that are not UTF-8 were replaced" for line in shown]
    if total:
        messages.append(f"{path}: {total} line(s) in total with bytes that are not UTF-8")
    return messages
