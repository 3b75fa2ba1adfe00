"""The training run: corpus, vocabulary, server, epochs, model files.

Every step is collective over the ranks. A worker trains its own share of the corpus, the same one in each epoch; the
learning rate decreases with the words of the share that it has trained, so that ranks need not exchange their progress,
and a run can be repeated.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared import job, streams
from lapse.apps._shared.files import pull_rows, write_arrays, write_model
from lapse.apps._shared.metrics import local_share
from lapse.apps._shared.options import pace_options
from lapse.apps._shared.placement import every, log_replicated, make_server
from lapse.apps._shared.progress import Progress
from lapse.apps._shared.recording import MOST_KEYS
from lapse.apps._shared.stdlib import write_temporary
from lapse.apps._shared.training import Training
from lapse.apps.word2vec import model_io, phrases, placement, start, stdlib_corpus, synthetic
from lapse.apps.word2vec._kernel import Trainer
from lapse.apps.word2vec.options import LENGTH_PER_WORD
from lapse.apps.word2vec.placement import Placement
from lapse.apps.word2vec.survey import survey
from lapse.apps.word2vec.text import Text
from lapse.apps.word2vec.vocabulary import Selection, Vocabulary

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: Vectors that are pulled at once.
SAVED_ROWS = 4096
#: Purposes of random streams; see `streams`.
SUBSAMPLING, WINDOWS = range(2)
#: What ``--report`` calls the two vectors of a word.
ROLES = ("input", "output")


@dataclass(frozen=True)
class Plan:
    """What all workers know for training."""

    args: argparse.Namespace
    text: Text
    placement: Placement


@dataclass(frozen=True)
class EpochResult:
    """The figures of an epoch over all workers of all ranks; the same on every rank.

    `done` is, by worker, the fraction of its share that is trained.
    """

    loss: float | None
    pairs: int
    words: int
    done: list[float]


def run(args: argparse.Namespace, comm: Intracomm) -> None:
    """Train as the options say and print the ``RESULT`` line."""
    training = Training("word2vec", comm, args, quality=("words_per_second",))
    if training.repeat_result():
        return
    args = training.args
    if not args.sg and args.negatives_per == "pair":
        raise job.AppError("--negatives-per pair is for skip-gram: with --sg 0 all pairs of a word are one prediction")
    begin = read_start(comm, args)
    text = read_text(comm, args, begin.words if begin else ())
    plan = make_plan(comm, args, text)
    words = enumerate(text.vocabulary.words[:MOST_KEYS])
    hottest = [(f"{word}, {role}", 2 * number + offset) for number, word in words for offset, role in enumerate(ROLES)]
    training.note_hot_keys(hottest, plan.placement.replicated_keys)
    with open_server(comm, plan, training.seed) as server:
        if begin and training.resumed_from is None:
            start.put(server, begin, text.vocabulary)
        training.restore(server)
        train(server, plan, training)
        if args.output is not None and not training.is_interrupted:
            last = model_io.file_name(model_io.WORD_VECTORS, args.binary)
            write_model(server, args.output, last, save, text.vocabulary, args.dim, args.binary)
    training.finish(vocab=len(text.vocabulary), words_per_second=words_per_second(training.history))


def words_per_second(history: list[dict]) -> float:
    """Over all epochs."""
    seconds = sum(each["seconds"] for each in history)
    return sum(each["seconds"] * each["words_per_second"] for each in history) / max(seconds, 1e-9)


# --- corpus ----------------------------------------------------------------------------------


def read_start(comm: Intracomm, args: argparse.Namespace) -> start.Start | None:
    """Find the vectors to continue from; ``--dim`` becomes their length. Collective."""
    if args.start_vectors is None:
        return None
    found = start.find(comm, args.start_vectors)
    if "dim" in args.given and args.dim != found.dim:
        raise job.AppError(
            f"--dim is {args.dim}, but the vectors of --start-vectors {found.path} have {found.dim} numbers: omit --dim"
        )
    args.dim = found.dim
    return found


def read_text(comm: Intracomm, args: argparse.Namespace, words: Sequence[str] = ()) -> Text:
    """Read the corpus, or generate the synthetic text; `words` are trained in any case. Collective.

    Raises
    ------
    AppError
        If both are asked for, or no word is frequent enough.
    """
    selection = Selection(args.min_count, args.max_vocab, words)
    if args.synthetic_words is None:
        if args.synthetic_length is not None:
            raise job.AppError("--synthetic-length requires --synthetic-words N")
        return survey(comm, locate_corpus(comm, args.corpus), args.workers, selection, joining_of(args))
    if args.phrases is not None:
        raise job.AppError("--phrases and --synthetic-words exclude each other: generated words form no phrases")
    if args.corpus is not None:
        raise job.AppError("--corpus and --synthetic-words exclude each other: choose one text")
    length = args.synthetic_length or LENGTH_PER_WORD * args.synthetic_words
    recipe = synthetic.Recipe(args.synthetic_words, length, args.seed)
    return synthetic.survey(comm, recipe, args.workers, selection)


def joining_of(args: argparse.Namespace) -> phrases.Options | None:
    """How phrases are joined."""
    if args.phrases is not None:
        return phrases.Options(args.phrases, args.phrases_threshold, args.phrases_min_count)
    for name in ("phrases_threshold", "phrases_min_count"):
        if name in args.given:
            raise job.AppError(f"--{name.replace('_', '-')} requires --phrases")
    return None


def locate_corpus(comm: Intracomm, chosen: list[Path] | Path | None = None) -> list[str]:
    """The files to train on, as `survey` takes them; by default, the Python documentation of rank 0."""
    if chosen is not None:
        return [os.fspath(each) for each in ([chosen] if isinstance(chosen, Path) else chosen)]
    path = job.on_rank_0(comm, stdlib_corpus.standard_corpus)
    size = job.on_rank_0(comm, os.path.getsize, path)
    here = os.path.isfile(path) and os.path.getsize(path) == size
    if all(comm.allgather(here)):
        return [os.fspath(path)]
    # other hosts may have another Python, but all must train on the same text
    content = job.on_rank_0(comm, path.read_text, "utf-8")
    return [os.fspath(job.collectively(comm, lambda: path if here else write_temporary(content)))]


# --- training --------------------------------------------------------------------------------


def make_plan(comm: Intracomm, args: argparse.Namespace, text: Text) -> Plan:
    """Make the decisions that hold for all epochs. Collective."""
    chosen = job.collectively(comm, placement.decide, comm, args, text)
    log_replicated(chosen, 2 * len(text.vocabulary), "vectors", every(chosen.words_per_round, "words"))
    return Plan(args, text, chosen)


def open_server(comm: Intracomm, plan: Plan, seed: int) -> lapse.Server:
    """A server with the parameters initialized: inputs random, outputs zero.

    Inputs are as small as in the word2vec program; those of CBOW, of which means are taken, twice as large, as in
    gensim: the objective on held-out text is 1% better.
    """
    args = plan.args
    keys = 2 * len(plan.text.vocabulary)
    server = make_server(comm, args, plan.placement, keys, args.dim, seed)
    bound = (0.5 if args.sg else 1.0) / args.dim
    server.initialize(np.arange(0, keys, 2), lapse.UniformValues(-bound, bound))
    return server


def train(server: lapse.Server, plan: Plan, training: Training) -> None:
    """Run the remaining epochs; the first of them may be partly trained."""
    begun = (training.state or {}).get("done")
    for epoch in training.epochs(server):
        result = server.run(train_epoch, server, plan, training, epoch, begun)[0]
        training.meet()
        training.end_epoch(
            loss=result.loss,
            pairs=result.pairs,
            words_per_second=result.words / training.seconds,
            state={"done": result.done} if training.is_partial else None,
        )
        begun = None


def train_epoch(
    kv: lapse.Worker, server: lapse.Server, plan: Plan, training: Training, epoch: int, begun: list[float] | None
) -> EpochResult:
    """Train the share of a worker once, without what another process has trained of it (`begun`)."""
    trainer = make_trainer(kv, plan, epoch)
    if (most := plan.placement.replication.max_pending) is not None:
        kv.pace_rounds(max_pending=most, max_late=most // 2)  # if they come a round late, many ranks diverge
    schedule = Schedule(plan.args, plan.text.share_words[kv.id], epoch)
    progress = Progress.of_epoch(kv, plan.args, epoch, plan.text.words, "words")

    def figures() -> dict[str, str]:
        loss = f"{trainer.loss / trainer.pairs:.4f}" if trainer.pairs else "none (no pairs)"
        return {"loss": loss, "local": f"{100 * local_share(server.stats()):.0f}%"}

    behind = _share_behind(kv, begun)
    skipped = 0
    for block in plan.text.blocks(kv.id):
        if schedule.fraction < behind:
            schedule.advance(block.read)
            skipped = schedule.words
            continue
        if training.should_stop():
            break
        trainer.train(block.words, block.ends, *schedule.advance(block.read))
        progress.show(schedule.fraction * plan.text.words, figures)
    trainer.finish()
    training.note_computing(trainer.computing_seconds)
    progress.close()
    return _sum_up(kv, trainer, schedule, skipped)


def _share_behind(kv: lapse.Worker, begun: list[float] | None) -> float:
    """The fraction of its share that a worker need not train again; with another number of workers, the mean."""
    if begun is None:
        return 0.0
    return begun[kv.id] if len(begun) == kv.num_workers else sum(begun) / len(begun)


def make_trainer(kv: lapse.Worker, plan: Plan, epoch: int) -> Trainer:
    """The kernel for one worker and one epoch."""
    args, chosen = plan.args, plan.placement
    is_replicated = np.zeros(2 * len(plan.text.vocabulary), dtype=np.uint8)
    is_replicated[chosen.replicated_keys] = 1
    return Trainer(
        kv,
        dim=args.dim,
        is_localized=chosen.is_localized,
        in_place=chosen.in_place,
        borrows_units=chosen.replication.in_place,
        is_replicated=is_replicated,
        block_units=chosen.block_units,
        lookahead=chosen.lookahead,
        is_cbow=not args.sg,
        seeds=stream_seeds(args, epoch, kv.id),
        **pace_options(args),
        **placement.pair_options(args, plan.text.vocabulary, chosen.unit),
    )


def stream_seeds(args: argparse.Namespace, epoch: int, worker: int) -> list[int]:
    """The starts of the kernel's random streams."""
    return [streams.start(args.seed, epoch, worker, purpose) for purpose in (SUBSAMPLING, WINDOWS)]


