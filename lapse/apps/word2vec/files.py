"""The files of a corpus: what the command line names, and which worker reads what of them.

A name may be a file, a folder (all files in it and below it, hidden ones left out), a pattern with ``*``, ``?``,
``[...]`` or ``**``, or ``-`` for standard input. Each file is read once per epoch, whoever names it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lapse.apps._shared import inputs
from lapse.apps._shared.inputs import Input
from lapse.apps._shared.job import AppError, on_rank_0
from lapse.apps.word2vec.corpus import Share

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

#: Whole compressed files are given to workers if the busiest one has at most so many times the bytes of the mean.
EVEN = 1.25


def share(comm: Intracomm, names: Sequence[str | os.PathLike]) -> list[Input]:
    """Recognize the files that every rank will read. Collective.

    Raises
    ------
    AppError
        On all ranks: if there is none, or one cannot be read.
    """
    found = on_rank_0(comm, find, [os.fspath(name) for name in names])
    return [inputs.share(comm, path) for path in found]


def find(names: Iterable[str]) -> list[str]:
    """The files that are named, each once: in the order of the names; those of a folder or pattern in their own order.

    Raises
    ------
    AppError
        If a folder has none, or nothing matches a pattern.
    """
    return list(dict.fromkeys(path for name in names for path in _find(name)))


def _find(name: str) -> list[str]:
    if name != inputs.STDIN and os.path.isdir(name):
        kind, found = "is a folder without files", _files_below(name)
    elif name != inputs.STDIN and not os.path.lexists(name) and glob.has_magic(name):
        kind, found = "matches no file", sorted(filter(os.path.isfile, glob.iglob(name, recursive=True)))
    else:
        return [name]
    if not found:
        raise AppError(f"--corpus {name} {kind}: name a file, or a folder or pattern that has some")
    return found


def _files_below(folder: str) -> list[str]:
    found = []
    for inner, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [each for each in folders if not each.startswith(".")]
        paths = [os.path.join(inner, each) for each in files if not each.startswith(".")]
        found += [path for path in paths if os.path.isfile(path)]
    return sorted(found, key=lambda path: Path(path).parts)


def name_of(files: Sequence[Input]) -> str:
    """What messages call the corpus."""
    return files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1:,} other files"


def divide(files: Sequence[Input], count: int) -> list[list[tuple[int, Share]]]:
    """What each of `count` workers reads: pairs of the number of a file and a share of it.

    Plain files are divided as if they stood one after another. Of compressed files each worker takes whole ones if
    that is even; else it takes every n-th line of all of them, which each worker must unpack.
    """
    shares: list[list[tuple[int, Share]]] = [[] for _ in range(count)]
    plain = [number for number, file in enumerate(files) if file.is_direct]
    total, before = sum(files[number].size for number in plain), 0
    for number in plain:
        size = files[number].size
        for worker, bounds in enumerate(_bounds(total, count)):
            begin, end = (min(max(bound - before, 0), size) for bound in bounds)
            if begin < end:
                shares[worker].append((number, Share(files[number], bytes_wanted=(begin, end))))
        before += size
    packed = [number for number, file in enumerate(files) if not file.is_direct]
    owners = _whole_files([files[number].size for number in packed], count)
    for place, number in enumerate(packed):
        for worker in range(count) if owners is None else (owners[place],):
            share = Share(files[number], worker, count) if owners is None else Share(files[number])
            shares[worker].append((number, share))
    return [sorted(each, key=lambda share: share[0]) for each in shares]


def _bounds(total: int, count: int) -> list[tuple[int, int]]:
    return [(total * worker // count, total * (worker + 1) // count) for worker in range(count)]


def _whole_files(sizes: Sequence[int], count: int) -> list[int] | None:
    """Who reads which file, the largest first to who has least (Graham 1969); None if that is uneven."""
    owners, loads = [0] * len(sizes), [0] * count
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        owners[place] = loads.index(min(loads))
        loads[owners[place]] += sizes[place]
    return owners if sizes and max(loads) <= EVEN * sum(loads) / count else None
