"""Which keys are replicated, and how often replicas are synchronized: decided from the counts of the training."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

import lapse
from lapse.apps._shared import placement as shared
from lapse.apps._shared.placement import Ranks, Usage

VALUE_LENGTH = 2  # a weight, and the sum of its squared gradients
#: Between two synchronizations of replicas all ranks together train this share of the examples that were trained
#: before, but not fewer than these: AdaGrad's first steps have the size of the learning rate, whatever the gradient.
SHARE_PER_ROUND = 1 / 8
FEWEST_PER_ROUND = 256
#: Pushes of a key that are worth its part in a round; with fewer, more is sent at the same loss.
ENOUGH = 64.0


@dataclass(frozen=True, kw_only=True)
class Placement(shared.Placement):
    """How the server and the kernel manage keys.

    Attributes
    ----------
    most_per_round
        How many examples all ranks together train at most between two rounds.
    pushes_per_example
        To replicas, of each host for each example of all.
    """

    most_per_round: int
    pushes_per_example: float

    def examples_per_round(self, trained: int) -> float:
        """How many all ranks may train between two rounds, when they have trained so many."""
        return min(max(SHARE_PER_ROUND * trained, FEWEST_PER_ROUND), self.most_per_round)

    def pace(self, examples: float) -> dict[str, int]:
        """The parameters of `lapse.Worker.pace_rounds`, for a round of so many examples of all ranks."""
        pending = max(int(self.pushes_per_example * examples), 1)
        return {"max_pending": pending, "max_late": pending // 2}


def decide(args: argparse.Namespace, counts: np.ndarray, examples: int, ranks: Ranks) -> Placement:
    """Decide by the options and how many examples of an epoch have each key; the same on all ranks."""
    replicated, replication = shared.not_replicated()
    usage = expect_usage(counts, examples, args.batch)
    if shared.replicates(args, ranks):
        replicated = choose_replicated(args, usage)
        replication = lapse.Replication(
            syncs_per_second=0,
            max_pending=1,  # see `Placement.pace`
            combine=args.combine,
            wire=args.wire,
            rates=usage.positive[replicated] * args.sync_examples / examples,
            enough=ENOUGH,
        )
    localize = shared.localizes(args, ranks) and len(replicated) < int(np.count_nonzero(counts))
    return Placement(
        localize=localize,
        lookahead=args.lookahead if localize else 0,
        replicated_keys=replicated,
        replication=replication,
        most_per_round=args.sync_examples,
        pushes_per_example=usage.positive[replicated].sum() / examples * ranks.share,
    )


def choose_replicated(args: argparse.Namespace, usage: Usage) -> np.ndarray:
    """The most used keys, as many as fit; sorted."""
    number = args.replicate
    if number is None:
        number = shared.replicas_in(args.replica_memory, VALUE_LENGTH)
    return shared.most_used(usage.positive, min(number, np.count_nonzero(usage.positive)))


def expect_usage(counts: np.ndarray, examples: int, batch: int) -> Usage:
    """Estimate in how many batches each key is, from the number of examples that have it."""
    batches = max(examples / batch, 1.0)
    share = np.minimum(counts / max(examples, 1), 1.0)
    return Usage(batches * (1 - (1 - share) ** batch), examples, units=batches)
