"""Floor 1. Which keys to replicate: those for which replication costs less than relocation.

How often keys are accessed is known from a trial run, or from counts of the data itself (words, entities).
"""

from typing import Any

import numpy as np

from lapse.base.checks import check_float, check_int, check_lengths

ELEMENT_BYTES = 4  # of a float32; float64 values outweigh the records that surround them even more
RECORD_BYTES = 8  # of a message, for each key: the key itself, or its position
RECORDS_OF_RELOCATION = 3  # LOCALIZE, HAND_OVER and TRANSFER
#: A remote access makes a worker wait: in that time this many bytes could have been sent.
REMOTE_BYTES = 4000

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
) -> np.ndarray:
    """Choose keys for `Server(replicated_keys=...)` by how often they are accessed.

    Parameters
    ----------
    counts : array_like of shape (num_keys,)
        Accesses of each key by all ranks together over some period, counted or expected.
    rule : {"cost", "mean"}
        "mean" takes the keys that are accessed more than `multiple` times as often as the mean key,
        and considers nothing else. "cost" takes those whose replication saves bytes (see Notes),
        first those that save most for the memory that they need.
    multiple : float
    ranks : int
        "cost": the number of ranks. One rank replicates nothing.
    rounds : float
        "cost": the number of synchronizations of replicas in the period of the counts.
    value_lengths : int or array_like of int
        "cost": elements per value, as for `Server`.
    memory : float
        "cost": the replicas take at most this share of the size of all values, on each rank.
    sharing : int
        "cost": how many ranks of one host share memory (`lapse.sharing_ranks`). A key that one of them owns is
        local to all; when all ranks share, nothing is replicated.

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

    "cost" estimates bytes per round for a key that n ranks access a times in a round, each as often
    as the others and independently, with a value of V bytes and r more for each record of a message:

    * relocated, an access finds the key elsewhere with probability (n-s)/n, where s ranks share memory, and
      moves it there by three records, one with the value: ``a (n-s)/n (V + 3r)``;
    * replicated, each rank but the key's home sends its changes if it made any, and the home sends
      the sum to the n-1 others if anybody did. With Poisson numbers of accesses:
      ``(n (1 - exp(-a/n)) (n-1)/n + (n-1) (1 - exp(-a))) (V + r)``.

    So a key that is accessed much less than once a round is relocated, and one that every rank accesses
    many times a round is replicated.

    Examples
    --------
    >>> choose_hot_spots([900, 1, 0, 40], ranks=4, rounds=10, memory=0.5)
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
    if ranks is None or rounds is None:
        raise ValueError(
            "rule 'cost' weighs relocations against synchronizations: pass ranks=, the number of ranks, and "
            "rounds=, the number of synchronizations in the period of the counts; or use rule='mean'"
        )
    ranks = check_int(ranks, "ranks", 1, 2**16 - 1)
    rounds = check_float(rounds, "rounds", 0, np.finfo(float).max)
    if rounds == 0:
        raise ValueError("rounds is 0, but must be positive: without synchronization nothing is replicated")
    sizes = np.full(len(counts), ELEMENT_BYTES, dtype=np.float64) * check_lengths(value_lengths, len(counts), 2**31)
    memory = check_float(memory, "memory", 0, 1)
    sharing = check_int(sharing, "sharing", 1, ranks)
    savings = saved_bytes(counts / rounds, ranks, sizes, sharing)
    return _take_best(savings, sizes, memory * sizes.sum())


def saved_bytes(accesses: np.ndarray, ranks: int, sizes: np.ndarray, sharing: int = 1) -> np.ndarray:
    """The bytes per round that replicating a key saves, for arrays of accesses per round and value sizes.

    Negative when relocating is cheaper; `choose_hot_spots` explains the estimate.
    """
    elsewhere = (ranks - sharing) / ranks
    relocating = accesses * elsewhere * (sizes + RECORDS_OF_RELOCATION * RECORD_BYTES)
    relocating += accesses * -np.expm1(-accesses * elsewhere) * REMOTE_BYTES
    to_home = -np.expm1(-accesses / ranks) * (ranks - 1)
    from_home = (ranks - 1) * -np.expm1(-accesses)
    return relocating - (to_home + from_home) * (sizes + RECORD_BYTES)


def _take_best(savings: np.ndarray, sizes: np.ndarray, room: float) -> np.ndarray:
    """The sorted keys with the largest savings per byte, as many as fit into `room` bytes."""
    keys = np.flatnonzero((savings > 0) & (sizes <= room))
    best = keys[np.argsort(-savings[keys] / sizes[keys], kind="stable")]
    return np.sort(best[np.cumsum(sizes[best]) <= room])


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
