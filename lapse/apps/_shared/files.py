"""Files that are replaced whole or not at all, and the parameters of a model as files."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

import lapse
from lapse.apps._shared.job import describe, raise_on_all
from lapse.base.disk import sync

log = logging.getLogger(__name__)

#: Folders beside the files of a model: those that are being written, and those that are complete and only have to take
#: the places of the older ones.
_WRITING, _WRITTEN = ".model.part", ".model.complete"
#: In the second one: the names of files that the new model does not have.
_OBSOLETE = ".obsolete"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`; the file that the body writes there takes the place of `path` if the body succeeds.

    It is brought to disk before. The next run overwrites what a killed one has left there.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.absolute().parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_arrays(shapes: dict[Path, tuple[int, ...]], blocks: Iterable[tuple[np.ndarray, ...]]) -> None:
    """Write float32 arrays for `numpy.load`, side by side.

    Parameters
    ----------
    shapes
        The files, and the shapes of their arrays.
    blocks
        The next rows of all arrays.
    """
    with contextlib.ExitStack() as stack:
        files = []
        for path, shape in shapes.items():  # not mapped into memory: a full disk would be a bus error
            files.append(stack.enter_context(open(stack.enter_context(replacing(path)), "wb")))
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[-1], header)
        rows = 0
        for block in blocks:
            for file, values in zip(files, block, strict=True):
                file.write(np.ascontiguousarray(values, "<f4").tobytes())
            rows += len(block[0])
        if any(shape[0] != rows for shape in shapes.values()):
            raise ValueError(f"{rows} rows for arrays of the shapes {list(shapes.values())}")


# --- a model of several files --------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing_model(folder: Path, last: str, obsolete: Iterable[str] = ()) -> Iterator[Path]:
    """A folder for the files of a model; when the body succeeds, they take the places of those in `folder` together.

    If this is interrupted, `finish_replacing` completes it; until then, the file `last` is missing, so that nobody
    takes files of two models for one.

    Parameters
    ----------
    last
        The file that is removed first, and appears last.
    obsolete
        Files that go if the new model does not have them.
    """
    writing, written = folder / _WRITING, folder / _WRITTEN
    finish_replacing(folder)
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    try:
        yield writing
        gone = [last, *(name for name in obsolete if not (writing / name).exists())]
        (writing / _OBSOLETE).write_text("\n".join(gone), encoding="utf-8")
        for path in (*writing.iterdir(), writing):
            sync(path)
        os.rename(writing, written)
        sync(folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Complete what `replacing_model` has begun in a process that was killed, if there is such."""
    written = folder / _WRITTEN
    if not written.is_dir():
        return
    note = written / _OBSOLETE
    if note.exists():  # the new `last` is not in its place yet
        last, *others = note.read_text(encoding="utf-8").split("\n")
        for name in (last, *others):
            (folder / name).unlink(missing_ok=True)
        sync(folder)
        for path in written.iterdir():
            if path.name not in (last, note.name):
                os.replace(path, folder / path.name)
        sync(folder)
        note.unlink()
    for path in written.iterdir():
        os.replace(path, folder / path.name)
    sync(folder)
    written.rmdir()


def write_model(
    server: lapse.Server,
    folder: Path,
    last: str,
    write: Callable[..., None],
    *args: object,
    obsolete: Iterable[str] = (),
) -> None:
    """Write a model by ``write(kv, folder, *args)``, on the first worker of all. Collective.

    Parameters
    ----------
    last, obsolete
        For `replacing_model`.

    Raises
    ------
    AppError
        On all ranks, if it cannot be written: the older model remains.
    """
    raise_on_all(server.comm, server.run(_write_by_first, folder, last, tuple(obsolete), write, args)[0])
    log.info("wrote the model to %s", folder)


def _write_by_first(
    kv: lapse.Worker, folder: Path, last: str, obsolete: tuple[str, ...], write: Callable[..., None], args: tuple
) -> str | None:
    """Returns what went wrong, to the first worker."""
    if kv.id != 0:
        return None
    try:
        with replacing_model(folder, last, obsolete) as writing:
            write(kv, writing, *args)
    except OSError as failure:
        return f"the model could not be written to {folder}: {describe(failure)}"
    return None


def pull_rows(kv: lapse.Worker, keys: np.ndarray, at_once: int) -> Iterator[np.ndarray]:
    """The values of keys of one length in order, `at_once` keys at a time, so that no rank needs to hold the model."""
    for begin in range(0, len(keys), at_once):
        some = keys[begin : begin + at_once]
        yield kv.pull(some).wait().reshape(len(some), -1)
