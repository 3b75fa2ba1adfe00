"""Files to read: what a file is, by its content, and its text as UTF-8 with lines that end in LF.

What the standard library can open is opened, whatever its name: gzip, bzip2, xz and lzma, zip with one member; UTF-16
and UTF-32 with a byte order mark; lines that end in CR alone. What is no text is refused by name, with the way out: a
model must not be trained on the bytes of an archive. Nothing that is read here is executed.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import errno
import gzip
import io
import logging
import lzma
import os
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, cast

from lapse.apps._shared.job import AppError, collectively, on_rank_0, on_rank_0_only

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: How much of a file is looked at to recognize it.
HEAD = 1 << 16
#: Bytes that are read, translated or sent at once.
BLOCK = 1 << 20
SENT_AT_ONCE = 1 << 24

#: What compressed files begin with.
_PACKINGS = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"]\0\0", "xz"),  # the older .lzma
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)
#: Longest first: that of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNPACK = "unpack it first ({0} {1})"
_EXPORT = "export it as text"
#: What other files begin with: their kind, and the way out.
_FOREIGN = (
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK.format("zstd -d", "{name}")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK.format("7z x", "{name}")),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK.format("unrar x", "{name}")),
    (b"\x04\x22\x4d\x18", "an lz4 file", _UNPACK.format("lz4 -d", "{name}")),
    (b"\x1f\x9d", "a file of compress (.Z)", _UNPACK.format("gzip -d", "{name}")),
    (b"LZIP", "an lzip file", _UNPACK.format("lzip -d", "{name}")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office file (xls, doc)", _EXPORT),
    (b"%PDF-", "a PDF file", _EXPORT),
    (b"PAR1", "a Parquet file", _EXPORT),
    (b"ARROW1", "an Arrow file", _EXPORT),
    (b"FEA1", "a Feather file", _EXPORT),
    (b"\x89HDF", "an HDF5 file", _EXPORT),
    (b"\x93NUMPY", "an array of NumPy", _EXPORT),
    (b"SQLite format 3\0", "an SQLite database", _EXPORT),
    (b"MATLAB 5.0", "a MATLAB file", _EXPORT),
    (b"\x89PNG", "a PNG picture", "choose another file"),
    (b"\xff\xd8\xff", "a JPEG picture", "choose another file"),
    (b"\x7fELF", "a program", "choose another file"),
    (
        b"version https://git-lfs.github.com/spec/v1",
        "a pointer of Git LFS, not the file itself",
        "fetch it with git lfs pull",
    ),
)
#: What archives made by some programs have besides the file itself.
_BY_THE_WAY = ("__MACOSX/", ".DS_Store", "Thumbs.db")
#: Where each process may find another file under the same name.
_OF_PROCESSES = ("/dev/", "/proc/")
#: The name of standard input on a command line.
STDIN = "-"
#: Files that were read once and are unlinked; open as long as this process lives.
_spooled: list[Any] = []


class InputError(AppError):
    """A file that cannot be read; the message names it and the way out."""


class DamagedError(InputError):
    """A file that can be read up to some place only."""


@dataclass(frozen=True)
class Input:
    """A file to read.

    Attributes
    ----------
    name
        What messages call it.
    path
        What is opened.
    size
        Its bytes on disk.
    packing
        "gzip", "bzip2", "xz", "zip"; "": none.
    member
        The member of a zip file.
    encoding
        "utf-16" or "utf-32"; "": UTF-8, or whatever else agrees with ASCII.
    ends_lines_by_cr
        Whether CR alone ends its lines.
    """

    name: str
    path: str
    size: int
    packing: str = ""
    member: str = ""
    encoding: str = ""
    ends_lines_by_cr: bool = False

    @property
    def is_direct(self) -> bool:
        """Whether the bytes of the file are those of the text, so that reading can begin in the middle."""
        return not (self.packing or self.encoding or self.ends_lines_by_cr)

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The text, as bytes in UTF-8.

        Raises
        ------
        InputError
            From the body, too: for compressed data that are damaged, and for text that is not in its encoding.
        """
        with contextlib.ExitStack() as files:
            files.enter_context(_naming_damage(self.name, self.packing))
            try:
                file = files.enter_context(_unpacked(self.path, self.packing, self.member))
            except (ValueError, LookupError, OSError, struct.error) as error:  # zipfile trusts numbers in the file
                if not self.packing or getattr(error, "errno", errno.EINVAL) not in (None, errno.EINVAL):
                    raise
                raise _damaged(self.name, self.packing, error) from None
            if self.encoding or self.ends_lines_by_cr:
                translated = _Translated(file, self.encoding, self.ends_lines_by_cr)
                file = cast("IO[bytes]", io.BufferedReader(translated, BLOCK))
            yield file


