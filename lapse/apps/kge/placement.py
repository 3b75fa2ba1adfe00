"""Which technique manages which entity and relation.

Decided from the counts of the training triples: how many blocks are expected to use each of them.
"""

from __future__ import annotations

import argparse

import numpy as np

import lapse
from lapse.apps._shared import placement as shared
from lapse.apps._shared.placement import Placement, Ranks, Usage
from lapse.apps.kge.models import Model

#: Few entities on a rank are so many times those of a block; see `shared.choose_scheme`.
MIN_LOCAL_BLOCKS = 4
#: Replicas take at most this share of the size of all values. A block of a small graph uses many of its entities, so
#: that replicating more than the library's default of a tenth pays off.
MEMORY = 0.5


def decide(args: argparse.Namespace, model: Model, train: np.ndarray, ranks: Ranks) -> Placement:
    """Decide by the options and the training triples; the same on all ranks."""
    usage = expect_usage(args, model, train)
    few_entities = MIN_LOCAL_BLOCKS * usage.positive[: model.num_entities].sum() / usage.units
    scheme = shared.choose_scheme(args, ranks, model.num_entities, few_entities)
    localize = shared.localizes(args, ranks)
    replicated, replication = shared.not_replicated()
    if shared.replicates(args, ranks):
        replicated, replication = shared.replicate(
            args, usage, ranks, args.sync_triples, value_lengths(model), scheme=scheme, memory=MEMORY
        )
    return Placement(
        localize=localize,
        lookahead=args.lookahead if localize else 0,
        replicated_keys=replicated,
        replication=replication,
        sampling=shared.make_sampling(args, scheme, lapse.Uniform(0, model.num_entities)),
    )


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


def value_lengths(model: Model) -> np.ndarray:
    """The number of elements of each key's value: a vector, and as many sums of squares."""
    lengths = np.full(model.num_keys, 2 * model.dim, dtype=np.int64)
    lengths[model.num_entities :] = 2 * model.relation_length
    return lengths
