"""Group ``word2vec``: seconds per epoch of skip-gram with the default setting of `lapse.apps.word2vec`.

Two workers of one rank against the same kernel and threads on a plain array (the cost of the server) and, where it is
installed, against gensim with two workers and the same options; two ranks of one worker against gensim, and by
messages only against shared memory. The text is the documentation of this Python.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lapse.bench._groups import NORMAL, Context, Group, Job
from lapse.bench._rows import Row, at_most
from lapse.bench._timing import interleaved

ARRAY = "the same kernel and threads on a plain array"
GENSIM = "gensim, 2 workers, sentences in memory"
SHARED = "the same with shared memory"
#: Sentences of the text in a smoke test.
QUICK_SENTENCES = 500


def run(context: Context) -> Iterator[Row]:
    """Two workers of one rank, in this process; or two ranks, started by this process."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = text_for(context, Path(folder))
        yield from (_workers if context.ranks else _ranks)(context, corpus)


def text_for(context: Context, folder: Path) -> Path:
    """The text to train on."""
    from lapse.apps.word2vec import stdlib_corpus

    corpus = stdlib_corpus.standard_corpus()
    if not context.quick:
        return corpus
    part = folder / "part.txt"
    with open(corpus, encoding="utf-8") as whole, open(part, "w", encoding="utf-8") as file:
        file.writelines(line for _, line in zip(range(QUICK_SENTENCES), whole, strict=False))
    return part


def options(corpus: Path, workers: int) -> argparse.Namespace:
    """The options of the application: its defaults but for these."""
    from lapse.apps.word2vec import options as word2vec_options

    return word2vec_options.parse(["--corpus", str(corpus), "--workers", str(workers), "--no-progress"])


# --- one rank -------------------------------------------------------------------------------


def _workers(context: Context, corpus: Path) -> list[Row]:
    from lapse import _mpi_loader
    from lapse.apps.word2vec import train
    from lapse.apps.word2vec.survey import survey
    from lapse.apps.word2vec.vocabulary import Selection
    from lapse.bench.plain import word2vec as plain

    comm, args = _mpi_loader.load().COMM_WORLD, options(corpus, workers=2)
    text = survey(comm, [corpus], args.workers, Selection(args.min_count))
    plan = train.make_plan(comm, args, text)
    with train.open_server(comm, plan, args.seed) as server:
        on_array = plain.Run(args, text)
        turns = {"ours": _on_server(server, plan), "array": lambda epoch: on_array.train_epoch(epoch)[0]}
        if gensims := in_gensim(corpus, args):
            turns["gensim"] = gensims
        epochs = dict.fromkeys(turns, 0)

        def next_epoch(name: str) -> float:
            epochs[name] += 1
            return turns[name](epochs[name] % args.epochs) * 1e3

        found = interleaved({name: lambda name=name: next_epoch(name) for name in turns}, context.rounds(15))
    references = {"array": ("cost of the server", ARRAY, 1.25), "gensim": ("against gensim", GENSIM, 0.8)}
    return [
        context.row(
            title,
            {"management": "lapse2"},
            found["ours"],
            found[name],
            unit="ms/epoch",
            workers=2,
            reference_name=what,
            target=at_most(limit),
        )
        for name, (title, what, limit) in references.items()
        if name in found
    ]


class Never:
    """Takes the place of a `Training`, which would check signals and the clock."""

    @staticmethod
    def should_stop() -> bool:
        """Never: there are neither signals nor a time limit."""
        return False

    @staticmethod
    def note_computing(_seconds: float) -> None:
        """Computing is not timed."""


def _on_server(server, plan) -> Callable[[int], float]:
    from lapse.apps.word2vec import train

    def one(epoch: int) -> float:
        start = time.perf_counter()
        server.run(train.train_epoch, server, plan, Never, epoch, None)
        return time.perf_counter() - start

    return one


def in_gensim(corpus: Path, args: argparse.Namespace) -> Callable[[int], float] | None:
    """A function that trains an epoch in gensim and returns its seconds; None if gensim is not installed."""
    try:
        from gensim.models import Word2Vec
    except ImportError:
        return None
    from lapse.apps.word2vec.corpus import Share

    sentences = list(Share(corpus).sentences())
    model = Word2Vec(
        vector_size=args.dim,
        window=args.window,
        min_count=args.min_count,
        sg=1,
        negative=args.negative,
        sample=args.sample,
        alpha=args.alpha,
        min_alpha=args.min_alpha,
        workers=2,
        seed=args.seed,
    )
    model.build_vocab(sentences)

    def one(epoch: int) -> float:
        start = time.perf_counter()
        model.train(sentences, total_examples=model.corpus_count, total_words=model.corpus_total_words, epochs=1)
        return time.perf_counter() - start

    return one


# --- two ranks ------------------------------------------------------------------------------


def _ranks(context: Context, corpus: Path) -> list[Row]:
    turns = {"shared": lambda: _by_ranks(context, corpus, "1"), "messages": lambda: _by_ranks(context, corpus, "0")}
    if gensims := in_gensim(corpus, options(corpus, workers=1)):
        turns["gensim"] = lambda: statistics.median(gensims(epoch) for epoch in range(3)) * 1e3
    found = interleaved(turns, context.rounds(5), warm_ups=0)
    parameters = {"management": "lapse2"}
    rows = [
        context.row(
            "2 ranks by messages",
            parameters,
            found["messages"],
            found["shared"],
            unit="ms/epoch",
            reference_name=SHARED,
            target=at_most(2.5),
        )
    ]
    if gensims:
        rows.append(
            context.row(
                "2 ranks against gensim",
                parameters,
                found["shared"],
                found["gensim"],
                unit="ms/epoch",
                reference_name=GENSIM,
                target=at_most(1.0),
            )
        )
    return rows


def _by_ranks(context: Context, corpus: Path, shares_memory: str) -> float:
    """Milliseconds of the median epoch of a run on two ranks."""
    from lapse.bench import _launch

    with tempfile.TemporaryDirectory() as folder:
        metrics = os.path.join(folder, "metrics.jsonl")
        program = [
            "-m",
            "lapse.apps.word2vec",
            "--corpus",
            str(corpus),
            "--epochs",
            "1" if context.quick else "5",
            "--no-progress",
            "--metrics",
            metrics,
        ]
        job = subprocess.run(
            _launch.command(2, program),
            env=_launch.environment({"LAPSE_SHARED_MEMORY": shares_memory}),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if job.returncode:
            raise RuntimeError(f"word2vec on 2 ranks exited with status {job.returncode}: {job.stderr[-2000:]}")
        lines = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    return statistics.median(line["seconds"] for line in lines) * 1e3


GROUPS = (Group("word2vec", "word vectors, against a plain array and gensim", run, jobs=(Job(1), Job(0, when=NORMAL))),)
