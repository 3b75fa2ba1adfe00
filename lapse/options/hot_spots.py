"""Floor 1. Which keys to replicate: those for which that costs less than to move them about.

A trial run, or the counts of the data itself (words, entities), says how often keys are accessed.
"""

import numpy as np

from lapse.base.checks import check_float, check_int, check_lengths

ELEMENT_BYTES = 4  # of a float32; with float64 values weigh even more against what surrounds them
RECORD_BYTES = 8  # of a message, for each key: the key itself, or its position
RECORDS_OF_RELOCATION = 3  # LOCALIZE, HAND_OVER and TRANSFER
#: A remote access makes a worker wait: in that time so many bytes could have been sent.
REMOTE_BYTES = 4000

RULES = ("cost", "mean")


def choose_hot_spots(
    counts, *, rule="cost", multiple=100, ranks=None, rounds=None, value_lengths=1, memory=0.1, sharing=1
):
    """Choose keys for `Server(replicated_keys=...)` by how often they are accessed.

    Parameters
    ----------
    counts : array_like of shape (num_keys,)
        Accesses of each key by all ranks together over some period, counted or expected.
    rule : {"cost", "mean"}
        "mean" takes the keys that are accessed more than `multiple` times as often as the mean key,
        and looks at nothing else. "cost" takes those whose replication saves bytes (see Notes),
        those first that save most for the memory they take.
    multiple : float
    ranks : int
        "cost": how many ranks there will be. One rank replicates nothing.
    rounds : float
        "cost": how many synchronisations of replicas there are in the same period.
    value_lengths : int or array_like of int
        "cost": elements per value, as for `Server`.
    memory : float
        "cost": the replicas take at most this share of the size of all values, on each rank.
    sharing : int
        "cost": how many ranks of one host share memory (`lapse.sharing_ranks`). A key that one of them owns is
        local to all; where all ranks share, nothing is replicated.

    Returns
    -------
    numpy.ndarray of int64
        The keys, sorted.

    Raises
    ------
    TypeError, ValueError
        For counts that are not numbers, or are negative; an unknown rule; "cost" without ranks or
        rounds; numbers out of range.

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
            "rule 'cost' weighs relocations against synchronisations: give ranks=, how many there will "
            "be, and rounds=, the synchronisations in the period of the counts; or take rule='mean'"
        )
    ranks = check_int(ranks, "ranks", 1, 2**16 - 1)
    rounds = check_float(rounds, "rounds", 0, np.finfo(float).max)
    if rounds == 0:
        raise ValueError(
            "rounds is 0, but must be positive: without synchronisation nothing is replicated"
        )
    sizes = np.full(len(counts), ELEMENT_BYTES, dtype=np.float64) * check_lengths(value_lengths, len(counts), 2**31)
    memory = check_float(memory, "memory", 0, 1)
    sharing = check_int(sharing, "sharing", 1, ranks)
    savings = saved_bytes(counts / rounds, ranks, sizes, sharing)
    return _take_best(savings, sizes, memory * sizes.sum())


def saved_bytes(accesses, ranks, sizes, sharing=1):
    """The bytes per round that replicating a key saves, for arrays of accesses per round and value sizes.

    Negative where relocating is cheaper; `choose_hot_spots` explains the estimate.
    """
    elsewhere = (ranks - sharing) / ranks
    relocating = accesses * elsewhere * (sizes + RECORDS_OF_RELOCATION * RECORD_BYTES)
    relocating += accesses * -np.expm1(-accesses * elsewhere) * REMOTE_BYTES
    to_home = -np.expm1(-accesses / ranks) * (ranks - 1)
    from_home = (ranks - 1) * -np.expm1(-accesses)
    return relocating - (to_home + from_home) * (sizes + RECORD_BYTES)


def _take_best(savings, sizes, room):
    """The sorted keys with the largest savings per byte, as many as there is room for."""
    keys = np.flatnonzero((savings > 0) & (sizes <= room))
    best = keys[np.argsort(-savings[keys] / sizes[keys], kind="stable")]
    return np.sort(best[np.cumsum(sizes[best]) <= room])


def _check_counts(given):
    counts = np.asarray(given)
    if counts.dtype.kind not in "iuf" and counts.size:
        raise TypeError(f"counts must be numbers, not {counts.dtype}")
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(
            f"counts have shape {counts.shape}, but must have one number for each key, shape (num_keys,)"
        )
    counts = counts.astype(np.float64)
    good = np.isfinite(counts) & (counts >= 0)
    if not good.all():
        key = int(np.argmin(good))
        raise ValueError(
            f"counts has {counts[key]} at key {key}, but must be finite and not negative"
        )
    return counts
