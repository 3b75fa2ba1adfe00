"""``make demo``: word vectors of the Python documentation, on four ranks.

    mpirun -n 4 python -m lapse.apps.word2vec.demo

Without ``mpirun``, it starts itself on four ranks. It trains, prints the nearest neighbors of some words, and compares
the management techniques in one epoch of each: by messages only, as between hosts, and with shared memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

import numpy as np

import lapse
from lapse.apps._shared import job
from lapse.apps._shared.files import pull_rows
from lapse.apps._shared.options import Group, new_parser, positive_int
from lapse.apps._shared.training import Training
from lapse.apps.word2vec import options as word2vec_options

RANKS = 4
EPOCHS = 8
#: The training stops after so many seconds: a demo is short.
MAX_RUNTIME = 75
WORDS = ("thread", "socket", "exception", "float", "directory")
NEIGHBORS = 6
#: Set by launchers for each rank: PMI (MPICH), PMIx and Open MPI, Slurm.
LAUNCHED = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def main(argv: list[str] | None = None) -> None:
    """Run the demo."""
    args = parse(argv)
    if not any(name in os.environ for name in LAUNCHED):
        start_ranks(args.ranks, sys.argv[1:] if argv is None else argv)
    with job.start() as comm:
        run(args, comm)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options of the demo."""
    parser = new_parser("word2vec.demo", __doc__)
    group = Group(parser)
    group.add("--epochs", positive_int, "number of passes over the text", default=EPOCHS)
    group.add("--ranks", positive_int, "number of ranks to start", default=RANKS)
    return parser.parse_args(argv)


def start_ranks(ranks: int, argv: list[str]) -> None:
    """Replace this process by ``mpirun`` (of the MPI that Lapse was built with), which starts this program."""
    from lapse import _mpi_loader

    mpirun = _mpi_loader.launcher_path()
    if mpirun is None:
        sys.exit(f"error: no mpirun next to the library of {_mpi_loader.describe_build()}")
    for name, value in _mpi_loader.OPENMPI_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    program = [sys.executable, "-m", "lapse.apps.word2vec.demo"]
    os.execv(mpirun, [mpirun, "-n", str(ranks), *program, *argv])


def run(args: argparse.Namespace, comm) -> None:
    """Train, print neighbors, compare."""
    from lapse.apps.word2vec import train

    options = training_options("--epochs", args.epochs, "--max-runtime", MAX_RUNTIME)
    training = Training("word2vec", comm, options)
    say(comm, f"Training word vectors on the documentation of this Python, on {comm.size} ranks.")
    text = train.survey(comm, train.locate_corpus(comm), options.workers, train.Selection(options.min_count))
    plan = train.make_plan(comm, options, text)
    with train.open_server(comm, plan, training.seed) as server:
        train.train(server, plan, training)
        vectors = server.run(fetch_vectors, len(text.vocabulary))[0]
    training.exit_if_interrupted()
    if comm.rank == 0:
        print("\nNearest neighbors:\n" + neighbor_table(text.vocabulary, vectors), flush=True)
    say(comm, "\nOne epoch with each management technique, by messages as between hosts:")
    rows = []
    if lapse.sharing_ranks(comm) > 1:
        rows = [{**measure(comm, text, "lapse2"), "management": "lapse2, shared memory"}]
    with by_messages():
        rows = [measure(comm, text, management) for management in ("classic", "lapse", "lapse2")] + rows
    say(comm, comparison_table(rows))
    training.finish(vocab=len(text.vocabulary), words_per_second=train.words_per_second(training.history))


def training_options(*options) -> argparse.Namespace:
    """The defaults of the application, except for these options."""
    return word2vec_options.parse([str(option) for option in options])


def say(comm, text: str) -> None:
    """Print on rank 0."""
    if comm.rank == 0:
        print(text, flush=True)


def fetch_vectors(kv, words: int) -> np.ndarray | None:
    """All word vectors, on the first worker."""
    from lapse.apps.word2vec.train import SAVED_ROWS, word_keys

    return np.concatenate(list(pull_rows(kv, word_keys(words), SAVED_ROWS))) if kv.id == 0 else None


def neighbor_table(vocabulary, vectors: np.ndarray) -> str:
    """A line per word of `WORDS` that is in the vocabulary."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    known = [word for word in WORDS if word in vocabulary.index]
    return "\n".join(f"  {word:<10} {', '.join(neighbors(vocabulary, unit, word))}" for word in known)


def neighbors(vocabulary, unit: np.ndarray, word: str) -> list[str]:
    """The words whose vectors have the most similar direction."""
    query = vocabulary.index[word]
    similarity = unit @ unit[query]
    similarity[query] = -np.inf
    return [vocabulary.words[i] for i in np.argsort(-similarity)[:NEIGHBORS]]


@contextlib.contextmanager
def by_messages():
    """Servers that the body creates share no memory, as if each rank had a host of its own."""
    before = os.environ.get("LAPSE_SHARED_MEMORY")
    os.environ["LAPSE_SHARED_MEMORY"] = "0"
    try:
        yield
    finally:
        del os.environ["LAPSE_SHARED_MEMORY"]
        if before is not None:
            os.environ["LAPSE_SHARED_MEMORY"] = before


def measure(comm, text, management: str) -> dict:
    """Train one epoch from the start; returns its costs."""
    from lapse.apps.word2vec import train

    options = training_options("--epochs", 1, "--management", management)
    training = Training("word2vec", comm, options)
    plan = train.make_plan(comm, options, text)
    with train.open_server(comm, plan, training.seed) as server:
        train.train(server, plan, training)
    training.exit_if_interrupted()
    epoch, stats = training.history[-1], training.stats
    return {
        "management": management,
        "seconds": epoch["seconds"],
        "local": epoch["local"],
        "messages": stats["messages_sent"],
        "megabytes": stats["bytes_sent"] / 1e6,
        "loss": epoch["loss"],
    }


def comparison_table(rows: list[dict]) -> str:
    """The measurements, a line per technique."""
    head = f"  {'management':<22}{'seconds':>9}{'local':>9}{'messages':>12}{'MB sent':>10}{'loss':>8}"
    return "\n".join(
        [head]
        + [
            f"  {row['management']:<22}{row['seconds']:>9.1f}{row['local']:>9.1%}"
            f"{row['messages']:>12,}{row['megabytes']:>10,.0f}{row['loss']:>8.3f}"
            for row in rows
        ]
    )


if __name__ == "__main__":
    main()
