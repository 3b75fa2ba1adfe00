"""Floor 0. Reading vectors with a name each: the text and binary formats of the word2vec program.

Both begin with a line ``<words> <dimensions>``; then, for each word, the word, a space and its vector: decimal numbers
separated by spaces (text) or float32 as in memory (binary).
"""

from __future__ import annotations

import os

import numpy as np


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
    with open(path, "rb") as file:
        header = file.readline(100).split()
        if len(header) != 2:
            raise ValueError(f"{os.fspath(path)}: does not start with a line '<words> <dimensions>'")
        count, dim = (int(number) if number.isdigit() and len(number) < 19 else -1 for number in header)
        size = os.fstat(file.fileno()).st_size
        if min(count, dim) < 0 or count * (dim + 1) > size:  # each number and each word takes a byte at least
            raise ValueError(f"{os.fspath(path)}: {size:,} bytes cannot be {count} vectors of {dim} numbers")
        read = _read_binary if os.fspath(path).endswith(".bin") else _read_text
        return read(file.read(), count, dim, os.fspath(path))


def _read_text(data: bytes, count: int, dim: int, path: str) -> tuple[list[str], np.ndarray]:
    words, vectors = [], np.empty((count, dim), dtype=np.float32)
    lines = data.split(b"\n")
    for i in range(count):
        word, *numbers = lines[i].rstrip().split(b" ") if i < len(lines) else (b"",)
        if len(numbers) != dim:
            raise ValueError(f"{path}:{i + 2}: expected {dim} numbers, found {len(numbers)}")
        words.append(word.decode())
        vectors[i] = [float(x) for x in numbers]
    return words, vectors


def _read_binary(data: bytes, count: int, dim: int, path: str) -> tuple[list[str], np.ndarray]:
    words, vectors, at = [], np.empty((count, dim), dtype=np.float32), 0
    for i in range(count):
        space = data.find(b" ", at)
        if space < 0 or space + 1 + 4 * dim > len(data):
            raise ValueError(f"{path}: the file ends within vector {i + 1} of {count}")
        words.append(data[at:space].lstrip(b"\n").decode())  # some programs write line ends, some do not
        vectors[i] = np.frombuffer(data, "<f4", dim, space + 1)
        at = space + 1 + 4 * dim
    return words, vectors
