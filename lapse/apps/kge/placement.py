"""Which technique manages which entity and relation, and how often replicas are synchronized.

Decided from the counts of the training triples: how many blocks are expected to use each of them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import lapse
from lapse.apps._shared import placement as shared
from lapse.apps._shared.placement import Ranks, Usage
from lapse.apps.kge.models import Model

#: Few entities on a rank are so many times those of a block; see `shared.choose_scheme`.
MIN_LOCAL_BLOCKS = 4
#: AdaGrad's first steps have the size of the learning rate, whatever the gradient: what several ranks do apart then
#: overshoots, and is not made good later. So replicas are synchronized so many times in each of the first epochs,
FIRST_EPOCHS, ROUNDS_AT_FIRST = 5, 25
#: and so many times in each epoch after them.
ROUNDS_LATER = 4
#: The pace of ``--combine sum``: with rarer rounds sums of several ranks' steps cost quality, or diverge.
TRIPLES_OF_SUMS = 4096


class Pace(NamedTuple):
    """When a host begins rounds, and when its workers wait; see `lapse.Worker.pace_rounds`."""

    max_pending: int
    max_late: int | None = None


@dataclass(frozen=True, kw_only=True)
class Placement(shared.Placement):
    """How the server and the kernel manage entities and relations.

    Attributes
    ----------
    paces
        Of the replication, per epoch; the last one holds for all later epochs.
    """

    paces: tuple[Pace, ...]

    def pace(self, epoch: int) -> Pace:
        """That of an epoch, from 0."""
        return self.paces[min(epoch, len(self.paces) - 1)]


def decide(args: argparse.Namespace, model: Model, train: np.ndarray, ranks: Ranks) -> Placement:
    """Decide by the options and the training triples; the same on all ranks."""
    replicated, replication = shared.not_replicated()
    optimizer = lapse.optim.Adam() if args.optimizer == "adam" else None
    if not args.num_negs_per_pos:  # all entities: each worker changes those at home on its rank
        return Placement(
            localize=False,
            lookahead=0,
            replicated_keys=replicated,
            replication=replication,
            optimizer=optimizer,
            paces=(Pace(1),),
        )
    usage = expect_usage(args, model, train)
    paces: tuple[Pace, ...] = (Pace(1),)
    if shared.replicates(args, ranks):
        replicated = choose_replicated(args, model, usage)
        paces = choose_paces(args, usage, replicated, ranks)
        replication = lapse.Replication(
            syncs_per_second=0, max_pending=paces[0].max_pending, combine=args.combine, wire=args.wire
        )
    is_local = len(replicated) == model.num_keys
    scheme = choose_scheme(args, model, usage, ranks, is_local)
    localize = shared.localizes(args, ranks) and not is_local
    return Placement(
        localize=localize,
        lookahead=args.lookahead if localize else 0,
        replicated_keys=replicated,
        replication=replication,
        sampling=shared.make_sampling(args, scheme, lapse.Uniform(0, model.num_entities)),
        optimizer=optimizer,
        paces=paces,
    )


def choose_scheme(args: argparse.Namespace, model: Model, usage: Usage, ranks: Ranks, is_local: bool) -> str:
    """How negatives are drawn. If all values are replicated, no scheme is better than the simplest."""
    if is_local and not args.sampling_scheme:
        return "naive"
    few_entities = MIN_LOCAL_BLOCKS * usage.positive[: model.num_entities].sum() / usage.units
    return shared.choose_scheme(args, ranks, model.num_entities, few_entities)


def choose_replicated(args: argparse.Namespace, model: Model, usage: Usage) -> np.ndarray:
    """The entities and relations that the triples of most blocks have: all of them if they fit. Sorted."""
    number = args.replicate
    if number is None and args.optimizer == "adam":  # a round is one step, however many gradients it sums
        number = 0
    if number is None:
        number = shared.number_in(args.replica_memory, value_lengths(model, args.optimizer), usage.positive)
    return shared.most_used(usage.positive, number)


def choose_paces(args: argparse.Namespace, usage: Usage, replicated: np.ndarray, ranks: Ranks) -> tuple[Pace, ...]:
    """See `Placement.paces`.

    In the first epochs workers wait for the result of each round: late results cost as much as rarer rounds.
    """
    triples = args.sync_triples
    if triples is None and args.combine == "sum":
        triples = TRIPLES_OF_SUMS
    if triples is not None:
        most = shared.pace(usage, replicated, triples, ranks).max_pending
        assert most is not None
        return (Pace(most),)
    of_a_host = usage.together[replicated].sum() * ranks.share
    at_first, later = (max(int(of_a_host / rounds), 1) for rounds in (ROUNDS_AT_FIRST, ROUNDS_LATER))
    return (Pace(at_first, 0),) * FIRST_EPOCHS + (Pace(later),)


def describe_pace(args: argparse.Namespace) -> str:
    """How often replicas are synchronized, for the log."""
    if args.sync_triples is None and args.combine != "sum":
        return f"{ROUNDS_AT_FIRST} times in each of the first {FIRST_EPOCHS} epochs, {ROUNDS_LATER} times later"
    return shared.every(args.sync_triples or TRIPLES_OF_SUMS, "triples")


def expect_usage(args: argparse.Namespace, model: Model, train: np.ndarray) -> Usage:
    """Estimate the use of keys from their counts, as if blocks were random (by relation they are not quite)."""
    counts = np.bincount(train[:, [0, 2]].reshape(-1), minlength=model.num_entities)
    relations = np.bincount(train[:, 1], minlength=model.num_relations)
    counts = np.concatenate([counts] + [relations] * (model.relation_keys // model.num_relations))
    blocks = max(len(train) / args.batch_size, 1.0)
    share = np.minimum(counts / max(len(train), 1), 1.0)
    positive = blocks * (1 - (1 - share) ** args.batch_size)
    sampled = np.zeros(model.num_keys)
    drawn = 2 * args.num_negs_per_pos
    sampled[: model.num_entities] = -blocks * np.expm1(drawn * np.log1p(-1 / max(model.num_entities, 2)))
    return Usage(positive, len(train), sampled, blocks)


def value_lengths(model: Model, optimizer: str) -> np.ndarray:
    """The number of elements of each key's value; see `vectors_of_value`."""
    lengths = np.full(model.num_keys, model.dim, dtype=np.int64)
    lengths[model.num_entities :] = model.relation_length
    return vectors_of_value(optimizer) * lengths


def vectors_of_value(optimizer: str) -> int:
    """How many times as long as its vector a value is: with AdaGrad the sums of squares are behind it."""
    return 2 if optimizer == "adagrad" else 1
