"""The training run: examples, server, epochs, the model's file. Every step is collective over the ranks."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared import job, streams
from lapse.apps._shared.files import pull_rows, write_arrays, write_model
from lapse.apps._shared.options import pace_options
from lapse.apps._shared.placement import Ranks, every, log_replicated, make_server
from lapse.apps._shared.progress import Progress
from lapse.apps._shared.training import Training
from lapse.apps.clicks import placement
from lapse.apps.clicks._kernel import Trainer
from lapse.apps.clicks.data import BLOCK, FIELDS, Examples, Recipe, blocks_of
from lapse.apps.clicks.placement import VALUE_LENGTH, Placement

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: The file of ``--output``: float32 of shape (num_keys,), the weight of each key.
WEIGHTS = "weights.npy"
#: Values that are pulled at once.
SAVED_AT_ONCE = 65_536
#: Examples between looks at signals and at the pace.
PART = 512
#: Purposes of random streams; see `streams`.
ORDER = 0


@dataclass(frozen=True)
class Plan:
    """What all workers of this rank know for training.

    `shares` and `tests` have the examples of its workers, by their numbers; `examples` counts those of all ranks.
    """

    args: argparse.Namespace
    shares: dict[int, list[Examples]]
    tests: dict[int, list[Examples]]
    examples: int
    placement: Placement


def run(args: argparse.Namespace, comm: Intracomm) -> None:
    """Train as the options say and print the ``RESULT`` line."""
    training = Training("clicks", comm, args, quality=("test_loss",))
    if training.repeat_result():
        return
    args = training.args
    plan = make_plan(comm, args)
    test_loss = None
    with make_server(comm, args, plan.placement, args.keys, VALUE_LENGTH, training.seed) as server:
        training.restore(server)
        for epoch in training.epochs(server):
            loss = server.run(train_epoch, plan, training, epoch)[0]
            with training.evaluating():
                test_loss = server.run(test, plan)[0]
            training.end_epoch(loss=loss, test_loss=test_loss)
        if test_loss is None and not training.is_interrupted:  # a resumed run that had only this left to do
            test_loss = server.run(test, plan)[0]
        if args.output is not None and not training.is_interrupted:
            write_model(server, args.output, WEIGHTS, save, args.keys)
    training.finish(
        loss=test_loss,
        examples_per_second=plan.examples * len(training.history) / max(seconds_of(training.history), 1e-9),
    )


def seconds_of(history: list[dict]) -> float:
    """Of all epochs."""
    return sum(each["seconds"] for each in history)


def make_plan(comm: Intracomm, args: argparse.Namespace) -> Plan:
    """Draw the examples of this rank's workers, and decide how keys are managed. Collective."""
    workers = comm.size * args.workers
    mine = range(comm.rank * args.workers, (comm.rank + 1) * args.workers)
    training, test = blocks_of(args.examples, workers)
    recipe = job.collectively(comm, Recipe, args.keys, args.seed)
    shares, tests = (
        {worker: job.collectively(comm, recipe.draw, numbers[worker::workers]) for worker in mine}
        for numbers in (training, test)
    )
    ranks = Ranks.of(comm)
    counts = count_keys(comm, shares, args.keys)
    chosen = job.collectively(comm, placement.decide, args, counts, len(training) * BLOCK, ranks)
    log_replicated(chosen, args.keys, "keys", every(chosen.most_per_round, "examples"))
    return Plan(args, shares, tests, len(training) * BLOCK, chosen)


def count_keys(comm: Intracomm, shares: dict[int, list[Examples]], num_keys: int) -> np.ndarray:
    """How often each key is in the training of all ranks. Collective."""
    mine = np.zeros(num_keys)
    for blocks in shares.values():
        for block in blocks:
            mine += np.bincount(block.keys.reshape(-1), minlength=num_keys)
    counts = np.empty_like(mine)
    comm.Allreduce(mine, counts)
    return counts


def train_epoch(kv: lapse.Worker, plan: Plan, training: Training, epoch: int) -> float | None:
    """Train the share of a worker once; the mean loss of all workers, of each example before its step."""
    trainer = make_trainer(kv, plan)
    pacing = Pacing(kv, plan, epoch)
    progress = Progress.of_epoch(kv, plan.args, epoch, plan.examples, "examples")
    for part in parts(plan, kv.id, epoch):
        if training.should_stop():
            break
        trainer.train(part.keys, part.clicked, pacing.next_batch(trainer.examples))
        if trainer.examples:
            progress.show(trainer.examples * kv.num_workers, lambda: {"loss": f"{trainer.loss / trainer.examples:.4f}"})
    trainer.finish()
    training.note_computing(trainer.computing_seconds)
    progress.close()
    loss, examples = kv.allreduce(np.array([trainer.loss, trainer.examples])).tolist()
    return loss / examples if examples else None


def parts(plan: Plan, worker: int, epoch: int) -> Iterator[Examples]:
    """The examples of a worker in the order of this epoch, some at a time."""
    blocks = plan.shares[worker]
    for i in streams.generator(plan.args.seed, epoch, worker, ORDER).permutation(len(blocks)):
        for first in range(0, BLOCK, PART):
            yield blocks[i].part(first, first + PART)


class Pacing:
    """How often replicas are synchronized, as a worker advances in an epoch."""

    def __init__(self, kv: lapse.Worker, plan: Plan, epoch: int) -> None:
        self._kv, self._plan = kv, plan
        self._before = epoch * plan.examples
        self._examples_per_round = 0.0

    def next_batch(self, trained: int) -> int:
        """Set the pace when this worker has trained so many examples; the number of examples of its next batches."""
        chosen = self._plan.placement
        if not len(chosen.replicated_keys):
            return self._plan.args.batch
        examples = chosen.examples_per_round(self._before + trained * self._kv.num_workers)
        if examples != self._examples_per_round:
            self._examples_per_round = examples
            self._kv.pace_rounds(**chosen.pace(examples))
        return max(int(examples / self._kv.num_workers / 2), 1)


def make_trainer(kv: lapse.Worker, plan: Plan) -> Trainer:
    """The kernel for one worker and one epoch."""
    args, chosen = plan.args, plan.placement
    return Trainer(
        kv,
        fields=FIELDS,
        batch=args.batch,
        rate=args.learning_rate,
        localize=chosen.localize,
        lookahead=chosen.lookahead,
        **pace_options(args),
    )


def test(kv: lapse.Worker, plan: Plan) -> float:
    """The mean loss of the test of all workers."""
    kv.wait_replica_sync()
    kv.barrier()
    loss = 0.0
    for block in plan.tests[kv.id]:
        scores = kv.pull(block.keys).wait()[:, :, 0].sum(axis=1)
        loss += float(np.logaddexp(0, np.where(block.clicked, -scores, scores)).sum())
    loss, examples = kv.allreduce(np.array([loss, BLOCK * len(plan.tests[kv.id])])).tolist()
    return loss / examples


def save(kv: lapse.Worker, folder: Path, num_keys: int) -> None:
    """Write the weights into a folder."""
    rows = pull_rows(kv, np.arange(num_keys), SAVED_AT_ONCE)
    write_arrays({folder / WEIGHTS: (num_keys,)}, ((values[:, 0],) for values in rows))
