"""Floor 1. Which keys to replicate: those for which replication costs less than relocation.

How often keys are accessed is known from a trial run, or from counts of the data itself (words, entities).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lapse.base.checks import check_float, check_int, check_lengths
from lapse.options.network import Network
from lapse.options.replication import Replication

ELEMENT_BYTES = 4  # of a float32; float64 values outweigh the records that surround them even more
RECORD_BYTES = 8  # of a message, for each key: the key itself, or its position
RECORDS_OF_RELOCATION = 3  # LOCALIZE, HAND_OVER and TRANSFER
EXCHANGES_OF_ROUND = 2  # each between all ranks
NEXT_SIZE = 1.3  # of the sets that are compared

RULES = ("cost", "mean")


def choose_hot_spots(
    counts: Any,
    *,
    rule: str = "cost",
    multiple: float = 100,
    ranks: int | None = None,
    rounds: float | None = None,
    value_lengths: Any = 1,
    memory: float = 0.1,
    sharing: int = 1,
    replication: Replication | None = None,
    network: Network | None = None,
    in_flight: float = 10,
) -> np.ndarray:
    """Choose keys for `Server(replicated_keys=...)` by how often they are accessed.

    Parameters
    ----------
    counts : array_like of shape (num_keys,)
        Accesses of each key by all ranks together over some period, counted or expected.
    rule : {"cost", "mean"}
        "mean" takes the keys that are accessed more than `multiple` times as often as the mean key,
        and considers nothing else. "cost" takes those whose replication saves time (see Notes),
        first those that save most for the memory that they need.
    multiple : float
    ranks : int
        "cost": the number of ranks. One rank replicates nothing.
    rounds : float, optional
        "cost": the number of synchronizations of replicas in the period of the counts. By default what follows from
        the `max_pending` of `replication` and the keys that are chosen, if each access is a pull and a push.
    value_lengths : int or array_like of int
        "cost": elements per value, as for `Server`.
    memory : float
        "cost": the replicas take at most this share of the size of all values, on each rank.
    sharing : int
        "cost": how many ranks of one host share memory (`lapse.sharing_ranks`). A key that one of them owns is
        local to all; when all ranks share, nothing is replicated.
    replication : lapse.Replication, optional
        "cost": how replicas will be synchronized: `max_pending` says how often, `wire` with how many bytes, and
        `rates`, if there are any, in which rounds a key takes part. Here `rates` has one number for each key of the
        counts; pass those of the chosen keys to the server.
    network : lapse.Network, optional
        "cost": what messages cost, as `lapse.measure_network` measures it. By default a network of 10 Gb/s.
    in_flight : float
        "cost": how many remote accesses a rank has under way at the same time: keys of a call, times the calls that
        are not waited for. A worker's waiting is shared among them.

    Returns
    -------
    numpy.ndarray of int64
        The keys, sorted.

    Raises
    ------
    TypeError
        When an argument has the wrong type.
    ValueError
        When counts are negative or not finite, the rule is unknown, a number is out of range, or "cost" is
        used without ranks or rounds.

    Notes
    -----
    "mean" with 100 is the untuned heuristic of Renz-Wieland et al., *NuPS: A Parameter Server for
    Machine Learning with Non-Uniform Parameter Access*, SIGMOD 2022.

    "cost" estimates seconds per round, of all ranks together. Let n ranks access a key a times in a round, each as
    often as the others and independently, with a value of V bytes (v on the wire), and let a record with b bytes cost
    c(b) = record_seconds + (8 + b) / bytes_per_second:

    * relocated, an access finds the key elsewhere with probability p = (n-s)/n, where s ranks share memory, and moves
      it there by three records, one with the value. If another rank wants it in the same round, a worker waits:
      ``a p (2 c(0) + c(V)) + a (1 - exp(-a p)) latency / in_flight``;
    * replicated, each of the h = n/s groups of ranks that share memory sends its changes if it made any, but that of
      the key's home, which sends the sum to the h-1 others if anybody did. A record of a round changes two vectors, and
      so does each push. With Poisson numbers of accesses:
      ``(h (1 - exp(-a/h)) (h-1)/h + (h-1) (1 - exp(-a))) (c(v) + record_seconds) + a (c(V) - 8 / bytes_per_second)``.

    Besides, a round costs each rank two exchanges, ``2 latency``, whatever is in it. Of sets of the most frequent keys
    the one that saves most is taken, and none if none saves anything.

    So a key that is accessed much less than once a round is relocated, and one that every rank accesses
    many times a round is replicated.

    Examples
    --------
    >>> choose_hot_spots([900, 1, 0, 40], ranks=4, rounds=10, memory=0.5)
    array([0, 3])
    >>> pace = Replication(max_pending=1000)
    >>> choose_hot_spots([90000, 1, 0, 4000], ranks=4, replication=pace, memory=0.5)
    array([0, 3])
    >>> choose_hot_spots([1000, 1, 0, 0], rule="mean", multiple=3)
    array([0])
    """
    counts = _check_counts(counts)
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}, but must be one of {', '.join(RULES)}")
    if rule == "mean":
        multiple = check_float(multiple, "multiple", 0, np.finfo(float).max)
        return np.flatnonzero(counts > multiple * counts.mean())
    if ranks is None:
        raise ValueError("rule 'cost' needs ranks=, the number of ranks; or use rule='mean'")
    ranks = check_int(ranks, "ranks", 1, 2**16 - 1)
    sharing = check_int(sharing, "sharing", 1, ranks)
    pushes_per_round = _pushes_per_round(rounds, replication, ranks / sharing)
    if rounds is not None:
        rounds = check_float(rounds, "rounds", 0, np.finfo(float).max)
        if rounds == 0:
            raise ValueError("rounds is 0, but must be positive: without synchronization nothing is replicated")
    sizes = np.full(len(counts), ELEMENT_BYTES, dtype=np.float64) * check_lengths(value_lengths, len(counts), 2**31)
    memory = check_float(memory, "memory", 0, 1)
    cost = Cost(
        ranks,
        sharing,
        network or Network(),
        check_float(in_flight, "in_flight", 1, np.finfo(float).max),
        0.5 if replication is not None and replication.wire == "bfloat16" else 1.0,
    )
    every = _rounds_between(replication, len(counts))
    return _best_set(counts, sizes, every, memory * sizes.sum(), cost, rounds, pushes_per_round)


def _pushes_per_round(rounds: float | None, replication: Replication | None, hosts: float) -> float:
    """Of all ranks, to replicas, if the number of rounds is not given."""
    if rounds is not None:
        return np.inf
    if replication is None or replication.max_pending is None:
        raise ValueError(
            "rule 'cost' weighs relocations against synchronizations: pass replication=, with max_pending, or "
            "rounds=, the number of synchronizations in the period of the counts; or use rule='mean'"
        )
    return float(replication.max_pending) * hosts


def _rounds_between(replication: Replication | None, num_keys: int) -> np.ndarray | float:
    """Each key takes part in every so many-th round."""
    levels = None if replication is None else replication.levels()
    if levels is None:
        return 1.0
    if len(levels) != num_keys:
        raise ValueError(f"the rates of replication are {len(levels)}, but must be one for each of {num_keys} counts")
    return 2.0**levels


@dataclass(frozen=True)
class Cost:
    """What relocation and replication cost, see `choose_hot_spots`."""

    ranks: int
    sharing: int = 1
    network: Network = field(default_factory=Network)
    in_flight: float = 10.0
    wire: float = 1.0

    def saved_seconds(self, accesses: np.ndarray | float, sizes: np.ndarray | float) -> np.ndarray:
        """What replicating a key saves between two rounds in which it takes part; negative if relocation is cheaper."""
        hosts, p = self.ranks / self.sharing, (self.ranks - self.sharing) / self.ranks
        per_byte = 1 / self.network.bytes_per_second
        vector = self.network.record_seconds
        record = vector + RECORD_BYTES * per_byte
        relocating = accesses * p * (RECORDS_OF_RELOCATION * record + sizes * per_byte)
        relocating += accesses * -np.expm1(-accesses * p) * self.network.latency / self.in_flight
        records = (hosts - 1) * (-np.expm1(-accesses / hosts) - np.expm1(-accesses))
        replicating = records * (record + self.wire * sizes * per_byte + vector)
        return relocating - replicating - accesses * (sizes * per_byte + vector)

    @property
    def of_round(self) -> float:
        """What a round costs all ranks together, whatever is in it."""
        return self.ranks * EXCHANGES_OF_ROUND * self.network.latency


def _best_set(
    counts: np.ndarray,
    sizes: np.ndarray,
    every: np.ndarray | float,
    room: float,
    cost: Cost,
    rounds: float | None,
    pushes_per_round: float,
) -> np.ndarray:
    """Of sets of the most frequent keys that fit into `room` bytes, the one that saves most."""
    best, most = np.empty(0, dtype=np.int64), 0.0
    if cost.sharing == cost.ranks:
        return best
    keys = np.flatnonzero((counts > 0) & (sizes <= room))
    keys = keys[np.argsort(-counts[keys] / sizes[keys], kind="stable")]
    every = np.broadcast_to(every, counts.shape)
    size: float = len(keys) if rounds is not None else 1
    while len(keys):
        part = keys[: int(size)]
        pace = rounds or max(counts[part].sum() / pushes_per_round, 1.0)
        times = pace / every[part]
        savings = cost.saved_seconds(counts[part] / times, sizes[part]) * times
        part, saved = _take_best(part, savings, sizes, room)
        if saved - pace * cost.of_round > most:
            best, most = part, saved - pace * cost.of_round
        if size >= len(keys) or len(part) < 0.5 * int(size):  # more keys would only make rounds more frequent
            break
        size = min(max(size * NEXT_SIZE, size + 1), len(keys))
    return np.sort(best)


def _take_best(keys: np.ndarray, savings: np.ndarray, sizes: np.ndarray, room: float) -> tuple[np.ndarray, float]:
    """The keys with the largest savings per byte, as many as fit into `room` bytes; what they save together."""
    good = savings > 0
    keys, savings = keys[good], savings[good]
    order = np.argsort(-savings / sizes[keys], kind="stable")
    order = order[np.cumsum(sizes[keys[order]]) <= room]
    return keys[order], float(savings[order].sum())


def _check_counts(given: Any) -> np.ndarray:
    counts = np.asarray(given)
    if counts.dtype.kind not in "iuf" and counts.size:
        raise TypeError(f"counts must be numbers, not {counts.dtype}")
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(f"counts have shape {counts.shape}, but must have one number for each key, shape (num_keys,)")
    counts = counts.astype(np.float64)
    good = np.isfinite(counts) & (counts >= 0)
    if not good.all():
        key = int(np.argmin(good))
        raise ValueError(f"counts has {counts[key]} at key {key}, but must be finite and not negative")
    return counts
