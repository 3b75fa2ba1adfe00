"""Which technique manages which parameter: what is replicated, relocated ahead, or stays at home.

Decided before the server exists, from the counts of the training triples: how many blocks are expected to
use each entity and each relation.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

import lapse
from lapse.apps.kge.models import Model

#: How negatives are drawn where `--sampling-scheme` does not say.
SCHEMES = {"classic": "naive", "lapse": "preloc", "lapse2": "local"}
#: Where a rank can expect to own fewer entities than this many times those of a block, a good part of them are those
#: of the blocks at hand: to draw negatives among them would be to draw the entities that are to be predicted.
MIN_LOCAL_BLOCKS = 4
#: Workers wait at twice `max_pending`: half of the triples that `--sync-triples` allows, and a little less, since
#: what a triple costs is an estimate.
PACE = 0.5 * 0.9
#: Replicas take at most this share of the size of all values. A block of a small graph uses many of its
#: entities, so that it pays to replicate more than the tenth that the library proposes.
MEMORY = 0.5


@dataclass(frozen=True)
class Placement:
    """What the server and the kernel need to know of it.

    Attributes
    ----------
    replicated_keys
        Sorted.
    localize
        Whether the keys of coming blocks are localized.
    lookahead
        See `_kernel.Trainer`.
    sampling, replication
        For the server.
    """

    replicated_keys: np.ndarray
    localize: bool
    lookahead: int
    sampling: lapse.Sampling
    replication: lapse.Replication


@dataclass(frozen=True)
class Usage:
    """In how many blocks each key is expected, in one epoch of all workers together.

    Attributes
    ----------
    positive
        Per key: as part of a true triple.
    sampled
        Per key: among the negatives.
    """

    positive: np.ndarray
    sampled: np.ndarray
    blocks: float
    triples: int

    @property
    def together(self) -> np.ndarray:
        """Per key: in either role."""
        return self.positive + self.sampled * (1 - self.positive / self.blocks)


def decide(args: argparse.Namespace, model: Model, train: np.ndarray, ranks: int,
           sharing: int = 1) -> Placement:
    """The same on all ranks, by the options and the training triples. `sharing` ranks share memory."""
    apart = sharing < ranks  # where all ranks share memory, every value is local to all
    usage = expect_usage(args, model, train)
    scheme = choose_scheme(args, model, usage, ranks, sharing)
    replicated, replication = np.empty(0, np.int64), lapse.Replication()
    if args.management == "lapse2" and (apart or args.replicate and ranks > 1):
        replicated = choose_replicated(args, model, usage, scheme, ranks, sharing)
        replication = pace(args, usage, replicated, ranks)
    localize = args.management != "classic" and apart
    sampling = lapse.Sampling(scheme, lapse.Uniform(0, model.num_entities), reuse=args.sampling_reuse,
                              postpone=args.sampling_postpone)
    return Placement(replicated, localize, args.lookahead if localize else 0, sampling, replication)


def choose_scheme(args: argparse.Namespace, model: Model, usage: Usage, ranks: int, sharing: int = 1) -> str:
    """How negatives are drawn."""
    if args.sampling_scheme:
        return args.sampling_scheme
    if sharing == ranks:  # all are local: a scheme can gain nothing
        return "naive"
    scheme = SCHEMES[args.management]
    entities_of_a_block = usage.positive[: model.num_entities].sum() / usage.blocks
    if scheme == "local" and model.num_entities < MIN_LOCAL_BLOCKS * entities_of_a_block * ranks / sharing:
        return "preloc"
    return scheme


def expect_usage(args: argparse.Namespace, model: Model, train: np.ndarray) -> Usage:
    """From how often each key occurs: blocks are drawn at random (by relation they are not quite)."""
    counts = np.bincount(train[:, [0, 2]].reshape(-1), minlength=model.num_entities)
    relations = np.bincount(train[:, 1], minlength=model.num_relations)
    counts = np.concatenate([counts] + [relations] * (model.relation_keys // model.num_relations))
    blocks = max(len(train) / args.batch_size, 1.0)
    share = np.minimum(counts / max(len(train), 1), 1.0)
    positive = blocks * (1 - (1 - share) ** args.batch_size)
    sampled = np.zeros(model.num_keys)
    drawn = 2 * args.num_negs_per_pos
    sampled[: model.num_entities] = -blocks * np.expm1(drawn * np.log1p(-1 / max(model.num_entities, 2)))
    return Usage(positive, sampled, blocks, len(train))


def choose_replicated(args: argparse.Namespace, model: Model, usage: Usage, scheme: str, ranks: int,
                      sharing: int = 1) -> np.ndarray:
    """The keys to replicate, sorted.

    Negatives count as uses where their scheme moves or pulls them from elsewhere: not in the local one,
    and in a pool once for all the times that a draw is used.
    """
    times = {"local": 0.0, "pool": 1 / args.sampling_reuse}.get(scheme, 1.0)
    counts = usage.positive + times * usage.sampled
    if args.replicate is not None:
        return np.sort(np.argsort(-counts, kind="stable")[: args.replicate])
    rounds = max(usage.triples / args.sync_triples, 1)
    return lapse.choose_hot_spots(counts, ranks=ranks, rounds=rounds, value_lengths=value_lengths(model),
                                  memory=MEMORY, sharing=sharing)


def value_lengths(model: Model) -> np.ndarray:
    """Elements of each key's value: a vector, and as many sums of squares."""
    lengths = np.full(model.num_keys, 2 * model.dim, dtype=np.int64)
    lengths[model.num_entities :] = 2 * model.relation_length
    return lengths


def pace(args: argparse.Namespace, usage: Usage, replicated: np.ndarray, ranks: int) -> lapse.Replication:
    """Rounds by work: all ranks together train at most `--sync-triples` triples between two of one rank."""
    pushes_per_triple = usage.together[replicated].sum() / max(usage.triples, 1)
    most = PACE * pushes_per_triple * args.sync_triples / ranks
    return lapse.Replication(max_pending=max(int(most), 1))
