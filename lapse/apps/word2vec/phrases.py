"""Phrases: pairs of words that stand together more often than by chance become one word, ``new_york``.

The score of a pair a b, as in the word2phrase program (Mikolov et al., *Distributed Representations of Words and
Phrases and their Compositionality*, NIPS 2013, equation 6), is

    (count(a b) - min_count) / (count(a) count(b)) x words of the text

and a pair whose score is above the threshold is joined, from left to right, no word twice. Several passes make longer
phrases. Words rarer than `min_count` are in none.

The text is numbers of words here, -1 for words that are too rare to matter. Each rank counts the pairs of its own
shares; those of all ranks meet by number: each rank adds up a part of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lapse.apps._shared.job import collectively

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: What stands between the words of a phrase.
DELIMITER = "_"
#: Pairs that are kept one by one before those that are equal are counted together.
AT_ONCE = 1 << 24
#: Phrases that are shown.
SHOWN = 5

#: The sentences of a share: numbers of words, and the end of each sentence.
Numbered = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Options:
    """How phrases are found.

    Attributes
    ----------
    passes
        How often; phrases have at most two to the power of this many words.
    threshold
        The score above which a pair is a phrase.
    min_count
        Pairs must occur more often.
    """

    passes: int
    threshold: float
    min_count: int


@dataclass(frozen=True)
class Joining:
    """The phrases of a pass.

    Attributes
    ----------
    first
        Words are numbered below this.
    pairs
        Sorted: ``a * first + b`` for each pair of words a b; int64.
    joined
        The number of the phrase that each becomes; int32.
    """

    first: int
    pairs: np.ndarray
    joined: np.ndarray

    def of(self, ids: np.ndarray, ends: np.ndarray) -> Numbered:
        """Join the pairs in some sentences."""
        begins, follows = self._words  # few words do, so that few pairs need to be looked up
        where = np.flatnonzero(begins[ids[:-1]] & follows[ids[1:]] & ~_is_last(ids, ends))
        if not len(where):
            return ids, ends
        keys = ids[where].astype(np.int64) * self.first + ids[where + 1]
        places = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        is_phrase = self.pairs[places] == keys
        starts, numbers = where[is_phrase], self.joined[places[is_phrase]]
        chosen = _every_second(starts)  # of a b c with two phrases a b and b c the first
        starts, numbers = starts[chosen], numbers[chosen]
        result = ids.copy()
        result[starts] = numbers
        is_left = np.ones(len(ids), bool)
        is_left[starts + 1] = False
        return result[is_left], np.concatenate([[0], np.cumsum(is_left)])[ends]

    @cached_property
    def _words(self) -> tuple[np.ndarray, np.ndarray]:
        """Which words begin a phrase, and which end one; the last element is for -1."""
        parts = np.zeros((2, self.first + 1), bool)
        parts[0, self.pairs // self.first], parts[1, self.pairs % self.first] = True, True
        return parts[0], parts[1]


def _is_last(ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Of all words but the last: whether it ends a sentence."""
    is_last = np.zeros(max(len(ids) - 1, 0), bool)
    is_last[ends[(ends > 0) & (ends < len(ids))] - 1] = True
    return is_last


def pairs_in(ids: np.ndarray, ends: np.ndarray, first: int) -> Numbered:
    """The numbers of all pairs of neighbors without -1, and where they are."""
    where = np.flatnonzero((ids[:-1] >= 0) & (ids[1:] >= 0) & ~_is_last(ids, ends))
    return ids[where].astype(np.int64) * first + ids[where + 1], where


def _every_second(places: np.ndarray) -> np.ndarray:
    """Of each run of neighboring numbers the first, the third, and so on: a mask."""
    begins = np.concatenate([[True], np.diff(places) != 1])
    begin = np.maximum.accumulate(np.where(begins, np.arange(len(places)), 0))
    return (np.arange(len(places)) - begin) % 2 == 0


