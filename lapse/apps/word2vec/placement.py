"""Which technique manages which vector: what is replicated, relocated ahead, or stays at home.

Decided before the server exists, from the text: a trial run over a part of it counts in how many
units each vector is used. Where all ranks share memory, nothing needs to be near: every vector is
used where it is, unless ``--replicate`` or ``--sampling-scheme`` ask for something else.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

import lapse
from lapse.apps.word2vec._kernel import Counter
from lapse.apps.word2vec.text import Block
from lapse.apps.word2vec.vocabulary import NOISE_POWER, Vocabulary

log = logging.getLogger(__name__)

#: Words of each rank's text that the trial run goes through.
TRIAL_WORDS = 50_000
#: Pairs of a unit, and how many of its words share negatives, where vectors move between several hosts: a unit that uses
#: many vectors is likely to need one that others have taken away before its turn.
UNIT, REUSE = 160, 1
#: The same where few others, or none, can do so: what counts is then how often vectors are copied.
LONG_UNIT, LONG_REUSE = 640, 4
#: Few: hosts, or ranks that share no memory.
FEW_HOSTS = 2
#: Units of a block, at most: enough that few messages are sent; with more, others take more keys away before their turn.
MAX_UNITS = 10
#: How negatives are drawn where `--sampling-scheme` does not say.
SCHEMES = {"classic": "naive", "lapse": "preloc", "lapse2": "local"}
#: Where a rank can expect to own fewer words than these, most of them are those of the text at hand: to draw
#: negatives among them would be to draw the words that are to be predicted.
MIN_LOCAL_WORDS = 100
#: Workers wait at twice `max_pending`: half of the words that `--sync-words` allows, and a little less, since what
#: a word costs is an estimate.
PACE = 0.5 * 0.9
#: A worker holds the vectors of a block for so many units that it uses the most frequent of them less than once:
#: held longer, they would be as stale as replicas that are not synchronised.
USES_PER_BLOCK = 0.5


@dataclass(frozen=True)
class Placement:
    """What the server and the kernel need to know of it.

    Attributes
    ----------
    long_units
        Whether units may be long; see `LONG_UNIT`.
    is_replicated
        Per key, uint8.
    localize
        Whether the keys that are not replicated are localized ahead.
    block_units, lookahead
        See `_kernel.Pairs`.
    sampling
        For the server; None without negatives.
    replication
        For the server.
    """

    long_units: bool
    is_replicated: np.ndarray
    localize: bool
    block_units: int
    lookahead: int
    sampling: lapse.Sampling | None
    replication: lapse.Replication

    @property
    def replicated_keys(self) -> np.ndarray:
        """The keys that are replicated, sorted."""
        return np.flatnonzero(self.is_replicated)


@dataclass(frozen=True)
class Usage:
    """How a text uses vectors, in one epoch of all workers together.

    Attributes
    ----------
    positive
        Per key: in how many units it occurs as a context or centre word.
    sampled
        Per key: in how many units it is expected among the negatives.
    units, words
        In all.
    """

    positive: np.ndarray
    sampled: np.ndarray
    units: float
    words: int

    @property
    def together(self) -> np.ndarray:
        """Per key: in how many units it is expected in either role."""
        units = max(self.units, 1)
        return self.positive + self.sampled * (1 - np.minimum(self.positive / units, 1))


def decide(comm, args: argparse.Namespace, text) -> Placement:
    """The same on all ranks, by the options and the text (a `text.Text`). Collective."""
    sharing = lapse.sharing_ranks(comm)
    apart = sharing < comm.size  # where all ranks share memory, every vector is local to all
    long_units = comm.size <= FEW_HOSTS * sharing
    scheme = choose_scheme(args, text.vocabulary, comm.size, sharing)
    localize = args.management != "classic" and apart
    is_replicated = np.zeros(2 * len(text.vocabulary), dtype=np.uint8)
    replication, block_units = lapse.Replication(), 1
    if args.management == "lapse2" and (apart or args.replicate and comm.size > 1):
        usage = survey_usage(comm, args, text, long_units)
        is_replicated[choose_replicated(args, usage, scheme, comm.size, sharing)] = 1
        replication = pace(args, usage, is_replicated, comm.size)
        block_units = choose_block(args, usage, is_replicated) if apart else 1
    return Placement(
        long_units,
        is_replicated,
        localize,
        block_units=block_units,
        lookahead=args.lookahead if localize else 0,
        sampling=make_sampling(args, text.vocabulary, scheme),
        replication=replication,
    )


def choose_scheme(args: argparse.Namespace, vocabulary: Vocabulary, ranks: int, sharing: int = 1) -> str:
    """How negatives are drawn."""
    if args.sampling_scheme:
        return args.sampling_scheme
    if sharing == ranks:  # all are local: a scheme can gain nothing
        return "naive"
    scheme = SCHEMES[args.management]
    if scheme == "local" and len(vocabulary) < MIN_LOCAL_WORDS * ranks / sharing:
        return "preloc"
    return scheme


def make_sampling(args: argparse.Namespace, vocabulary: Vocabulary, scheme: str) -> lapse.Sampling | None:
    """Negatives are output vectors (keys 2w + 1), by the words' frequency to the power of 3/4."""
    if not args.negative:
        return None
    return lapse.Sampling(scheme, lapse.Weighted(noise(vocabulary)), reuse=args.sampling_reuse,
                          postpone=args.sampling_postpone)


