"""Floor 0. Reading vectors with a name each: the text and binary formats of the word2vec program.

Both begin with a line ``<words> <dimensions>``; then, for each word, the word, a space and its vector: decimal numbers
separated by spaces (text) or float32 as in memory (binary).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO

import numpy as np

#: Vectors that are read at once.
ROWS = 4096
#: Bytes of a binary file that are read at once, and the longest word in it.
_BLOCK, _LONGEST = 1 << 20, 1 << 20


def read_vectors(path: str | os.PathLike[str]) -> tuple[list[str], np.ndarray]:
    """Read a file of either format (binary by the suffix ``.bin``).

    Returns
    -------
    words, vectors
        The words, and a float32 array of shape ``(len(words), dim)``.

    Raises
    ------
    OSError
        When the file cannot be read.
    ValueError
        When it has another format, or ends early.
    """
    words: list[str] = []
    vectors = np.empty(read_shape(path), dtype=np.float32)
    for some, rows in iterate_vectors(path):
        vectors[len(words) : len(words) + len(some)] = rows
        words += some
    return words, vectors


def read_shape(path: str | os.PathLike[str]) -> tuple[int, int]:
    """How many vectors a file has, and their length; raises as `read_vectors`."""
    with open(path, "rb") as file:
        return _read_header(file, os.fspath(path))


def iterate_vectors(path: str | os.PathLike[str], rows: int = ROWS) -> Iterator[tuple[list[str], np.ndarray]]:
    """The words and vectors of a file of either format, up to `rows` at a time; raises as `read_vectors`."""
    name = os.fspath(path)
    with open(path, "rb") as file:
        count, dim = _read_header(file, name)
        read = _binary_vectors if name.endswith(".bin") else _text_vectors
        words: list[str] = []
        vectors = np.empty((rows, dim), dtype=np.float32)
        for word, vector in read(file, count, dim, name):
            vectors[len(words)] = vector
            words.append(word)
            if len(words) == rows:
                yield words, vectors
                words, vectors = [], np.empty((rows, dim), dtype=np.float32)
        if words:
            yield words, vectors[: len(words)]


def _read_header(file: IO[bytes], path: str) -> tuple[int, int]:
    header = file.readline(100).split()
    if len(header) != 2:
        raise ValueError(f"{path}: does not start with a line '<words> <dimensions>'")
    count, dim = (int(number) if number.isdigit() and len(number) < 19 else -1 for number in header)
    size = os.fstat(file.fileno()).st_size
    if min(count, dim) < 0 or count * (dim + 1) > size:  # each number and each word takes a byte at least
        raise ValueError(f"{path}: {size:,} bytes cannot be {count} vectors of {dim} numbers")
    return count, dim


def _text_vectors(file: IO[bytes], count: int, dim: int, path: str) -> Iterator[tuple[str, list[float]]]:
    for i in range(count):
        word, *numbers = file.readline().rstrip().split(b" ")
        if len(numbers) != dim:
            raise ValueError(f"{path}:{i + 2}: expected {dim} numbers, found {len(numbers)}")
        yield word.decode(), [float(x) for x in numbers]


def _binary_vectors(file: IO[bytes], count: int, dim: int, path: str) -> Iterator[tuple[str, np.ndarray]]:
    data, at = b"", 0  # what has been read and is to be used from here on
    for i in range(count):
        space = data.find(b" ", at)
        while space < 0 or space + 1 + 4 * dim > len(data):
            more = file.read(_BLOCK) if space >= 0 or len(data) - at <= _LONGEST else b""
            if not more:
                raise ValueError(f"{path}: the file ends within vector {i + 1} of {count}")
            data, at = data[at:] + more, 0
            space = data.find(b" ")
        yield (
            data[at:space].lstrip(b"\n").decode(),  # some programs write line ends, some do not
            np.frombuffer(data, "<f4", dim, space + 1),
        )
        at = space + 1 + 4 * dim
