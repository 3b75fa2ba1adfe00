"""Floor 4. The arguments of a server: each rank checks its own, then all compare.

Before anything is created, so that a bad argument on one rank is an error on all and never a hang.
"""

import hashlib
import sys

import numpy as np
from mpi4py import MPI

from lapse._version import __version__
from lapse.base import environment
from lapse.base.checks import check_int, check_lengths
from lapse.errors import CommError
from lapse.options.replication import Replication
from lapse.options.sampling import Sampling

MAX_KEYS = 2**32 - 2  # slots and keys are 32 bits in the directory and in messages
MAX_RANKS = 2**16 - 1
MAX_VALUE_BYTES = 2**31
MAX_WORKERS = 4096


def agree(comm, given):
    """Check this rank's arguments, then compare all ranks'. Nothing is created before."""
    error, digest, workers, arguments = None, None, 0, None
    try:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
            raise CommError(
                "MPI was initialised without MPI_THREAD_MULTIPLE, which Lapse needs: "
                "leave mpi4py.rc.thread_level at its default, 'multiple'"
            )
        if comm.size > MAX_RANKS:
            raise ValueError(f"comm has {comm.size} ranks, but at most {MAX_RANKS} are possible")
        arguments = _check_arguments(given)
        digest, workers = _digest(arguments), arguments["workers"]
    except Exception as caught:  # whatever it is, the other ranks must hear of it
        error = caught
    reports = comm.allgather((None if error is None else str(error), digest, workers))
    if error is not None:
        raise error
    for rank, (text, theirs, _) in enumerate(reports):
        if text is not None:
            raise ValueError(f"rank {rank} has a bad argument: {text}")
        for name in digest:
            first = reports[0][1]
            if theirs[name] != first[name]:
                raise ValueError(
                    f"{name} differs between ranks: {first[name]!r} on rank 0, {theirs[name]!r} on rank {rank}"
                )
    return arguments, [workers for _, _, workers in reports]


def raise_first(comm, error):
    """Raise on every rank where one has an error: its own, else one that names the rank."""
    texts = comm.allgather(None if error is None else str(error))
    if error is not None:
        raise error
    for rank, text in enumerate(texts):
        if text is not None:
            raise MemoryError(f"rank {rank}: {text}")


def _check_arguments(given):
    """The arguments in the form in which they are used; raises for what is out of range."""
    number = check_int(given["num_keys"], "num_keys", 1, MAX_KEYS)
    dtype = _check_dtype(given["dtype"])
    return dict(
        num_keys=number,
        dtype=dtype,
        value_lengths=check_lengths(given["value_lengths"], number, MAX_VALUE_BYTES // dtype.itemsize),
        replicated_keys=_check_replicated(given["replicated_keys"], number),
        replication=_check_replication(given["replication"]),
        workers=check_int(given["workers"], "workers", 1, MAX_WORKERS),
        sampling=_check_sampling(given["sampling"], number),
        shared_memory=_check_shared_memory(given["shared_memory"]),
        sharing_ranks=environment.sharing_ranks(),
        max_in_flight=check_int(given["max_in_flight"], "max_in_flight", 1, 2**62),
        seed=check_int(given["seed"], "seed", 0, 2**60),
    )


def _check_dtype(given):
    try:
        dtype = None if given is None else np.dtype(given)
    except TypeError:
        dtype = None
    if dtype is None or dtype.str[1:] not in ("f4", "f8") or not dtype.isnative:
        raise ValueError(f"dtype is {given!r}, but must be 'float32' or 'float64'")
    return dtype


def _check_replicated(given, num_keys):
    keys = np.array(() if given is None else given)
    if keys.size == 0:
        return np.empty(0, dtype=np.int64)
    if keys.dtype.kind not in "iu":
        raise TypeError(f"replicated_keys must be integers, not {keys.dtype}")
    if keys.ndim != 1:
        raise ValueError(f"replicated_keys has shape {keys.shape}, but must be one-dimensional")
    keys.sort()
    for key in (keys[0], keys[-1]):
        if not 0 <= key < num_keys:
            raise ValueError(f"replicated_keys has {key}, but keys are from 0 to {num_keys - 1}")
    repeated = keys[1:][keys[1:] == keys[:-1]]
    if repeated.size:
        raise ValueError(f"replicated_keys has {repeated[0]} more than once: name each key once")
    return keys.astype(np.int64)


def _check_replication(given):
    if given is None:
        return Replication()
    if not isinstance(given, Replication):
        raise TypeError(f"replication must be a lapse.Replication or None, not {given!r}")
    return given


def _check_sampling(given, num_keys):
    if given is not None and not isinstance(given, Sampling):
        raise TypeError(f"sampling must be a lapse.Sampling or None, not {given!r}")
    if given is not None and given.distribution.high > num_keys:
        raise ValueError(
            f"sampling draws keys {given.distribution.low} .. {given.distribution.high - 1}, but the "
            f"server has the keys 0 .. {num_keys - 1}"
        )
    return given


def _check_shared_memory(given):
    allowed = environment.shares_memory()
    if given is not None and not isinstance(given, (bool, np.bool_)):
        raise TypeError(f"shared_memory must be True, False or None, not {given!r}")
    return allowed and given is not False


def _digest(arguments):
    """What all ranks must have in common, small enough to send around."""
    lengths = arguments["value_lengths"]
    if not isinstance(lengths, int):
        lengths = "array " + _hash(lengths)
    common = {
        name: arguments[name]
        for name in ("num_keys", "dtype", "shared_memory", "sharing_ranks", "max_in_flight", "seed")
    }
    common["dtype"] = str(common["dtype"])
    common["sampling"] = repr(arguments["sampling"])  # with a digest of the weights
    return {
        **common,
        "value_lengths": lengths,
        "replicated_keys": _describe(arguments["replicated_keys"]),
        "replication": repr(arguments["replication"]),
        "lapse version": __version__,
        "byte order": sys.byteorder,
    }


def _describe(keys):
    return f"{len(keys)} keys {_hash(keys)[:12]}"


def _hash(lengths, block=1 << 16):
    """A digest of integers, whatever their dtype."""
    digest = hashlib.sha256()
    for first in range(0, len(lengths), block):
        digest.update(lengths[first : first + block].astype(np.int64))
    return digest.hexdigest()