def recognize(path: str | os.PathLike, name: str | None = None) -> Input:
    """Find out what a file is.

    Parameters
    ----------
    name
        What messages call it (default: its path).

    Raises
    ------
    InputError
        For a folder, a device, a pipe, and for content that is no text.
    OSError
        For what cannot be opened.
    """
    path = os.fspath(path)
    name = path if name is None else name
    about = os.stat(path)
    _check_kind(name, about.st_mode)
    with open(path, "rb") as file:
        first = file.read(512)
    packing = _packing_of(first)
    member = _only_member(name, path) if packing == "zip" else ""
    with Input(name, path, about.st_size, packing, member).open() as text:
        head = text.read(HEAD)
    encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if head.startswith(mark)), "")
    if encoding:
        with contextlib.suppress(UnicodeDecodeError):  # cut within a character; or reported with its place later
            head = codecs.getincrementaldecoder(encoding)().decode(head).encode()
    _check_text(name, head, packing)
    by_cr = b"\r" in head[:-1] and b"\n" not in head
    return Input(name, path, about.st_size, packing, member, encoding, by_cr)


def markup_of(head: bytes) -> str:
    """The format of a text that begins like JSON, HTML or XML; "" for others."""
    text = head.lstrip(codecs.BOM_UTF8 + b" \t\r\n")[:200].lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if text.startswith(b"<?xml"):
        return "XML"
    return "JSON" if re.match(rb"\{\s*\"[^\"]*\"\s*:|\[\s*[\[{\"]", text) else ""


