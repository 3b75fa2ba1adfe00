"""Which technique manages which parameter: what is replicated, relocated ahead of its use, or stays on its home rank.

An application estimates how it uses its parameters (`Usage`) before the server exists; from that, the functions here
decide, alike on all ranks. If all ranks share memory, every parameter is local to all of them: nothing is relocated,
and nothing is replicated unless ``--replicate`` asks for it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared.memory import Room

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: How negatives are drawn without ``--sampling-scheme``.
SCHEMES = {"classic": "naive", "lapse": "preloc", "lapse2": "local"}
#: Workers wait at 1.5 times `max_pending`: two thirds of the items that ``--sync-...`` allows, and a little less,
#: because the number of pushes per item is an estimate.
PACE = 0.9 / 1.5
FLOAT_BYTES = 4
#: A replica takes so many vectors of its length; one more if kernels borrow it.
VECTORS_OF_REPLICA = 3


@dataclass(frozen=True)
class Ranks:
    """The ranks of a job.

    Attributes
    ----------
    count
        How many there are.
    sharing
        How many of them share memory.
    """

    count: int
    sharing: int = 1

    @classmethod
    def of(cls, comm: Intracomm) -> Ranks:
        """Those of a communicator. Collective."""
        return cls(comm.size, lapse.sharing_ranks(comm))

    @property
    def are_apart(self) -> bool:
        """Whether some ranks share no memory."""
        return self.sharing < self.count

    @property
    def share(self) -> float:
        """The share of all ranks that have replicas together: those that share memory."""
        return self.sharing / self.count


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How the server and the kernel manage parameters.

    Attributes
    ----------
    localize
        Whether keys that are not replicated are localized ahead of their use.
    lookahead
        How many units ahead.
    replicated_keys
        Sorted.
    replication, sampling, optimizer
        For the server; `sampling` is None without negatives, `optimizer` if the kernel takes the steps itself.
    """

    localize: bool
    lookahead: int
    replicated_keys: np.ndarray
    replication: lapse.Replication
    sampling: lapse.Sampling | None = None
    optimizer: lapse.optim.Optimizer | None = None


@dataclass(frozen=True)
class Usage:
    """How an epoch of all workers together uses parameters.

    A unit is what is trained between a pull of parameters and a push of their changes.

    Attributes
    ----------
    positive
        Per key: the number of units that use it as a part of the data.
    items
        The number of items: of what ``--sync-...`` counts.
    sampled
        Per key: the expected number of units that have it among their negatives.
    units
        The number of units; only needed with negatives.
    """

    positive: np.ndarray
    items: int
    sampled: np.ndarray | float = 0.0
    units: float = 1.0

    @property
    def together(self) -> np.ndarray:
        """Per key: the expected number of units that use it in either role."""
        return self.positive + self.sampled * (1 - np.minimum(self.positive / max(self.units, 1), 1))


def localizes(args: argparse.Namespace, ranks: Ranks) -> bool:
    """Whether parameters are relocated."""
    return args.management != "classic" and ranks.are_apart


def replicates(args: argparse.Namespace, ranks: Ranks) -> bool:
    """Whether parameters may be replicated."""
    return args.management == "lapse2" and (ranks.are_apart or (bool(args.replicate) and ranks.count > 1))


def choose_scheme(args: argparse.Namespace, ranks: Ranks, num_sampled: int, few: float) -> str:
    """How negatives are drawn.

    Parameters
    ----------
    num_sampled
        The number of keys that they are drawn from.
    few
        If a rank (or the ranks that share memory) owns fewer of these keys than `few`, many of them are those of the
        data at hand: negatives from among them would be what the model is to predict.
    """
    if args.sampling_scheme:
        return args.sampling_scheme
    if not ranks.are_apart:  # all keys are local: no scheme is better
        return "naive"
    scheme = SCHEMES[args.management]
    return "preloc" if scheme == "local" and num_sampled < few * ranks.count / ranks.sharing else scheme


def make_sampling(
    args: argparse.Namespace, scheme: str, distribution: lapse.Uniform | lapse.Weighted
) -> lapse.Sampling:
    """The sampling of negatives, for the server."""
    if scheme != "pool":  # the options are for pools only
        return lapse.Sampling(scheme, distribution)
    return lapse.Sampling(scheme, distribution, reuse=args.sampling_reuse, postpone=args.sampling_postpone)


def not_replicated() -> tuple[np.ndarray, lapse.Replication]:
    """What `replicate` returns if no key is replicated."""
    return np.empty(0, np.int64), lapse.Replication()


