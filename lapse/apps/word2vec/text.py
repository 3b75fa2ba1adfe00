"""A corpus as training sees it: surveyed once, then numbers of words, a block at a time.

The survey reads each share once, by one thread per worker, and keeps the numbers of its words; only a share that is
too large for that (`corpus.MAX_KEPT_WORDS`) is read again in each epoch.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lapse.apps._shared.files import is_gzip
from lapse.apps._shared.job import AppError, collectively
from lapse.apps.word2vec import corpus
from lapse.apps.word2vec._encoder import Encoder
from lapse.apps.word2vec.vocabulary import Vocabulary, merge_counts

log = logging.getLogger(__name__)

#: Words that the kernel gets at a time.
BLOCK_WORDS = 10_000


@dataclass(frozen=True)
class Block:
    """Some sentences as the kernel takes them: frequent words only, int32; where each ends, int64.

    `read` is how many words they had in the file.
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
        Where each sentence ends, rare words included.
    """

    words: np.ndarray
    ends: np.ndarray
    ends_in_file: np.ndarray

    @classmethod
    def without_rare_words(cls, ids: np.ndarray, ends: np.ndarray) -> Sentences:
        """Leave out the words that have no number (-1)."""
        known = ids >= 0
        before = np.concatenate([[0], np.cumsum(known)])
        return cls(ids[known], before[ends], ends)

    def blocks(self) -> Iterator[Block]:
        """Cut them, without a copy, where a sentence ends and there are `BLOCK_WORDS`."""
        first = start = read = 0
        while first < len(self.ends):
            last = int(np.searchsorted(self.ends_in_file, read + BLOCK_WORDS))
            last = min(last, len(self.ends) - 1)
            end, behind = int(self.ends[last]), int(self.ends_in_file[last])
            yield Block(self.words[start:end], self.ends[first : last + 1] - start, behind - read)
            first, start, read = last + 1, end, behind


@dataclass(frozen=True)
class Text:
    """A corpus, surveyed.

    Attributes
    ----------
    path
        The file.
    vocabulary
        Its frequent words.
    share_words
        How many words (frequent or not) each worker's share has.
    kept
        By the numbers of this rank's workers, what the survey has kept of their shares.
    """

    path: str
    vocabulary: Vocabulary
    share_words: list[int]
    kept: dict[int, Sentences]

    @property
    def words(self) -> int:
        """Words of the corpus, frequent or not."""
        return sum(self.share_words)

    def blocks(self, worker: int) -> Iterator[Block]:
        """Read the share of a worker once."""
        if worker in self.kept:
            yield from self.kept[worker].blocks()
            return
        encoder = Encoder(self.vocabulary.words)
        share = corpus.Share(self.path, worker, len(self.share_words))
        for _ in share.feed(encoder):
            if encoder.collected >= BLOCK_WORDS:
                yield from Sentences.without_rare_words(*encoder.take()).blocks()
        yield from Sentences.without_rare_words(*encoder.take()).blocks()


def survey(comm, path: str, workers: int, min_count: int) -> Text:
    """Count the words of the corpus, each rank those of its own workers. Collective."""
    shares = range(comm.rank * workers, (comm.rank + 1) * workers)
    surveys, encoders = collectively(comm, _survey_shares, path, shares, comm.size * workers)
    counts = sum((found.counts for found in surveys[1:]), surveys[0].counts)
    for found in surveys:
        found.counts = None  # the words travel once, in the reduction
    everything = [found for group in comm.allgather(surveys) for found in group]
    if comm.rank == 0:
        for message in corpus.describe_bad_lines(path, everything, is_gzip(path)):
            log.warning(message)
    vocabulary = _merge_vocabulary(comm, counts, min_count)
    if len(vocabulary) == 0:
        raise AppError(f"{path}: no word occurs at least {min_count} times (--min-count)")
    kept = {share: _number(encoder, vocabulary) for share, encoder, found in zip(shares, encoders, surveys, strict=True)
            if encoder.collected == found.words}
    text = Text(path, vocabulary, [found.words for found in everything], kept)
    log.info("%s words, %s of them different and at least %d times there",
             f"{text.words:,}", f"{len(vocabulary):,}", min_count)
    return text


def _survey_shares(path: str, shares: range, count: int) -> tuple[list[corpus.Survey], list[Encoder]]:
    encoders = [Encoder() for _ in shares]

    def survey_share(index: int, encoder: Encoder) -> corpus.Survey:
        return corpus.Share(path, index, count).survey(encoder)

    with ThreadPoolExecutor(len(shares)) as threads:
        return list(threads.map(survey_share, shares, encoders)), encoders


def _merge_vocabulary(comm, counts: Counter, min_count: int) -> Vocabulary:
    merged = comm.reduce(counts, op=merge_counts)
    return comm.bcast(Vocabulary.from_counts(merged, min_count) if comm.rank == 0 else None)


def _number(encoder: Encoder, vocabulary: Vocabulary) -> Sentences:
    """Give the words of a share, which have the encoder's numbers, those of the vocabulary."""
    index = vocabulary.index
    numbers = np.array([index.get(word, -1) for word in encoder.words()] or [-1], np.int32)
    ids, ends = encoder.take()
    return Sentences.without_rare_words(numbers[ids], ends)
