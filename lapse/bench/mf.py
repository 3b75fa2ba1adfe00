"""Group ``mf``: matrix factorization by DSGD, with the default setting of `lapse.apps.mf`, against plain arrays.

The cost of the server is the time of an epoch of two workers against that of two threads that run the same kernel in
the same order on an array. The ratings are MovieLens 100k if the environment variable LAPSE_DATA names a folder that
contains it, else as many random ones; and fifty times as many, whose values do not fit into a core's caches.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lapse.bench._groups import Context, Group, Job
from lapse.bench._rows import Row, at_most
from lapse.bench._timing import interleaved

#: Rows, columns and ratings, and how many epochs are measured at once.
SMALL, LARGE = (943, 1682, 100_000, 8), (40_000, 20_000, 5_000_000, 1)
QUICK = (60, 40, 800, 1)
ARRAYS = "the same kernel, order and threads on a plain array"


def run(context: Context) -> Iterator[Row]:
    """A row for each matrix."""
    for size in (QUICK,) if context.quick else (SMALL, LARGE):
        yield from measure(context, size)


def measure(context: Context, size: tuple[int, int, int, int]) -> list[Row]:
    """The row of a matrix of this size."""
    import numpy as np

    from lapse import _mpi_loader
    from lapse.apps.mf import matrix, train

    comm = _mpi_loader.load().COMM_WORLD
    args = options()
    share, name = ratings(size)
    plan = train.make_plan(comm, args, matrix.assemble(comm, args.workers, share, None, args.test_fraction, args.seed))
    values = train.start_values(args).values(np.arange(plan.num_keys), plan.model.length, args.seed)
    with train.open_server(comm, plan, args.seed) as server:
        turns = {"ours": epochs_on_server(server, plan), "arrays": epochs_on_array(plan, values.astype(np.float32))}
        found = interleaved(
            {key: lambda turn=turn: turn(size[-1]) * 1e3 for key, turn in turns.items()}, context.rounds()
        )
    return [
        context.row(
            "cost of the server",
            {"ratings": name},
            found["ours"],
            found["arrays"],
            unit="ms/epoch",
            reference_name=ARRAYS,
            workers=args.workers,
            target=at_most(1.25),
        )
    ]


def options() -> argparse.Namespace:
    """The application's defaults for ratings in a file, with two workers."""
    from lapse.apps.mf import options as mf_options

    return mf_options.parse(["--workers", "2", "--ratings", "-", "--no-progress"])


def ratings(size: tuple[int, int, int, int]):
    """Ratings and their name."""
    import numpy as np

    from lapse.apps.mf import data

    rows, columns, count, _ = size
    real = Path(os.environ.get("LAPSE_DATA", "/nonexistent"), "ml-100k", "u.data.gz")
    if size == SMALL and real.exists():
        return data.read_share(data.Source(str(real))), "MovieLens 100k"
    rng = np.random.default_rng(0)
    share = data.Share(
        rng.integers(rows, size=count, dtype=np.int32),
        zipf(rng, columns, count),
        rng.integers(1, 6, size=count).astype(np.float32),
        np.arange(count, dtype=np.uint64),
        shape=(rows, columns),
    )
    return share, f"{count:,} at random"


def zipf(rng, columns: int, count: int):
    """Columns with about the popularity of films."""
    import numpy as np

    weights = 1 / np.arange(1, columns + 1) ** 0.7
    return rng.choice(columns, count, p=weights / weights.sum()).astype(np.int32)


class Never:
    """Takes the place of a `Training`, which would check signals and the clock."""

    @staticmethod
    def should_stop() -> bool:
        """Never: there are neither signals nor a time limit."""
        return False

    @staticmethod
    def note_computing(_seconds: float) -> None:
        """Computing is not timed."""


def epochs_on_server(server, plan) -> Callable[[int], float]:
    """A function that trains so many epochs as the application does, and returns the seconds per epoch."""
    from lapse.apps.mf import descent

    epoch = [0]

    def some(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            server.run(descent.train_epoch, server, plan, Never, epoch[0], 0.001)
            epoch[0] += 1
        return (time.perf_counter() - begin) / count

    return some


def epochs_on_array(plan, values) -> Callable[[int], float]:
    """The same on an array."""
    epoch = [0]

    def some(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            in_threads(plan.args.workers, train_share, plan, values, epoch[0])
            epoch[0] += 1
        return (time.perf_counter() - begin) / count

    return some


def in_threads(workers: int, function: Callable, *args) -> None:
    """Call ``function(worker, barrier, *args)`` in threads."""
    barrier = threading.Barrier(workers)
    threads = [threading.Thread(target=function, args=(worker, barrier, *args)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def train_share(worker: int, barrier: threading.Barrier, plan, values, epoch: int) -> None:
    """One worker's part of an epoch of DSGD."""
    from lapse.apps._shared import streams
    from lapse.apps.mf import schedule
    from lapse.bench.plain._mf import PlainTrainer

    matrix = plan.matrix
    part = matrix.training[worker]
    first = int(matrix.bounds[worker])
    trainer = PlainTrainer(plan.model, values, part.rows + first, part.columns + matrix.num_rows, part.values)
    square = schedule.LatinSquare(matrix.column_counts, plan.args.workers, plan.args.seed, epoch)
    rng = streams.generator(plan.args.seed, epoch, worker, schedule.ORDER)
    for order in square.orders(worker, part.rows, part.columns, plan.args.batch, rng):
        barrier.wait()
        trainer.train(order, 0.001)


GROUPS = (Group("mf", "matrix factorization by DSGD, against a plain array", run, jobs=(Job(1),)),)