class PairCounts:
    """How often each pair occurs."""

    def __init__(self) -> None:
        self._keys: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._waiting = 0

    def add(self, keys: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Count some pairs, `counts` times each (default: once)."""
        keys, counts = np.unique(keys, return_counts=True) if counts is None else (keys, counts)
        self._keys.append(keys)
        self._counts.append(counts)
        self._waiting += len(keys)
        if self._waiting > AT_ONCE:
            self.total()

    def total(self) -> Numbered:
        """The pairs that occurred, sorted, and how often."""
        keys = np.concatenate([np.empty(0, np.int64), *self._keys])
        counts = np.concatenate([np.empty(0, np.int64), *self._counts])
        order = np.argsort(keys, kind="stable")
        found, first = np.unique(keys[order], return_index=True)
        sums = np.add.reduceat(counts[order], first) if len(found) else counts
        self._keys, self._counts, self._waiting = [found], [sums], 0
        return found, sums


def find(
    comm: Intracomm, texts: Callable[[list[Joining]], Iterable[Numbered]], words: list[str], options: Options
) -> list[Joining]:
    """Find phrases, and append them to `words`. Collective.

    Parameters
    ----------
    texts
        Gives the sentences of this rank's shares, joined by what it is passed.
    words
        Those that have numbers; the same on all ranks.
    """
    joinings: list[Joining] = []
    index = {word: number for number, word in enumerate(words)}
    for _ in range(options.passes):
        keys, scores = _score(comm, texts(joinings), len(words), options)
        joinings.append(_number(keys, words, index))
        if comm.rank == 0:
            best = keys[np.argsort(-scores, kind="stable")[:SHOWN]].tolist()
            first = joinings[-1].first
            shown = ", ".join(words[key // first] + DELIMITER + words[key % first] for key in best)
            log.info("%s phrases%s", f"{len(keys):,}", f", such as {shown}" if shown else "")
    return joinings


def _score(comm: Intracomm, texts: Iterable[Numbered], number: int, options: Options) -> Numbered:
    """The pairs that are phrases, sorted, and their scores."""
    from mpi4py import MPI

    counts, total, pairs = collectively(comm, _count, texts, number)
    comm.Allreduce(MPI.IN_PLACE, counts)
    total = comm.allreduce(total)
    together, times = _meet(comm, *pairs.total())
    often = times > options.min_count
    together, times = together[often], times[often]
    scores = (times - options.min_count) / (counts[together // number] * counts[together % number]) * float(total)
    is_phrase = scores > options.threshold
    found = comm.allgather((together[is_phrase], scores[is_phrase]))
    keys, scores = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.argsort(keys)
    return keys[order], scores[order]


def _count(texts: Iterable[Numbered], number: int) -> tuple[np.ndarray, int, PairCounts]:
    """How often words occur, how many there are, and pairs."""
    counts, total, pairs = np.zeros(number, np.int64), 0, PairCounts()
    for ids, ends in texts:
        counts += np.bincount(ids[ids >= 0], minlength=number)
        total += len(ids)
        pairs.add(pairs_in(ids, ends, number)[0])
    return counts, total, pairs


def _meet(comm: Intracomm, keys: np.ndarray, counts: np.ndarray) -> Numbered:
    """Add up the pairs of all ranks; each rank gets a part of them."""
    if comm.size == 1:
        return keys, counts
    owner = keys % comm.size
    parts = [(keys[owner == rank], counts[owner == rank]) for rank in range(comm.size)]
    mine = PairCounts()
    for part in comm.alltoall(parts):
        mine.add(*part)
    return mine.total()


def _number(keys: np.ndarray, words: list[str], index: dict[str, int]) -> Joining:
    """Give each phrase a number: that of a word that is spelled alike, or the next one."""
    first, joined = len(words), []
    for key in keys.tolist():
        name = words[key // first] + DELIMITER + words[key % first]
        number = index.setdefault(name, len(words))
        if number == len(words):
            words.append(name)
        joined.append(number)
    return Joining(first, keys, np.array(joined, np.int32))
