"""Which technique manages which vector.

Decided from the text: a trial run over a part of it counts in how many units each vector is used.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared import placement as shared
from lapse.apps._shared.placement import Ranks, Usage
from lapse.apps.word2vec._counter import Counter
from lapse.apps.word2vec.text import Block, Text
from lapse.apps.word2vec.vocabulary import NOISE_POWER, Vocabulary

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: Words of each rank's text that the trial run reads.
TRIAL_WORDS = 50_000
#: Words of each worker's text that are counted, to see which ones are used on one host only.
COUNTED_WORDS = 5_000_000
#: Few hosts (ranks that share no memory count as hosts).
FEW_HOSTS = 2
#: The maximum number of units of a block: enough to send few messages; with more, others take more keys away before
#: their turn.
MAX_UNITS = 10
#: If nothing is replicated, a rank localizes the vectors of which its host has more than this share of all uses. If
#: several hosts use a vector alike, each use finds it where the last one was, and it takes three kinds of messages to
#: bring it here; a pull and a push of it take as many, and travel with those of the unit's other vectors. And others
#: reach a vector that was relocated by one message more.
DOMINATES = 0.9
#: Few words on a rank; see `shared.choose_scheme`.
MIN_LOCAL_WORDS = 100
#: Rounds come when the most used vector has gathered this weight (learning rate times pairs) on all ranks since the
#: last one. With 120 the objective is no better; with 240 it is 0.5% worse on 32 ranks, if results come a round late.
WEIGHT_OF_A_ROUND = 200.0
#: A vector takes part in a round as often as it gathers this weight: with 36 the objective is 0.8% worse on 8 ranks,
#: with 18 no better for a seventh more bytes.
ENOUGH_WEIGHT = 22.0
#: The same for CBOW, whose outputs change once per word: with 18 the objective is 2% worse on 4 and on 8 ranks, with 3
#: or 1 it is no better.
ENOUGH_WEIGHT_OF_CBOW = 6.0
#: The same with ``--combine sum``: 2,000 words by the defaults, with which the loss stays within 1%; every 10,000 it
#: grows by 15% on 4 ranks and 50% on 8.
WEIGHT_OF_SUMS = 22.0
#: A worker trains at least so many units between two rounds, if these are not too short: a unit's changes are sent as
#: a whole, and it does not see what comes meanwhile.
UNITS_OF_A_ROUND = 4
FEWEST_PAIRS = 16
#: A worker holds the vectors of a block for so many units that it uses the most frequent of them less than once: held
#: longer, they would be as stale as replicas that are not synchronized.
USES_PER_BLOCK = 0.5


@dataclass(frozen=True)
class Unit:
    """What a worker trains between a pull of vectors and a push of their changes.

    Attributes
    ----------
    pairs
        How many pairs, about.
    reuse
        How many of its words share negatives.
    """

    pairs: int
    reuse: int


#: If vectors move between several hosts: a unit that uses many vectors is likely to need one that others have taken
#: away before its turn.
SHORT_UNIT = Unit(160, 1)
#: If few hosts, or only one, can take vectors away: then the number of copies of vectors matters. (Not with a pool,
#: which repeats its negatives already: shared by four words each, they make the objective 7% worse.)
LONG_UNIT = Unit(640, 4)


@dataclass(frozen=True, kw_only=True)
class Placement(shared.Placement):
    """How the server and the kernel manage vectors.

    Attributes
    ----------
    unit
        What is trained between a pull and a push, but for ``--unit`` and ``--negative-reuse``.
    is_localized
        Per key, uint8: whether this rank localizes it ahead of its use; unlike the rest not the same on all ranks.
    block_units
        Units for which vectors are localized, pulled and pushed together.
    in_place
        Whether the workers of the only rank train the vectors where they are. (Those of several ranks do it with
        replicas, if `replication.in_place` is set.)
    words_per_round
        The number of words that all ranks together train between two rounds; 0 if nothing is replicated.
    """

    unit: Unit
    is_localized: np.ndarray
    block_units: int
    in_place: bool
    words_per_round: int


def decide(comm: Intracomm, args: argparse.Namespace, text: Text) -> Placement:
    """Decide by the options and the text; the same on all ranks, but for `is_localized`. Collective."""
    ranks, vocabulary = Ranks.of(comm), text.vocabulary
    replicates = shared.replicates(args, ranks)
    number = number_of_replicas(args, vocabulary) if replicates else 0
    words = words_per_round(args, text) if replicates else 0
    is_local = number == 2 * len(vocabulary)
    in_place = is_local and ranks.are_apart and number == number_of_replicas(args, vocabulary, in_place=True)
    unit = choose_unit(args, text, ranks, words if is_local else None)
    localize = shared.localizes(args, ranks) and not is_local
    scheme = shared.choose_scheme(args, ranks, len(vocabulary), MIN_LOCAL_WORDS)
    if not args.sampling_scheme and (is_local or (localize and not replicates)):  # no scheme is better
        scheme = "naive"
    replicated, replication = shared.not_replicated()
    is_localized = np.full(2 * len(vocabulary), localize, np.uint8)
    block_units = 1
    if replicates:
        usage = survey_usage(comm, args, text, unit)
        replicated, replication = replicate(args, text, usage, ranks, number, words)
        replication = dataclasses.replace(replication, in_place=in_place)
        block_units = choose_block(args, usage, replicated) if ranks.are_apart and not is_local else 1
    elif localize:
        usage = survey_usage(comm, args, text, unit)
        is_localized[:] = share_here(comm, args, text, usage, ranks) > DOMINATES
    sampling = (
        shared.make_sampling(args, scheme, lapse.Weighted(noise(vocabulary, args.ns_exponent)))
        if args.negative
        else None
    )
    return Placement(
        localize=localize,
        lookahead=args.lookahead if localize else 0,
        replicated_keys=replicated,
        replication=replication,
        sampling=sampling,
        unit=unit,
        is_localized=is_localized,
        block_units=block_units,
        in_place=ranks.count == 1,
        words_per_round=words,
    )


def choose_unit(args: argparse.Namespace, text: Text, ranks: Ranks, words: int | None) -> Unit:
    """What is trained between a pull and a push; `words` are those of a round, if all vectors are replicated."""
    is_long = ranks.count <= FEW_HOSTS * ranks.sharing
    most = SHORT_UNIT.pairs
    if words is not None:
        workers = ranks.count * args.workers
        most = int(expected_pairs(args, text, words) / (UNITS_OF_A_ROUND * workers))
        is_long = most >= LONG_UNIT.pairs
    if is_long and args.sampling_scheme != "pool":
        return LONG_UNIT
    return dataclasses.replace(SHORT_UNIT, pairs=min(max(most, FEWEST_PAIRS), SHORT_UNIT.pairs))


def number_of_replicas(args: argparse.Namespace, vocabulary: Vocabulary, *, in_place: bool = False) -> int:
    """How many vectors are replicated: all if they fit."""
    fitting = shared.replicas_in(args.replica_memory, args.dim, in_place=in_place)
    most = fitting if args.replicate is None else args.replicate
    return min(most, 2 * len(vocabulary))


def replicate(
    args: argparse.Namespace, text: Text, usage: Usage, ranks: Ranks, number: int, words: int
) -> tuple[np.ndarray, lapse.Replication]:
    """The vectors that are used most, and how they are synchronized if rounds are so many words apart."""
    keys = shared.most_used(usage.together, number)
    rates = expected_weights(args, text)[keys] * words * shared.PACE
    pace = shared.pace(usage, keys, words, ranks)
    enough = ENOUGH_WEIGHT if args.sg else ENOUGH_WEIGHT_OF_CBOW
    return keys, dataclasses.replace(pace, combine=args.combine, wire=args.wire, rates=rates, enough=enough)


def words_per_round(args: argparse.Namespace, text: Text) -> int:
    """The number of words that all ranks together train between two rounds."""
    weight = WEIGHT_OF_SUMS if args.combine == "sum" else WEIGHT_OF_A_ROUND
    most = max(int(weight / max(expected_weights(args, text).max(initial=0), 1e-12)), 1)
    if args.sync_words is not None and args.sync_words > most:
        log.warning(
            "--sync-words %s would diverge on many ranks: synchronizing every %s words instead, the default",
            f"{args.sync_words:,}",
            f"{most:,}",
        )
    return most if args.sync_words is None else min(args.sync_words, most)


def expected_pairs(args: argparse.Namespace, text: Text, words: int) -> float:
    """The expected number of pairs of so many words of the text."""
    kept = (text.vocabulary.counts * text.vocabulary.keep_probability(args.sample)).sum()
    return words * (args.window + 1) * float(kept) / max(text.words, 1)


def expected_weights(args: argparse.Namespace, text: Text) -> np.ndarray:
    """Per key: the pairs that are expected to change its vector per word of the text, times the learning rate.

    A word is in as many pairs as the window has words on average, in each role. A pair changes one input vector as
    often as it has outputs, and as many output vectors; with ``--sg 0`` all pairs of a word change its outputs once.
    """
    vocabulary = text.vocabulary
    pairs = args.window + 1.0
    changes = pairs if args.sg else 1.0  # of an output
    kept = vocabulary.counts * vocabulary.keep_probability(args.sample) / max(text.words, vocabulary.total, 1)
    weights = noise(vocabulary, args.ns_exponent)
    weights *= changes * args.negative * kept.sum() / max(weights.sum(), 1e-300)
    weights[1::2] += changes * kept
    weights[::2] = pairs * (1 + args.negative) * kept
    return args.alpha * weights


def noise(vocabulary: Vocabulary, exponent: float = NOISE_POWER) -> np.ndarray:
    """The weight of each key as a negative: output vectors (keys 2w + 1) by the words' frequency to a power."""
    weights = np.zeros(2 * len(vocabulary))
    weights[1::2] = vocabulary.noise(exponent)
    return weights