def replicate(
    args: argparse.Namespace,
    usage: Usage,
    ranks: Ranks,
    items_per_round: int,
    value_lengths: int | np.ndarray,
    *,
    scheme: str = "naive",
    first: int = 0,
    memory: float = 0.1,
) -> tuple[np.ndarray, lapse.Replication]:
    """Choose the keys to replicate (sorted), and how often replicas are synchronized.

    The keys are those for which it is cheaper, or as many as ``--replicate`` says. Negatives count as uses if their
    scheme relocates or pulls them: not in the local scheme, and in a pool once for all the times that a draw is used.

    Parameters
    ----------
    items_per_round
        The maximum number of items between two synchronizations of replicas.
    first
        Keys below this one are not replicated.
    memory
        The maximum share of the size of all values that replicas take.
    """
    times = {"local": 0.0, "pool": 1 / getattr(args, "sampling_reuse", 1)}.get(scheme, 1.0)
    counts = usage.positive + times * usage.sampled
    if args.replicate is None:
        keys = lapse.choose_hot_spots(
            counts,
            ranks=ranks.count,
            rounds=max(usage.items / items_per_round, 1),
            value_lengths=value_lengths,
            memory=memory,
            sharing=ranks.sharing,
        )
    else:
        keys = first + most_used(counts[first:], args.replicate)
    return keys, pace(usage, keys, items_per_round, ranks)


def replicas_in(megabytes: int, length: int, *, in_place: bool = False) -> int:
    """How many replicas of values with this many elements fit into a memory."""
    return int(megabytes * 1e6 / ((VECTORS_OF_REPLICA + in_place) * FLOAT_BYTES * length))


def number_in(megabytes: int, lengths: np.ndarray, counts: np.ndarray) -> int:
    """How many of the keys with the largest counts fit into a memory, if values have these numbers of elements."""
    order = np.argsort(-counts, kind="stable")
    most = megabytes * 1e6 / (VECTORS_OF_REPLICA * FLOAT_BYTES)
    return int(np.searchsorted(np.cumsum(lengths[order]), most, side="right"))


def most_used(counts: np.ndarray, number: int) -> np.ndarray:
    """The keys with the largest counts, sorted."""
    return np.sort(np.argsort(-counts, kind="stable")[:number])


def pace(usage: Usage, replicated: np.ndarray, items_per_round: int, ranks: Ranks) -> lapse.Replication:
    """Rounds by work: all ranks together train at most `items_per_round` items between two rounds of one rank."""
    pushes_per_item = usage.together[replicated].sum() / max(usage.items, 1)
    return lapse.Replication(max_pending=max(int(PACE * pushes_per_item * items_per_round * ranks.share), 1))


def log_replicated(placement: Placement, num_keys: int, keys: str, pace: str) -> None:
    """Log how many of the `keys` are replicated, and how often (`pace`) replicas are synchronized."""
    if len(placement.replicated_keys):
        log.info(
            "%s of %s %s are replicated, synchronized %s",
            f"{len(placement.replicated_keys):,}",
            f"{num_keys:,}",
            keys,
            pace,
        )


def every(items_per_round: int, items: str) -> str:
    """The pace for `log_replicated`, if it is the same all the time."""
    return f"at least every {items_per_round:,} {items} of all ranks"


def make_server(
    comm: Intracomm,
    args: argparse.Namespace,
    placement: Placement,
    num_keys: int,
    value_lengths: int | np.ndarray,
    seed: int,
) -> lapse.Server:
    """A server with this placement. Collective.

    Raises
    ------
    AppError
        On all ranks, if its values do not fit into the memory of the hosts.
    """
    numbers = int(value_lengths.sum()) if isinstance(value_lengths, np.ndarray) else num_keys * value_lengths
    Room.of(comm).check(
        f"{num_keys:,} values of {numbers / num_keys:,.0f} numbers x {FLOAT_BYTES} bytes",
        numbers * FLOAT_BYTES,
        num_keys,
        "choose shorter vectors, fewer of them, or more hosts",
    )
    return lapse.Server(
        num_keys,
        value_lengths,
        workers=args.workers,
        comm=comm,
        seed=seed,
        replicated_keys=placement.replicated_keys,
        replication=placement.replication,
        sampling=placement.sampling,
        optimizer=placement.optimizer,
    )


@dataclass(frozen=True)
class NormalThenZero:
    """Initial values: normally distributed parameters, followed by zeros (biases, the state of the optimizer)."""

    normal: Callable[[int], int]
    std: float

    def values(self, keys: np.ndarray, length: int, seed: int) -> np.ndarray:
        """For `lapse.Server.initialize`: values of shape (len(keys), length)."""
        values = np.zeros((len(keys), length))
        count = self.normal(length)
        values[:, :count] = lapse.Normal(0.0, self.std).values(keys, count, seed)
        return values