def _check_kind(name: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise InputError(f"{name} is a folder, but must be a file")
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device" if stat.S_ISCHR(mode) else "no ordinary file"
        raise InputError(f"{name} is {kind}, which cannot be read twice: copy its content into a file")


def _packing_of(first: bytes) -> str:
    if first[:3] == b"BZh" and first[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):  # data, or the end of an empty file
        return "bzip2"
    return next((packing for magic, packing in _PACKINGS if first.startswith(magic)), "")


def _only_member(name: str, path: str) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [each for each in archive.infolist() if not each.is_dir() and not _is_by_the_way(each.filename)]
    except (ValueError, LookupError, OSError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
        raise _damaged(name, "zip", error) from None
    if len(members) != 1:
        shown = ", ".join(each.filename for each in members[:5]) + ", ..." * (len(members) > 5)
        raise InputError(
            f"{name} is a zip archive of {len(members)} files ({shown or 'none'}), but must have one: unpack it first "
            f"(unzip {name}) and choose one of them"
        )
    if members[0].flag_bits & 1:
        raise InputError(f"{name} is an encrypted zip archive: unpack it first (unzip {name})")
    return members[0].filename


def _is_by_the_way(member: str) -> bool:
    return any(part in member for part in _BY_THE_WAY)


def _check_text(name: str, head: bytes, packing: str) -> None:
    """Raise for what is no text; the bytes are those of the text, without its packing."""
    inside = f" inside {packing}" if packing else ""
    for magic, kind, way_out in _FOREIGN:
        if head.startswith(magic):
            raise InputError(f"{name} is {kind}{inside}, which cannot be read: {way_out.format(name=name)}")
    if head[257:262] == b"ustar":
        raise InputError(
            f"{name} is a tar archive{inside}: unpack it first (tar -xf {name}) and choose one of its files"
        )
    if _packing_of(head):
        raise InputError(f"{name} is compressed twice: unpack it first")
    at = head.find(b"\0")
    if at < 0:
        return
    order = {at % 2 for at, byte in enumerate(head[:1000]) if byte == 0}
    if len(order) == 1 and 3 * head[:1000].count(0) > len(head[:1000]):
        codec = "UTF-16LE" if order == {1} else "UTF-16BE"
        raise InputError(
            f"{name} looks like {codec} without a byte order mark{inside}: convert it first "
            f"(iconv -f {codec} -t UTF-8 {name})"
        )
    raise InputError(
        f"{name} is no text: byte {at:,}{inside} is 0. Choose another file; if it is text all the same, remove such "
        f"bytes first (tr -d '\\000' < {name})"
    )


# --- opening -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _unpacked(path: str, packing: str, member: str) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as files:
        if packing == "zip":
            archive = files.enter_context(zipfile.ZipFile(path))
            yield files.enter_context(archive.open(member))
        else:
            opener: Any = {"": open, "gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[packing]
            yield files.enter_context(opener(path, "rb"))


@contextlib.contextmanager
def _naming_damage(name: str, packing: str) -> Iterator[None]:
    """Turn what the readers of compressed data and the decoders raise into `InputError`."""
    try:
        yield
    except _NotInEncoding as error:
        raise DamagedError(f"{name} is not {error}. Convert it to UTF-8") from None
    except (EOFError, OSError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        # the readers of gzip and bzip2 raise OSError without a number, that of zip RuntimeError for what it cannot do
        if not packing or isinstance(error, RecursionError) or getattr(error, "errno", None) is not None:
            raise
        raise _damaged(name, packing, error) from None


def _damaged(name: str, packing: str, error: Exception) -> DamagedError:
    return DamagedError(
        f"{name}: damaged {packing} file: {str(error) or type(error).__name__}. Get it anew, or unpack what can be "
        "read of it into another file"
    )


class _NotInEncoding(Exception):
    """Bytes that are not in the encoding of their file."""


class _Translated(io.RawIOBase):
    """A text of another encoding as UTF-8, CR turned into LF if asked for."""

    def __init__(self, file: IO[bytes], encoding: str, ends_lines_by_cr: bool) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
        self._encoding, self._by_cr = encoding, ends_lines_by_cr
        self._characters = 0
        self._left = b""
        self._is_over = False

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        while not self._left and not self._is_over:
            block = self._file.read(BLOCK)
            self._is_over = not block
            self._left = self._translate(block)
        size = min(len(room), len(self._left))
        room[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def _translate(self, block: bytes) -> bytes:
        if self._decoder is not None:
            try:
                text = self._decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                width = 4 if self._encoding == "utf-32" else 2
                at = self._characters + error.start // width
                raise _NotInEncoding(f"{self._encoding.upper()} after character {at:,}: {error.reason}") from None
            self._characters += len(text)
            block = text.encode()
        return block.replace(b"\r", b"\n") if self._by_cr else block


# --- on all ranks --------------------------------------------------------------------------------------------------


def share(comm: Intracomm, path: str | os.PathLike, name: str | None = None) -> Input:
    """Recognize a file that every rank will read, each by the path that it gives. Collective.

    What can be read only once, a pipe, is read by rank 0 and copied to every host, into temporary files without names.
    `path` may be `STDIN`.

    Raises
    ------
    InputError
        On all ranks: as `recognize`, or if the ranks do not see the same file.
    """
    path = os.fspath(path)
    if path == STDIN:
        path, name = "/dev/stdin", name or "standard input"
    name = path if name is None else name
    located, is_pipe = on_rank_0(comm, _locate, path)
    if is_pipe:
        path = _spread(comm, located)
        if comm.rank == 0:
            size = os.stat(path).st_size
            log.info("copied %s into a temporary file, once: %s bytes", name, f"{size:,}")
    elif comm.rank == 0 or path.startswith(_OF_PROCESSES):
        path = located
    found = replace(on_rank_0(comm, recognize, path if comm.rank == 0 else "", name), path=path)
    collectively(comm, _check_size, found)
    return found


def _locate(path: str) -> tuple[str, bool]:
    """What all ranks can open (``/dev/stdin`` is another file for each process), and whether it is a pipe."""
    mode = os.stat(path).st_mode
    if stat.S_ISFIFO(mode) or (stat.S_ISSOCK(mode) and path == "/dev/stdin"):  # some launchers feed rank 0 by a socket
        return path, True
    return os.path.realpath(path) if path.startswith(_OF_PROCESSES) else path, False


def _check_size(found: Input) -> None:
    size = os.stat(found.path).st_size
    if size != found.size:
        raise InputError(
            f"{found.name} has {size:,} bytes here, but {found.size:,} on rank 0: all ranks must see the same file"
        )


def _temporary_file() -> Any:
    return tempfile.NamedTemporaryFile(prefix="lapse-", delete=False)


def _open_pipe(path: str) -> IO[bytes]:
    return open(0, "rb", closefd=False) if path == "/dev/stdin" else open(path, "rb")  # a socket has no path to open


def _spread(comm: Intracomm, path: str) -> str:
    """Read a pipe on rank 0; returns what this rank can open instead."""
    from mpi4py import MPI

    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        copy = collectively(comm, lambda: _temporary_file() if host.rank == 0 else None)
        here = host.bcast(copy.name if copy else None)
        file = collectively(comm, open, here, "rb")
        host.barrier()
        if copy:  # all have opened it: from here on it needs no name, and vanishes whatever happens
            os.unlink(here)
        pipe = on_rank_0_only(comm, _open_pipe, path)
        while block := on_rank_0(comm, lambda: pipe.read(SENT_AT_ONCE) if pipe else b""):
            collectively(comm, lambda block=block: copy.write(block) if copy else None)
        collectively(comm, lambda: copy.flush() if copy else None)
    finally:
        host.Free()
    _spooled.append(file)
    return f"/proc/self/fd/{file.fileno()}"