def noise(vocabulary: Vocabulary) -> np.ndarray:
    """The weight of each key as a negative."""
    weights = np.zeros(2 * len(vocabulary))
    weights[1::2] = vocabulary.counts.astype(np.float64) ** NOISE_POWER
    return weights


def survey_usage(comm, args: argparse.Namespace, text, long_units: bool) -> Usage:
    """Count a part of the text on each rank, and scale it to an epoch. Collective."""
    counts = np.zeros(2 * len(text.vocabulary), dtype=np.int64)
    counter = Counter(counts=counts, **pair_options(args, text.vocabulary, long_units), block_units=1, lookahead=0,
                      is_replicated=np.zeros(len(counts), dtype=np.uint8), seeds=(args.seed, comm.rank))
    words = count_part(counter, text.blocks(comm.rank * args.workers))
    mine = np.append(counts, (counter.units, counter.sets, words)).astype(np.float64)
    everything = np.empty_like(mine)
    comm.Allreduce(mine, everything)
    counts, (units, sets, words) = everything[:-3], everything[-3:]
    scale = text.words / max(words, 1)
    draws = args.negative * sets / max(units, 1)
    weights = noise(text.vocabulary)
    sampled = units * -np.expm1(draws * np.log1p(-weights / weights.sum()))
    return Usage(scale * counts, scale * sampled, scale * units, text.words)


def pair_options(args: argparse.Namespace, vocabulary: Vocabulary, long_units: bool) -> dict:
    """What the kernel needs to make pairs."""
    unit, reuse = (LONG_UNIT, LONG_REUSE) if long_units else (UNIT, REUSE)
    return {"window": args.window, "negative": args.negative, "unit_pairs": args.unit or unit,
            "keep": vocabulary.keep_thresholds(args.sample), "shares_negatives": args.negatives_per == "word",
            "negative_reuse": args.negative_reuse or (reuse if args.negatives_per == "word" else 1)}


def count_part(counter: Counter, blocks: Iterable[Block]) -> int:
    """Count the beginning of a share; how many words that is."""
    read = 0
    for block in blocks:
        counter.add(block.words, block.ends)
        read += block.read
        if read >= TRIAL_WORDS:
            break
    counter.finish()
    return read


def choose_replicated(args: argparse.Namespace, usage: Usage, scheme: str, ranks: int,
                      sharing: int = 1) -> np.ndarray:
    """The keys to replicate.

    Negatives count as uses where their scheme moves or pulls them from elsewhere: not in the local
    one, and in a pool once for all the times that a draw is used.
    """
    times = {"local": 0.0, "pool": 1 / args.sampling_reuse}.get(scheme, 1.0)
    counts = usage.positive + times * usage.sampled
    if args.replicate is not None:
        return np.argsort(-counts, kind="stable")[:args.replicate]
    rounds = max(usage.words / args.sync_words, 1)
    return lapse.choose_hot_spots(counts, ranks=ranks, rounds=rounds, value_lengths=args.dim, sharing=sharing)


def choose_block(args: argparse.Namespace, usage: Usage, is_replicated: np.ndarray) -> int:
    """For how many units the vectors that are not replicated are localized, pulled and pushed together."""
    if args.block is not None:
        return args.block
    others = usage.positive[is_replicated == 0]
    most = others.max(initial=0) / max(usage.units, 1)  # per unit
    return int(min(MAX_UNITS, max(1, USES_PER_BLOCK / max(most, 1e-9))))


def pace(args: argparse.Namespace, usage: Usage, is_replicated: np.ndarray, ranks: int) -> lapse.Replication:
    """Rounds by work: all ranks together read at most `--sync-words` words between two of one rank."""
    pushes_per_word = usage.together[is_replicated != 0].sum() / max(usage.words, 1)
    most = PACE * pushes_per_word * args.sync_words / ranks
    return lapse.Replication(max_pending=max(int(most), 1))
