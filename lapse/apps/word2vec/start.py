"""Vectors that a training continues from: ``--start-vectors``.

A model's folder has word vectors and context vectors; a file in a format of the word2vec program, or a NumPy array
beside a ``vocab.txt``, word vectors only. Rank 0 reads them, a block of rows at a time; their words are trained, too,
whether they occur in the text or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lapse.apps._shared import job
from lapse.apps._shared.job import AppError
from lapse.apps._shared.saved import map_array, map_names
from lapse.apps.word2vec import model_io
from lapse.base.word_vectors import ROWS, iterate_vectors, read_shape

if TYPE_CHECKING:
    import lapse
    from lapse.apps.word2vec.vocabulary import Vocabulary
    from mpi4py.MPI import Intracomm

Rows = Iterator[tuple[list[str], np.ndarray]]


@dataclass(frozen=True)
class Start:
    """Where vectors to continue from are.

    Attributes
    ----------
    path
        What the command line says.
    dim
        Their length.
    words
        The words that have some; only on rank 0.
    """

    path: Path
    dim: int
    words: tuple[str, ...] = ()


def find(comm: Intracomm, path: Path) -> Start:
    """Read the words; raises `AppError` on all ranks if they, or the vectors, cannot be read. Collective."""
    found = job.on_rank_0_only(comm, _find, path)
    dim = comm.bcast(None if found is None else found.dim)
    return Start(path, dim) if found is None else found


def _find(path: Path) -> Start:
    try:
        if _is_text_or_binary(path):
            dim = read_shape(path)[1]
            words = [word for some, _ in iterate_vectors(path) for word in some]
        else:
            names, vectors = _map(path)
            dim, words = vectors.shape[1], list(names)
    except OSError as error:
        raise AppError(f"--start-vectors {path}: {error.strerror}") from None
    except ValueError as error:  # names the file
        raise AppError(f"--start-vectors: {error}") from None
    return Start(path, dim, tuple(dict.fromkeys(words)))


def _is_text_or_binary(path: Path) -> bool:
    return not path.is_dir() and path.suffix != ".npy"


def _map(path: Path):
    """The words and vectors of a model's folder, or of an array."""
    array = path / model_io.MAPPED if path.is_dir() else path
    counts = array.with_name(model_io.COUNTS)
    for needed in (array, counts):
        if not needed.exists():
            raise AppError(
                f"--start-vectors {path}: {needed} is missing, but an array of vectors has its words beside it, a word "
                "and its count in each line"
            )
    vectors = map_array(array, (None, None))
    return map_names(counts, len(vectors), "word", after=b" "), vectors


def _word_vectors(path: Path) -> Rows:
    if _is_text_or_binary(path):
        yield from iterate_vectors(path)
        return
    words, vectors = _map(path)
    for first in range(0, len(vectors), ROWS):
        yield words[first : first + ROWS], vectors[first : first + ROWS]


def _context_vectors(path: Path) -> Rows:
    files = [path / model_io.file_name(model_io.CONTEXT_VECTORS, binary) for binary in (False, True)]
    found = [file for file in files if path.is_dir() and file.exists()]
    if found:
        yield from iterate_vectors(max(found, key=lambda file: file.stat().st_mtime))


def put(server: lapse.Server, start: Start, vocabulary: Vocabulary) -> None:
    """Give the words that have vectors those. Collective.

    Raises
    ------
    AppError
        On all ranks.
    """
    job.raise_on_all(server.comm, server.run(_put_by_first, start, vocabulary)[0])


def _put_by_first(kv: lapse.Worker, start: Start, vocabulary: Vocabulary) -> str | None:
    """Returns what went wrong, to the first worker."""
    error = None
    with kv.setup():
        if kv.id == 0:
            try:
                for offset, rows in ((0, _word_vectors(start.path)), (1, _context_vectors(start.path))):
                    _put(kv, vocabulary, offset, rows)
            except (OSError, ValueError, AppError) as failure:
                error = f"--start-vectors {start.path}: {failure}"
    return error


def _put(kv: lapse.Worker, vocabulary: Vocabulary, offset: int, rows: Rows) -> None:
    is_new = np.ones(len(vocabulary), bool)
    for words, vectors in rows:
        places = np.array([vocabulary.index.get(word, -1) for word in words], np.int64)
        if not np.isfinite(vectors).all():
            bad = words[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
            raise ValueError(f"the vector of {bad!r} has numbers that are not finite")
        chosen, first = np.unique(places, return_index=True)  # of equal words the first one counts
        which = (chosen >= 0) & is_new[chosen]
        chosen, first = chosen[which], first[which]
        is_new[chosen] = False
        kv.set(2 * chosen + offset, np.ascontiguousarray(vectors[first], dtype=np.float32)).wait()