def _sum_up(kv: lapse.Worker, trainer: Trainer, schedule: Schedule, skipped: int) -> EpochResult:
    done = np.zeros(kv.num_workers)
    done[kv.id] = schedule.fraction
    mine = np.array([trainer.loss, trainer.pairs, schedule.words - skipped], dtype=np.float64)
    loss, pairs, words, *done = kv.allreduce(np.concatenate([mine, done])).tolist()
    return EpochResult(loss / pairs if pairs else None, int(pairs), int(words), done)


class Schedule:
    """The learning rate: decreases linearly over all epochs with the words of a worker's share.

    Parameters
    ----------
    args
        With ``alpha``, ``min_alpha`` and ``epochs``.
    share_words
        Number of words of the share.
    epoch
        Number of this epoch, from 0.
    """

    def __init__(self, args: argparse.Namespace, share_words: int, epoch: int) -> None:
        self._args = args
        self._share_words = share_words
        self._epoch = epoch
        self.words = 0

    @property
    def fraction(self) -> float:
        """The fraction of this epoch that is done."""
        return self.words / self._share_words if self._share_words else 1.0

    @property
    def alpha(self) -> float:
        """The current rate."""
        done = min((self._epoch + self.fraction) / self._args.epochs, 1.0)
        return self._args.alpha - (self._args.alpha - self._args.min_alpha) * done

    def advance(self, words: int) -> tuple[float, float]:
        """The rates before and after a block of `words`."""
        before = self.alpha
        self.words += words
        return before, self.alpha


# --- the model -------------------------------------------------------------------------------


def save(kv: lapse.Worker, folder: Path, vocabulary: Vocabulary, dim: int, binary: bool) -> None:
    """Write word vectors, context vectors and counts into a folder."""
    words = vocabulary.words
    for stem, offset in ((model_io.WORD_VECTORS, 0), (model_io.CONTEXT_VECTORS, 1)):
        path = folder / model_io.file_name(stem, binary)
        model_io.write_vectors(path, words, pull_rows(kv, word_keys(len(words)) + offset, SAVED_ROWS), dim, binary)
    blocks = ((rows,) for rows in pull_rows(kv, word_keys(len(words)), SAVED_ROWS))
    write_arrays({folder / model_io.MAPPED: (len(words), dim)}, blocks)
    model_io.write_counts(folder / model_io.COUNTS, words, vocabulary.counts)


def word_keys(words: int) -> np.ndarray:
    """The keys of all word vectors; the context vectors have the next keys."""
    return np.arange(0, 2 * words, 2)
