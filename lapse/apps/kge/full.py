"""Training with all entities as negatives: the full softmax.

All workers train the same batch at the same time. Each owns a part of the entities and relations: those that are at
home on its rank, divided among the rank's workers. So they stay where they are, whatever the management of parameters,
and the result does not depend on the number of ranks and workers, but for rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

import lapse
from lapse.apps._shared import streams
from lapse.apps._shared.options import pace_options
from lapse.apps._shared.progress import Progress
from lapse.apps._shared.training import Training
from lapse.apps.kge._full_kernel import FullTrainer
from lapse.apps.kge.options import ALL
from lapse.apps.kge.plan import DROPOUT, SHUFFLING, Plan, kernel_options

#: The worker in the names of random streams that all workers share.
EVERYBODY = 2**32 - 1
#: What workers keep of the entities' vectors beside the server: rows, panels, and gradients.
COPIES = 3


def is_chosen(args: argparse.Namespace) -> bool:
    """Whether every entity is a negative of every triple."""
    return args.num_negs_per_pos == ALL


def own_keys(server: lapse.Server) -> list[np.ndarray]:
    """The keys of each worker of this rank."""
    here = server.local_keys()
    return [np.ascontiguousarray(here[worker :: server.workers]) for worker in range(server.workers)]


def train_epoch(
    kv: lapse.Worker, plan: Plan, training: Training, epoch: int, rate: float, own: list[np.ndarray]
) -> float | None:
    """Train all triples once, together with all other workers.

    Returns the mean loss over triples and sides, without penalties.
    """
    args = plan.args
    trainer = make_trainer(kv, plan, epoch, rate, own[kv.id - kv.rank * args.workers])
    progress = Progress.of_epoch(kv, args, epoch, len(plan.dataset.train), "triples")
    for block in batches(plan, epoch):
        # all agree whether to go on; and before a batch begins, all have taken the steps of the one before
        if kv.allreduce(int(training.should_stop()), op="max"):
            break
        trainer.train(block)
        progress.show(trainer.triples, lambda: {"loss": f"{trainer.loss / trainer.triples / 2:.4f}"})
    trainer.finish()
    training.note_computing(trainer.computing_seconds)
    progress.close()
    return trainer.loss / trainer.triples / 2 if trainer.triples else None


def make_trainer(kv: lapse.Worker, plan: Plan, epoch: int, rate: float, own: np.ndarray) -> FullTrainer:
    """The kernel for one worker and one epoch."""
    args = plan.args
    return FullTrainer(
        kv,
        own,
        rate=rate,
        relation_weight=args.relation_weight,
        dura=args.dura,
        **pace_options(args),
        **kernel_options(plan, streams.start(args.seed, epoch, EVERYBODY, DROPOUT)),
    )


def batches(plan: Plan, epoch: int) -> Iterator[np.ndarray]:
    """All triples in the order of an epoch, a batch at a time, sorted by relation: neighbors find it in the cache."""
    train, size = plan.dataset.train, plan.args.batch_size
    order = streams.generator(plan.args.seed, epoch, EVERYBODY, SHUFFLING).permutation(len(train))
    for first in range(0, len(order), size):
        block = train[order[first : first + size]]
        yield np.ascontiguousarray(block[np.argsort(block[:, 1], kind="stable")])
