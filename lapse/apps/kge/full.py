"""Training with all entities as negatives: the full softmax.

All workers train the same batch at the same time. Each owns a part of the entities and relations: those that are at
home on its rank, divided among the rank's workers. So they stay where they are, whatever the management of parameters,
and the result does not depend on the number of ranks and workers, but for rounding.

Each triple is two questions, for its object and for its subject. Questions with the same given entity and relation are
one query: scores of all entities that serve each of them. So some of them are asked in the same batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Work:
    """What all epochs need.

    Attributes
    ----------
    own
        The keys of each worker of this rank.
    queries
        Of each question the number of its query: first of the triples' objects, then of their subjects. They increase
        by relation.
    """

    own: list[np.ndarray]
    queries: np.ndarray


def prepare(server: lapse.Server, plan: Plan) -> Work:
    """The work of the workers of this rank."""
    return Work(own_keys(server), number_queries(plan.dataset.train))


def own_keys(server: lapse.Server) -> list[np.ndarray]:
    """The keys of each worker of this rank."""
    here = server.local_keys()
    return [np.ascontiguousarray(here[worker :: server.workers]) for worker in range(server.workers)]


def number_queries(triples: np.ndarray) -> np.ndarray:
    """Number the queries of all questions of triples; see `Work`."""
    s, r, o = triples.T
    entities, relations = triples[:, [0, 2]].max(initial=0) + 1, r.max(initial=0) + 1
    return np.unique(np.concatenate([r * entities + s, (relations + r) * entities + o]), return_inverse=True)[1]


def train_epoch(kv: lapse.Worker, plan: Plan, training: Training, epoch: int, rate: float, work: Work) -> float | None:
    """Train all triples once, together with all other workers.

    Returns the mean loss over triples and sides, without penalties.
    """
    args = plan.args
    trainer = make_trainer(kv, plan, epoch, rate, work.own[kv.id - kv.rank * args.workers])
    progress = Progress.of_epoch(kv, args, epoch, len(plan.dataset.train), "triples")
    for block, num_objects in batches(plan, work.queries, epoch):
        # all agree whether to go on; and before a batch begins, all have taken the steps of the one before
        if kv.allreduce(int(training.should_stop()), op="max"):
            break
        trainer.train(block, num_objects)
        progress.show(trainer.questions // 2, lambda: {"loss": f"{trainer.loss / trainer.questions:.4f}"})
    trainer.finish()
    training.note_computing(trainer.computing_seconds)
    progress.close()
    return trainer.loss / trainer.questions if trainer.questions else None


def make_trainer(kv: lapse.Worker, plan: Plan, epoch: int, rate: float, own: np.ndarray) -> FullTrainer:
    """The kernel for one worker and one epoch."""
    args = plan.args
    return FullTrainer(
        kv,
        own,
        rate=rate,
        optimizer=args.optimizer,
        relation_weight=args.relation_weight,
        dura=args.dura,
        **pace_options(args),
        **kernel_options(plan, streams.start(args.seed, epoch, EVERYBODY, DROPOUT)) | {"block": 2 * args.batch_size},
    )


def batches(plan: Plan, queries: np.ndarray, epoch: int) -> Iterator[tuple[np.ndarray, int]]:
    """All questions in the order of an epoch, a batch at a time.

    A batch has its questions sorted by query, so that those of one query are neighbors, and those of a relation find it
    in the cache. Those for objects come first; their number is the second result.
    """
    train, size = plan.dataset.train, 2 * plan.args.batch_size
    rng = streams.generator(plan.args.seed, epoch, EVERYBODY, SHUFFLING)
    order = shuffle(queries, plan.args.targets_per_query, rng)
    for first in range(0, len(order), size):
        block = order[first : first + size]
        block = block[np.argsort(queries[block], kind="stable")]
        yield np.ascontiguousarray(train[block % len(train)]), int((block < len(train)).sum())


def shuffle(queries: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Questions in random order, but with up to `most` of the same query one behind the other."""
    order = rng.permutation(len(queries))
    order = order[np.argsort(queries[order], kind="stable")]
    sizes = np.bincount(queries)
    ends = np.cumsum(sizes)
    rank = np.arange(len(order)) - np.repeat(ends - sizes, sizes)  # of a question among those of its query
    part = np.cumsum(rank % most == 0) - 1
    place = rng.permutation(part[-1] + 1 if len(part) else 0)[part]
    return order[np.argsort(place, kind="stable")]
