"""Trained word vectors that answer questions: which words are near, and what completes an analogy.

``vectors.npy`` is mapped, and ``vocab.txt`` searched: a model takes 12 bytes of memory per word.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lapse.apps._shared.job import AppError
from lapse.apps._shared.names import Name, Names, UnknownNameError
from lapse.apps._shared.saved import check_folder, map_array, map_names
from lapse.apps._shared.top import Answers, Best, Cosines, scaled
from lapse.apps.word2vec.model_io import COUNTS, MAPPED


class Model:
    """Word vectors; made by `load`.

    Attributes
    ----------
    words
        The words, the most frequent one first: a sequence of str with ``index(word)``.
    vectors
        float32, shape (words, dim); mapped.
    """

    def __init__(self, words: Names | WordList, vectors: np.ndarray) -> None:
        self.words, self.vectors = words, vectors
        self._cosines = Cosines(vectors)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Model:
        """Open a model.

        Parameters
        ----------
        path
            The folder that a training wrote, which is mapped; or a file in a format of the word2vec program (binary if
            it ends in ``.bin``), which is read into memory.

        Raises
        ------
        AppError
            When it is no model, with the file.
        """
        path = Path(path)
        if path.is_file():
            return cls(*_read_file(path))
        check_folder(path, "word2vec", COUNTS)
        if not (path / MAPPED).exists():
            raise AppError(
                f"{path / MAPPED} is missing: the model was written by an older version; ask the file itself "
                f"({path}/vectors.txt or .bin), which is read into memory"
            )
        vectors = map_array(path / MAPPED, (None, None))
        return cls(map_names(path / COUNTS, len(vectors), "word", after=b" "), vectors)

    def vector(self, word: Name) -> np.ndarray:
        """The vector of a word (or of its number); float32, shape (dim,)."""
        return np.array(self.vectors[self._place(word)])

    def similarity(self, word: Name, other: Name) -> float:
        """The cosine of two words' vectors."""
        return float(self._cosines.unit(self._place(word)) @ self._cosines.unit(self._place(other)))

    def nearest(self, plus: Name | Iterable[Name], minus: Iterable[Name] = (), k: int = 10) -> Answers:
        """The words whose vectors have the largest cosine with a sum of words' unit vectors, without these words.

        Parameters
        ----------
        plus, minus
            Words (or their numbers) that are added, and subtracted: ``nearest(["king", "woman"], ["man"])`` is to king
            as woman is to man (Mikolov, Yih, Zweig, *Linguistic Regularities in Continuous Space Word
            Representations*, NAACL 2013).

        Raises
        ------
        UnknownNameError
            For an unknown word, with others that are like it.
        """
        added = [self._place(word) for word in ([plus] if isinstance(plus, str | int) else plus)]
        return self.nearest_to_sums([(added, [self._place(word) for word in minus])], k)[0]

    def nearest_to_sums(self, sums: Sequence[tuple[Sequence[int], Sequence[int]]], k: int = 10) -> list[Answers]:
        """The same for several sums at once, of numbers of words: pairs of what is added, and subtracted."""
        unit = self._cosines.unit
        vectors = np.zeros((len(sums), self.vectors.shape[1]), np.float32)
        for vector, (plus, minus) in zip(vectors, sums, strict=True):
            for sign, words in ((1, plus), (-1, minus)):
                for word in words:
                    vector += sign * unit(word)
            vector[:] = scaled(vector)
        best = Best(len(sums), k, [np.array([*plus, *minus], np.int64) for plus, minus in sums])
        for first, cosines in self._cosines.blocks(vectors):
            best.add(first, cosines)
        return best.answers(self.words)

    def _place(self, word: Name) -> int:
        if isinstance(word, str):
            return self.words.index(word)
        if not 0 <= word < len(self.words):
            raise UnknownNameError(f"word {word}: the model has {len(self.words):,} words, numbered from 0")
        return int(word)


class WordList(list[str]):
    """Words in memory, with what `Names` has."""

    def __init__(self, words: Iterable[str]) -> None:
        super().__init__(words)
        self._places = {word: place for place, word in reversed(list(enumerate(self)))}

    def __contains__(self, word: object) -> bool:
        return word in self._places

    def index(self, word: str, *_: object) -> int:
        """The number of a word; raises `UnknownNameError`."""
        if word not in self._places:
            raise UnknownNameError(f"the model has no word {word!r}")
        return self._places[word]

    def find(self, words: Iterable[str]) -> np.ndarray:
        """The numbers of words, -1 for unknown ones."""
        return np.array([self._places.get(word, -1) for word in words], np.int64)


def _read_file(path: Path) -> tuple[WordList, np.ndarray]:
    from lapse.base.word_vectors import read_vectors

    try:
        words, vectors = read_vectors(path)
    except (OSError, ValueError) as error:
        raise AppError(f"{path}: cannot be read as word vectors: {error}") from None
    return WordList(words), vectors
