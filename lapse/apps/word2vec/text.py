"""A corpus as the training needs it: numbers of words, a block at a time.

The numbers of a share are kept in memory, or it is read again in each epoch; see `lapse.apps.word2vec.survey`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lapse.apps._shared.job import AppError
from lapse.apps.word2vec._encoder import Encoder
from lapse.apps.word2vec.corpus import Share
from lapse.apps.word2vec.phrases import Joining, Numbered
from lapse.apps.word2vec.vocabulary import Vocabulary

log = logging.getLogger(__name__)

#: Words that the kernel receives at a time.
BLOCK_WORDS = 10_000


@dataclass(frozen=True)
class Block:
    """Some sentences for the kernel: their frequent words, int32, and the end of each sentence, int64.

    `read` is the number of words that they have in the file.
    """

    words: np.ndarray
    ends: np.ndarray
    read: int


@dataclass(frozen=True)
class Sentences:
    """Encoded sentences.

    Attributes
    ----------
    words, ends
        As in a `Block`.
    ends_in_file
        The end of each sentence, rare words included.
    """

    words: np.ndarray
    ends: np.ndarray
    ends_in_file: np.ndarray

    @classmethod
    def without_rare_words(cls, ids: np.ndarray, ends: np.ndarray) -> Sentences:
        """Omit the words that have no number (-1)."""
        known = ids >= 0
        before = np.concatenate([[0], np.cumsum(known)])
        return cls(ids[known], before[ends], ends)

    def blocks(self) -> Iterator[Block]:
        """Cut them, without a copy, at the first end of a sentence after `BLOCK_WORDS` words."""
        first = start = read = 0
        while first < len(self.ends):
            last = int(np.searchsorted(self.ends_in_file, read + BLOCK_WORDS))
            last = min(last, len(self.ends) - 1)
            end, behind = int(self.ends[last]), int(self.ends_in_file[last])
            yield Block(self.words[start:end], self.ends[first : last + 1] - start, behind - read)
            first, start, read = last + 1, end, behind


@dataclass(frozen=True)
class Reading:
    """How text becomes numbers.

    Attributes
    ----------
    words
        Those that have a number before phrases are joined.
    joinings
        The phrases, pass after pass.
    numbers
        What each word or phrase is in the end: its number in the vocabulary, or -1, which comes last once more; None:
        what it was before.
    """

    words: Sequence[str]
    joinings: Sequence[Joining] = ()
    numbers: np.ndarray | None = None

    def read(self, pieces: Iterable[Share]) -> Iterator[Numbered]:
        """Read a share again: sentences of some `BLOCK_WORDS` words at a time."""
        encoder = Encoder(self.words)
        for piece in pieces:
            for _ in piece.feed(encoder):
                if encoder.collected >= BLOCK_WORDS:
                    yield self.finish(*encoder.take())
        yield self.finish(*encoder.take())

    def finish(self, ids: np.ndarray, ends: np.ndarray) -> Numbered:
        """From numbers in `words` to what the words and phrases are in the end."""
        for joining in self.joinings:
            ids, ends = joining.of(ids, ends)
        return self.renumber(ids, ends)

    def renumber(self, ids: np.ndarray, ends: np.ndarray) -> Numbered:
        """The last step: what the words and phrases are in the end."""
        return (ids, ends) if self.numbers is None else (self.numbers[ids], ends)


@dataclass(frozen=True)
class Text:
    """A corpus, surveyed.

    Attributes
    ----------
    name
        What messages call it.
    vocabulary
        Its frequent words.
    share_words
        The number of words, frequent or not, of each worker's share.
    kept
        What the survey has kept of the shares of this rank, by worker.
    pieces
        What the other workers of this rank read again in each epoch.
    reading
        How that becomes numbers; None if all shares are kept.
    """

    name: str
    vocabulary: Vocabulary
    share_words: list[int]
    kept: dict[int, Sentences]
    pieces: Mapping[int, Sequence[Share]] = field(default_factory=dict)
    reading: Reading | None = None

    @property
    def words(self) -> int:
        """The number of words of the corpus, frequent or not."""
        return sum(self.share_words)

    def blocks(self, worker: int) -> Iterator[Block]:
        """Read the share of a worker from its start."""
        if worker in self.kept:
            yield from self.kept[worker].blocks()
            return
        if self.reading is None or worker not in self.pieces:
            raise ValueError(f"the share of worker {worker} is neither kept nor in a file")
        for ids, ends in self.reading.read(self.pieces[worker]):
            yield from Sentences.without_rare_words(ids, ends).blocks()


def checked(text: Text, min_count: int) -> Text:
    """Log the size of a text; raise `AppError` if no word is frequent enough."""
    words = len(text.vocabulary)
    if text.words == 0:
        raise AppError(f"{text.name} is empty: it has no word")
    if words == 0:
        raise AppError(f"{text.name}: no word occurs at least {min_count} times; choose a lower --min-count")
    log.info("%s words; %s distinct words occur at least %d times", f"{text.words:,}", f"{words:,}", min_count)
    return text
