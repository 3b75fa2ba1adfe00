"""Files that appear when they are complete, and the parameters of a model as files."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

import lapse

log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`; the file that the body writes there takes the place of `path` if the body succeeds.

    The next run overwrites what a killed one has left there.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        os.replace(temporary, path)
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
    with contextlib.ExitStack() as files:
        arrays = [
            np.lib.format.open_memmap(files.enter_context(replacing(path)), "w+", np.float32, shape)
            for path, shape in shapes.items()
        ]
        begin = 0
        for block in blocks:
            end = begin + len(block[0])
            for array, rows in zip(arrays, block, strict=True):
                array[begin:end] = rows
            begin = end
        for array in arrays:
            array.flush()


def write_model(server: lapse.Server, folder: Path, write: Callable[..., None], *args: object) -> None:
    """Write a model by ``write(kv, folder, *args)``, on the first worker of all. Collective."""
    server.run(_write_by_first, folder, write, args)
    log.info("wrote the model to %s", folder)


def _write_by_first(kv: lapse.Worker, folder: Path, write: Callable[..., None], args: tuple) -> None:
    if kv.id == 0:
        write(kv, folder, *args)


def pull_rows(kv: lapse.Worker, keys: np.ndarray, at_once: int) -> Iterator[np.ndarray]:
    """The values of keys of one length in order, `at_once` keys at a time, so that no rank needs to hold the model."""
    for begin in range(0, len(keys), at_once):
        some = keys[begin : begin + at_once]
        yield kv.pull(some).wait().reshape(len(some), -1)


def is_gzip(path: str | os.PathLike) -> bool:
    """Whether a file begins like a gzip file, whatever its name."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"
