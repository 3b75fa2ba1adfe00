"""Word vectors in files: the text and binary formats of the word2vec program.

Both begin with a line ``<words> <dimensions>``; then, for each word, the word, a space and its vector: decimal numbers
separated by spaces (text) or float32 as in memory (binary). gensim reads them with
``KeyedVectors.load_word2vec_format(path, binary=...)``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lapse.apps._shared.files import replacing

#: Names of the files in a model's folder.
WORD_VECTORS, CONTEXT_VECTORS, COUNTS = "vectors", "context", "vocab.txt"


def file_name(stem: str, binary: bool) -> str:
    """The name of the file of the vectors called `stem`."""
    return stem + (".bin" if binary else ".txt")


def write_vectors(
    path: str | os.PathLike, words: list[str], blocks: Iterable[np.ndarray], dim: int, binary: bool = False
) -> None:
    """Write vectors, a block of rows at a time; the file appears when it is complete.

    Parameters
    ----------
    words
        One per vector.
    blocks
        Arrays of shape ``(n, dim)``; together as many rows as there are words.
    dim
        Length of a vector.
    binary
        Whether to use the binary format.
    """
    encode = _binary_line if binary else _text_line
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        file.write(f"{len(words)} {dim}\n".encode())
        at = 0
        for block in blocks:
            rows = np.asarray(block, dtype="<f4")
            names = words[at : at + len(rows)]
            file.writelines(encode(word, row) for word, row in zip(names, rows, strict=True))
            at += len(rows)
        if at != len(words):
            raise ValueError(f"{at} vectors for {len(words)} words")


def _text_line(word: str, row: np.ndarray) -> bytes:
    # nine significant digits restore every float32 exactly
    return f"{word} {' '.join([f'{x:.9g}' for x in row.tolist()])}\n".encode()


def _binary_line(word: str, row: np.ndarray) -> bytes:
    return word.encode() + b" " + row.tobytes() + b"\n"


def read_vectors(path: str | os.PathLike) -> tuple[list[str], np.ndarray]:
    """Read a file of either format (binary by the suffix ``.bin``).

    Returns
    -------
    words, vectors
        The words, and an array of shape ``(len(words), dim)``.
    """
    with open(path, "rb") as file:
        header = file.readline().split()
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


def write_counts(path: str | os.PathLike, words: list[str], counts: np.ndarray) -> None:
    """Write ``word count`` lines, which gensim takes as ``fvocab=``."""
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        file.writelines(f"{w} {n}\n".encode() for w, n in zip(words, counts.tolist(), strict=True))


def read_counts(path: str | os.PathLike) -> dict[str, int]:
    """Read what `write_counts` wrote."""
    with open(path, encoding="utf-8", newline="\n") as file:
        pairs = (line.rstrip("\n").split(" ") for line in file)
        return {word: int(count) for word, count in pairs}