def survey_usage(comm: Intracomm, args: argparse.Namespace, text: Text, unit: Unit) -> Usage:
    """Count a part of the text on each rank, and scale it to an epoch. Collective."""
    counts = np.zeros(2 * len(text.vocabulary), dtype=np.int64)
    counter = Counter(
        counts=counts,
        **pair_options(args, text.vocabulary, unit),
        block_units=1,
        lookahead=0,
        is_replicated=np.zeros(len(counts), dtype=np.uint8),
        seeds=(args.seed, comm.rank),
    )
    words = count_part(counter, text.blocks(comm.rank * args.workers))
    mine = np.append(counts, (counter.units, counter.sets, words)).astype(np.float64)
    everything = np.empty_like(mine)
    comm.Allreduce(mine, everything)
    used, (units, sets, words) = everything[:-3], everything[-3:]
    scale = text.words / max(words, 1)
    draws = args.negative * sets / max(units, 1)
    weights = noise(text.vocabulary, args.ns_exponent)
    sampled = units * -np.expm1(draws * np.log1p(-weights / weights.sum()))
    return Usage(scale * used, text.words, scale * sampled, scale * units)


def share_here(comm: Intracomm, args: argparse.Namespace, text: Text, usage: Usage, ranks: Ranks) -> np.ndarray:
    """Per key: the share of its uses that are on this host, according to its words in the text. Collective."""
    counts = np.zeros(len(text.vocabulary))
    for worker in range(comm.rank * args.workers, (comm.rank + 1) * args.workers):
        read = 0
        for block in text.blocks(worker):
            counts += np.bincount(block.words, minlength=len(counts))
            read += block.read
            if read >= COUNTED_WORDS:
                break
    everywhere, here = np.empty_like(counts), np.empty_like(counts)
    comm.Allreduce(counts, everywhere)
    host = comm.Split(comm.rank // ranks.sharing)  # ranks that share memory are numbered one after another
    host.Allreduce(counts, here)
    host.Free()
    of_words = np.repeat(here / np.maximum(everywhere, 1), 2)
    together = usage.together  # 0 for some rare words, of which the trial run has found none
    positive = np.divide(usage.positive, together, out=np.ones_like(together), where=together > 0)
    return of_words * positive + ranks.share * (1 - positive)  # negatives are drawn alike everywhere


def pair_options(args: argparse.Namespace, vocabulary: Vocabulary, unit: Unit) -> dict:
    """The parameters of the kernel that determine pairs."""
    shares = args.negatives_per == "word"
    return {
        "window": args.window,
        "negative": args.negative,
        "unit_pairs": args.unit or unit.pairs,
        "keep": vocabulary.keep_thresholds(args.sample),
        "shares_negatives": shares,
        # shared by the words of CBOW they cost 0.4% of the objective, and save little
        "negative_reuse": args.negative_reuse or (unit.reuse if shares and args.sg else 1),
    }


def count_part(counter: Counter, blocks: Iterable[Block]) -> int:
    """Count the beginning of a share; returns the number of words read."""
    read = 0
    for block in blocks:
        counter.add(block.words, block.ends)
        read += block.read
        if read >= TRIAL_WORDS:
            break
    counter.finish()
    return read


def choose_block(args: argparse.Namespace, usage: Usage, replicated: np.ndarray) -> int:
    """The number of units for which vectors that are not replicated are localized, pulled and pushed together."""
    if args.block is not None:
        return args.block
    most = np.delete(usage.positive, replicated).max(initial=0) / max(usage.units, 1)  # per unit
    return int(min(MAX_UNITS, max(1, USES_PER_BLOCK / max(most, 1e-9))))
