"""The first pass over a corpus: what is in it, which words are trained, and what looks wrong.

Each share is read once, with one thread per worker, and the numbers of its words are kept; a share that is too large
for that (`corpus.MAX_KEPT_WORDS`) is read again in each epoch. If phrases are asked for, they are found and joined
then: what the rest of the program takes for words are words and phrases.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from lapse.apps._shared import inputs
from lapse.apps._shared.inputs import Input
from lapse.apps._shared.job import collectively, on_rank_0
from lapse.apps.word2vec import corpus, files, phrases
from lapse.apps.word2vec._encoder import Encoder
from lapse.apps.word2vec.corpus import Survey
from lapse.apps.word2vec.phrases import Joining, Numbered
from lapse.apps.word2vec.text import Reading, Sentences, Text, checked
from lapse.apps.word2vec.vocabulary import Selection, Vocabulary, merge_counts

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: Texts look wrong if words are longer than this on average, or if less than this share of the words is left.
LONG_WORDS, FEW_LEFT = 30, 0.5


def survey(
    comm: Intracomm,
    names: Sequence[str | os.PathLike],
    workers: int,
    selection: Selection,
    joining: phrases.Options | None = None,
) -> Text:
    """Count the words of a corpus, each rank those of its own workers. Collective.

    Parameters
    ----------
    names
        See `files`.
    workers
        The number of each rank.
    joining
        How phrases are found; None: not at all.
    """
    sources = files.share(comm, names)
    division = files.divide(sources, comm.size * workers)
    shares = [_Share(worker, division[worker]) for worker in range(comm.rank * workers, (comm.rank + 1) * workers)]
    collectively(comm, _survey_all, shares)
    found = [each for group in comm.allgather([share.surveys for share in shares]) for one in group for each in one]
    if comm.rank == 0:
        _report_bad_lines(sources, found)
    name = files.name_of(sources)
    text = _number(comm, name, shares, selection) if joining is None else _join(comm, name, shares, selection, joining)
    text = checked(text, selection.min_count)
    has_pairs = comm.allreduce(int(_may_have_pairs(text, shares))) > 0
    if comm.rank == 0:
        is_plain = len(sources) == 1 and sources[0].is_direct
        for message in [*_doubt_markup(sources[0]), *doubts(text, [each for _, each in found], has_pairs, is_plain)]:
            log.warning("%s: %s", text.name, message)
    return text


class _Share:
    """What a worker reads, and what of it is kept.

    Attributes
    ----------
    surveys
        Of each piece: the number of its file, and its lines and words.
    counts
        Of each word; None once they have been added up.
    """

    def __init__(self, worker: int, pieces: Sequence[tuple[int, corpus.Share]]) -> None:
        self.worker, self._pieces = worker, pieces
        self._encoder = Encoder()
        self.surveys: list[tuple[int, Survey]] = []
        self.counts: Counter | None = None
        self._kept: Numbered | None = None
        self._joined = 0  # passes of phrases that are joined in what is kept

    @property
    def pieces(self) -> list[corpus.Share]:
        return [piece for _, piece in self._pieces]

    @property
    def words(self) -> int:
        """Words, frequent or not, before phrases are joined."""
        return sum(found.words for _, found in self.surveys)

    def survey(self) -> None:
        """Read all of it once."""
        encoder = self._encoder
        for file, piece in self._pieces:
            found = Survey()
            for _ in piece.feed(encoder, found):
                if encoder.collected > corpus.MAX_KEPT_WORDS:
                    encoder.forget()
            self.surveys.append((file, found))
        self.counts = Counter(dict(zip(encoder.words(), encoder.counts().tolist(), strict=True)))

    def number(self, vocabulary: Vocabulary) -> None:
        """Replace the encoder's numbers of words by those of a vocabulary, -1 for words that it lacks."""
        encoder, self._encoder = self._encoder, Encoder()  # the words are no longer needed
        if encoder.collected == self.words:
            index = vocabulary.index
            numbers = np.array([index.get(word, -1) for word in encoder.words()] or [-1], np.int32)
            ids, ends = encoder.take()
            self._kept = numbers[ids], ends

    def kept(self, joinings: Sequence[Joining]) -> Numbered | None:
        """Its sentences with phrases, if they are kept; `joinings` has those that were passed before."""
        if self._kept is not None:
            for joining in joinings[self._joined :]:
                self._kept = joining.of(*self._kept)
            self._joined = len(joinings)
        return self._kept

    def texts(self, reading: Reading) -> Iterator[Numbered]:
        """Its sentences with phrases, kept or read again."""
        kept = self.kept(reading.joinings)
        return iter([kept]) if kept is not None else reading.read(self.pieces)


