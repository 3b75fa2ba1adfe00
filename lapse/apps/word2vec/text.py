"""A corpus as the training needs it: surveyed once, then numbers of words, a block at a time.

The survey reads each share once, with one thread per worker, and keeps the numbers of its words; a share that is too
large for that (`corpus.MAX_KEPT_WORDS`) is read again in each epoch.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lapse.apps._shared import inputs
from lapse.apps._shared.inputs import Input
from lapse.apps._shared.job import AppError, collectively
from lapse.apps.word2vec import corpus
from lapse.apps.word2vec._encoder import Encoder
from lapse.apps.word2vec.vocabulary import Selection, Vocabulary, merge_counts

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: Words that the kernel receives at a time.
BLOCK_WORDS = 10_000
#: Texts look wrong if words are longer than this on average, or if less than this share of the words is left.
LONG_WORDS, FEW_LEFT = 30, 0.5


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
    source
        The file; None if all shares are kept.
    """

    name: str
    vocabulary: Vocabulary
    share_words: list[int]
    kept: dict[int, Sentences]
    source: Input | None = None

    @property
    def words(self) -> int:
        """The number of words of the corpus, frequent or not."""
        return sum(self.share_words)

    def blocks(self, worker: int) -> Iterator[Block]:
        """Read the share of a worker from its start."""
        if worker in self.kept:
            yield from self.kept[worker].blocks()
            return
        if self.source is None:
            raise ValueError(f"the share of worker {worker} is neither kept nor in a file")
        encoder = Encoder(self.vocabulary.words)
        share = corpus.Share(self.source, worker, len(self.share_words))
        for _ in share.feed(encoder):
            if encoder.collected >= BLOCK_WORDS:
                yield from Sentences.without_rare_words(*encoder.take()).blocks()
        yield from Sentences.without_rare_words(*encoder.take()).blocks()


def survey(comm: Intracomm, path: str, workers: int, selection: Selection) -> Text:
    """Count the words of the corpus, each rank those of its own workers. Collective."""
    source = inputs.share(comm, path)
    shares = range(comm.rank * workers, (comm.rank + 1) * workers)
    surveys, encoders = collectively(comm, _survey_shares, source, shares, comm.size * workers)
    counts = sum((found.counts for found in surveys[1:]), surveys[0].counts)
    for found in surveys:
        found.counts = Counter()  # the words travel once, in the reduction
    everything = [found for group in comm.allgather(surveys) for found in group]
    if comm.rank == 0:
        for message in corpus.describe_bad_lines(source.name, everything, not source.is_direct):
            log.warning(message)
    vocabulary = _merge_vocabulary(comm, counts, selection)
    kept = {
        share: _number(encoder, vocabulary)
        for share, encoder, found in zip(shares, encoders, surveys, strict=True)
        if encoder.collected == found.words
    }
    text = checked(
        Text(source.name, vocabulary, [found.words for found in everything], kept, source), selection.min_count
    )
    has_pairs = comm.allreduce(int(_may_have_pairs(text, shares))) > 0
    if comm.rank == 0:
        for message in [*_doubt_markup(source), *doubts(text, everything, has_pairs)]:
            log.warning("%s: %s", text.name, message)
    return text


def checked(text: Text, min_count: int) -> Text:
    """Log the size of a text; raise `AppError` if no word is frequent enough."""
    words = len(text.vocabulary)
    if text.words == 0:
        raise AppError(f"{text.name} is empty: it has no word")
    if words == 0:
        raise AppError(f"{text.name}: no word occurs at least {min_count} times; choose a lower --min-count")
    log.info("%s words; %s distinct words occur at least %d times", f"{text.words:,}", f"{words:,}", min_count)
    return text


def doubts(text: Text, surveys: list[corpus.Survey], has_pairs: bool) -> list[str]:
    """What looks wrong in a text that can be read, a line each.

    Parameters
    ----------
    surveys
        Those of all shares.
    has_pairs
        Whether a sentence has two words of the vocabulary.
    """
    vocabulary = text.vocabulary
    found = []
    if len(vocabulary) == 1:
        found.append(f"only one word is trained, {vocabulary.words[0][:40]!r}: is this the right file?")
    elif not has_pairs:
        found.append("no sentence has two words to train: a line must be a sentence, words separated by spaces")
    letters = np.array([len(word) for word in vocabulary.words])
    if (mean := float(letters @ vocabulary.counts) / vocabulary.total) > LONG_WORDS:
        found.append(f"words have {mean:.0f} characters on average: are they separated by spaces?")
    if (share := vocabulary.total / text.words) < FEW_LEFT:
        found.append(f"--min-count leaves {share:.1%} of the words: a smaller one keeps more")
    lines, bad = (sum(getattr(each, name) for each in surveys) for name in ("lines", "bad_lines"))
    if bad > lines / 2:
        found.append("most lines are not UTF-8: is this another encoding? Convert it first (iconv -f LATIN1 -t UTF-8)")
    if lines <= 1 and text.words > corpus.MAX_SENTENCE and text.source is not None and text.source.is_direct:
        found.append(f"all words are in one line: it is cut into sentences of {corpus.MAX_SENTENCE:,} words")
    return found


def _doubt_markup(source: Input) -> list[str]:
    with source.open() as file:
        markup = inputs.markup_of(file.read(inputs.HEAD))
    return [f"this looks like {markup}, whose syntax is trained, too: take the text out of it first"] if markup else []


def _may_have_pairs(text: Text, shares: range) -> bool:
    return any(
        share not in text.kept or bool((np.diff(text.kept[share].ends, prepend=0) > 1).any()) for share in shares
    )


def _survey_shares(source: Input, shares: range, count: int) -> tuple[list[corpus.Survey], list[Encoder]]:
    encoders = [Encoder() for _ in shares]

    def survey_share(index: int, encoder: Encoder) -> corpus.Survey:
        return corpus.Share(source, index, count).survey(encoder)

    with ThreadPoolExecutor(len(shares)) as threads:
        return list(threads.map(survey_share, shares, encoders)), encoders


def _merge_vocabulary(comm: Intracomm, counts: Counter, selection: Selection) -> Vocabulary:
    merged = comm.reduce(counts, op=merge_counts)  # None on the other ranks
    return comm.bcast(None if merged is None else selection.of(merged))


def _number(encoder: Encoder, vocabulary: Vocabulary) -> Sentences:
    """Replace the encoder's numbers of the words of a share by those of the vocabulary."""
    index = vocabulary.index
    numbers = np.array([index.get(word, -1) for word in encoder.words()] or [-1], np.int32)
    ids, ends = encoder.take()
    return Sentences.without_rare_words(numbers[ids], ends)
