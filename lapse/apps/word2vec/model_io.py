"""Word vectors in files: the text and binary formats of the word2vec program.

The formats are described in `lapse.base.word_vectors`, which reads them. gensim reads them with
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
#: The word vectors once more, for `trained`: text cannot be mapped.
MAPPED = "vectors.npy"


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


def write_counts(path: str | os.PathLike, words: list[str], counts: np.ndarray) -> None:
    """Write ``word count`` lines, which gensim takes as ``fvocab=``."""
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        file.writelines(f"{w} {n}\n".encode() for w, n in zip(words, counts.tolist(), strict=True))


def read_counts(path: str | os.PathLike) -> dict[str, int]:
    """Read what `write_counts` wrote."""
    with open(path, encoding="utf-8", newline="\n") as file:
        pairs = (line.rstrip("\n").split(" ") for line in file)
        return {word: int(count) for word, count in pairs}