def _survey_all(shares: list[_Share]) -> None:
    with ThreadPoolExecutor(len(shares)) as threads:
        list(threads.map(_Share.survey, shares))


def _number(comm: Intracomm, name: str, shares: list[_Share], selection: Selection) -> Text:
    """The text without phrases."""
    vocabulary = _merge_vocabulary(comm, shares, selection)
    for share in shares:
        share.number(vocabulary)
    lengths = [words for each in comm.allgather([share.words for share in shares]) for words in each]
    return _text(name, vocabulary, lengths, shares, Reading(vocabulary.words))


def _join(comm: Intracomm, name: str, shares: list[_Share], selection: Selection, joining: phrases.Options) -> Text:
    """The text with phrases."""
    least = min(selection.min_count, joining.min_count)
    single = _merge_vocabulary(comm, shares, Selection(least, start=selection.start))
    for share in shares:
        share.number(single)
    words = list(single.words)

    def texts(joinings: Sequence[Joining]) -> Iterator[Numbered]:
        reading = Reading(single.words, joinings)
        return (text for share in shares for text in share.texts(reading))

    joinings = phrases.find(comm, texts, words, joining)
    counts, lengths = collectively(comm, _count, shares, Reading(single.words, joinings), len(words))
    total = comm.reduce(counts)  # None on the other ranks
    vocabulary = on_rank_0(comm, lambda of_all: selection.of(dict(zip(words, of_all.tolist(), strict=True))), total)
    numbers = np.array([*(vocabulary.index.get(word, -1) for word in words), -1], np.int32)
    everyones = [length for each in comm.allgather(lengths) for length in each]
    return _text(name, vocabulary, everyones, shares, Reading(single.words, joinings, numbers))


def _count(shares: list[_Share], reading: Reading, number: int) -> tuple[np.ndarray, list[int]]:
    """How often each word or phrase occurs in these shares, and how many of them each share has."""
    counts, lengths = np.zeros(number, np.int64), []
    for share in shares:
        length = 0
        for ids, _ in share.texts(reading):
            counts += np.bincount(ids[ids >= 0], minlength=number)
            length += len(ids)
        lengths.append(length)
    return counts, lengths


def _text(name: str, vocabulary: Vocabulary, lengths: list[int], shares: list[_Share], reading: Reading) -> Text:
    kept, again = {}, {}
    for share in shares:
        if (sentences := share.kept(reading.joinings)) is None:
            again[share.worker] = share.pieces
        else:
            kept[share.worker] = Sentences.without_rare_words(*reading.renumber(*sentences))
    return Text(name, vocabulary, lengths, kept, again, reading)


def _merge_vocabulary(comm: Intracomm, shares: list[_Share], selection: Selection) -> Vocabulary:
    counts: Counter = Counter()
    for share in shares:
        counts.update(share.counts)
        share.counts = None
    merged = comm.reduce(counts, op=merge_counts)  # None on the other ranks
    return on_rank_0(comm, selection.of, merged)


# --- what looks wrong --------------------------------------------------------------------------------------------


def _report_bad_lines(sources: Sequence[Input], found: Sequence[tuple[int, Survey]]) -> None:
    for number in sorted({file for file, each in found if each.bad_lines}):
        source, surveys = sources[number], [each for file, each in found if file == number]
        for message in corpus.describe_bad_lines(source.name, surveys, not source.is_direct):
            log.warning(message)


def doubts(text: Text, surveys: Sequence[Survey], has_pairs: bool, is_plain: bool) -> list[str]:
    """What looks wrong in a text that can be read, a line each.

    Parameters
    ----------
    surveys
        Those of all shares.
    has_pairs
        Whether a sentence has two words of the vocabulary.
    is_plain
        Whether it is a single file, which is read from the middle, too.
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
    if lines <= 1 and text.words > corpus.MAX_SENTENCE and is_plain:
        found.append(f"all words are in one line: it is cut into sentences of {corpus.MAX_SENTENCE:,} words")
    return found


def _doubt_markup(source: Input) -> list[str]:
    with source.open() as file:
        markup = inputs.markup_of(file.read(inputs.HEAD))
    return [f"this looks like {markup}, whose syntax is trained, too: take the text out of it first"] if markup else []


def _may_have_pairs(text: Text, shares: Sequence[_Share]) -> bool:
    return any(
        share.worker not in text.kept or bool((np.diff(text.kept[share.worker].ends, prepend=0) > 1).any())
        for share in shares
    )
