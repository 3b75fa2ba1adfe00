"""Tests of word vectors: analogies, and how alike people find two words.

Files have a question per line. Four words, in sections that begin with a line ``: name``, are an analogy (the format
of ``questions-words.txt``: Mikolov et al., *Efficient Estimation of Word Representations in Vector Space*, 2013); two
words and a number, how alike they are (WordSim-353, SimLex-999 and others). A line that begins with ``#`` is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lapse.apps._shared import inputs
from lapse.apps._shared.job import AppError

if TYPE_CHECKING:
    from lapse.apps.word2vec.trained import Model

#: Analogies that are solved in one pass over the vectors.
AT_ONCE = 128


@dataclass
class Section:
    """The analogies of a section: how many were answered right, of how many whose words are known, and all."""

    name: str
    right: int = 0
    known: int = 0
    total: int = 0

    @property
    def accuracy(self) -> float | None:
        """The share of the known ones that was answered right."""
        return self.right / self.known if self.known else None


@dataclass
class Result:
    """What a model achieves.

    Attributes
    ----------
    sections
        Of analogies, in the order of the file.
    spearman
        The rank correlation of cosines with the numbers of the file; None without word pairs.
    pairs, known_pairs
        How many word pairs there are, and how many whose words are known.
    """

    sections: list[Section] = field(default_factory=list)
    spearman: float | None = None
    pairs: int = 0
    known_pairs: int = 0

    @property
    def total(self) -> Section:
        """All analogies."""
        sums = (sum(getattr(each, name) for each in self.sections) for name in ("right", "known", "total"))
        return Section("all", *sums)

    def __str__(self) -> str:
        lines = []
        for each in [*self.sections, self.total] if self.sections else []:
            share = "none known" if each.accuracy is None else f"{100 * each.accuracy:.1f}%"
            lines.append(f"{each.name}\t{share}\t{each.right} of {each.known} ({each.total - each.known} unknown)")
        if self.pairs:
            shown = "none" if self.spearman is None else f"{self.spearman:.4f}"
            lines.append(f"pairs\tSpearman {shown}\t{self.known_pairs} of {self.pairs} known")
        return "\n".join(lines)


def evaluate(model: Model, path: Path) -> Result:
    """Ask a model the questions of a file; a word that is unknown as it stands is looked for in lower case.

    Raises
    ------
    AppError
        For a line of another kind, with file and line.
    """
    sections, pairs = read(path)
    words = {word for _, questions in sections for question in questions for word in question}
    words |= {word for first, second, _ in pairs for word in (first, second)}
    places = _find(model, sorted(words))
    result = Result([_solve(model, name, questions, places) for name, questions in sections])
    known = [(places[a], places[b], number) for a, b, number in pairs if places[a] >= 0 and places[b] >= 0]
    result.pairs, result.known_pairs = len(pairs), len(known)
    if len(known) > 1:
        cosines = [model.similarity(a, b) for a, b, _ in known]
        result.spearman = spearman(np.array(cosines), np.array([number for *_, number in known]))
    return result


def read(path: Path) -> tuple[list[tuple[str, list[tuple[str, ...]]]], list[tuple[str, str, float]]]:
    """The analogies, by section, and the word pairs of a file."""
    sections: list[tuple[str, list[tuple[str, ...]]]] = []
    pairs = []
    for number, line in _lines(path):
        words = line.replace(",", " ").split() if "\t" not in line else [word.strip() for word in line.split("\t")]
        if line.startswith(":"):
            sections.append((line[1:].strip(), []))
        elif len(words) == 4 and not _is_number(words[2]):
            if not sections:
                sections.append((path.name, []))
            sections[-1][1].append(tuple(words))
        elif len(words) >= 3 and _is_number(words[2]):
            pairs.append((words[0], words[1], float(words[2])))
        elif number > 1 or len(words) < 3:  # otherwise a header
            raise AppError(f"{path}:{number}: {line[:60]!r} is neither four words nor two words and a number")
    if not sections and not pairs:
        raise AppError(f"{path}: no questions")
    return sections, pairs


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with inputs.recognize(path).open() as file:
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip("\r\n")
            if text.strip() and not text.startswith("#"):
                yield number, text


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def _find(model: Model, words: list[str]) -> dict[str, int]:
    """The numbers of words, or of their lower case; -1: unknown."""
    as_written = model.words.find(words).tolist()
    lower = model.words.find([word.lower() for word in words]).tolist()
    return {word: a if a >= 0 else b for word, a, b in zip(words, as_written, lower, strict=True)}


def _solve(model: Model, name: str, questions: list[tuple[str, ...]], places: dict[str, int]) -> Section:
    asked = [tuple(places[word] for word in question) for question in questions]
    known = [each for each in asked if min(each) >= 0]
    right = 0
    for first in range(0, len(known), AT_ONCE):
        some = known[first : first + AT_ONCE]
        found = model.nearest_to_sums([((b, c), (a,)) for a, b, c, _ in some], 1)
        right += sum(len(ids) and ids[0] == d for (ids, *_), (*_, d) in zip(found, some, strict=True))
    return Section(name, int(right), len(known), len(questions))


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """The correlation of ranks; equal values share the mean of their ranks. None if all values are equal."""
    ranks = [_ranks(a), _ranks(b)]
    if any(each.std() == 0 for each in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]
