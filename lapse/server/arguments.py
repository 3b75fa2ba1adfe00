"""Floor 5. The arguments of a server: each rank checks its own, then all ranks compare.

This is done before anything is created, so that a bad argument on one rank is an error on all ranks and never a hang.
"""

import dataclasses
import sys
from typing import Any

import numpy as np

from lapse._version import __version__
from lapse.base import environment
from lapse.base.checks import brief, check_int, check_lengths
from lapse.base.error_text import text_of
from lapse.base.uncaught import note_known
from lapse.errors import CommError
from lapse.options.optimizers import Optimizer, check_optimizer
from lapse.options.replication import MAX_ADAPTIVE_LENGTH, Replication
from lapse.options.sampling import Sampling
from lapse.options.tables import Tables
from lapse.server.arrival import wait_for_all
from lapse.server.digests import sha256_of_array
from mpi4py import MPI

MAX_KEYS = 2**32 - 2  # slots and keys are 32 bits in the directory and in messages
MAX_RANKS = 2**16 - 1
MAX_VALUE_BYTES = 2**31
MAX_WORKERS = 4096


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The arguments of `Server` in the form in which they are used, and the environment variables that go with them.

    Attributes
    ----------
    num_keys : int
    dtype : numpy.dtype
    value_lengths : int or numpy.ndarray
        For all keys, or one for each.
    tables : Tables or None
    optimizers : list of (int, Optimizer or None)
        Those of the keys from the end of the one before up to this end; empty: none has one.
    replicated_keys : numpy.ndarray of int64
        Sorted.
    replication : Replication
    replica_levels : uint8 array or None
        For each replicated key n, if it takes part in every 2**n-th round.
    workers, threads_per_call : int
        Of this rank.
    sampling : Sampling or None
    shared_memory : bool
    sharing_ranks : int or None
        How many neighbouring ranks of a host share memory; None: all.
    dilation : float
        How many times slower time goes.
    silence, stall : float
        Seconds without a message after which the job ends, and without progress after which a wait is reported.
    max_in_flight : int
    seed : int
    """

    num_keys: int
    dtype: np.dtype
    value_lengths: int | np.ndarray
    tables: Tables | None
    optimizers: list[tuple[int, Optimizer | None]]
    replicated_keys: np.ndarray
    replication: Replication
    replica_levels: np.ndarray | None
    workers: int
    threads_per_call: int
    sampling: Sampling | None
    shared_memory: bool
    sharing_ranks: int | None
    dilation: float
    silence: float
    stall: float
    max_in_flight: int
    seed: int


def agree(comm: MPI.Intracomm, given: dict[str, Any]) -> tuple[Arguments, list[int]]:
    """Check this rank's arguments, then compare those of all ranks. Collective.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    given : dict
        By name, as they were given to `Server`.

    Returns
    -------
    arguments : Arguments
    workers : list of int
        By rank.

    Raises
    ------
    Exception
        When an argument of this rank is bad.
    ValueError
        When one of another rank is, or when two ranks' arguments differ: names the rank and the argument.
    """
    error, digest, workers, arguments = None, {}, 0, None
    wait_for_all(comm, "lapse.Server(...)")
    try:
        _check_mpi(comm)
        arguments = _check_arguments(given)
        digest, workers = _digest(arguments), arguments.workers
    except Exception as caught:  # whatever it is, the other ranks must learn of it
        error = caught
    reports = comm.allgather((None if error is None else text_of(error), digest, workers))
    if error is not None:
        raise _known(error, [text for text, _, _ in reports], comm.rank)
    for rank, (text, theirs, _) in enumerate(reports):
        if text is not None:
            raise _known(ValueError(f"rank {rank} has a bad argument: {text}"), [], rank)
        _check_equal(reports[0][1], theirs, rank)
    assert arguments is not None
    return arguments, [workers for _, _, workers in reports]


def raise_first(comm: MPI.Intracomm, error: Exception | None) -> None:
    """Raise on every rank when one has an error: its own, else one that names the rank. Collective."""
    reports = comm.allgather(None if error is None else (isinstance(error, MemoryError), text_of(error)))
    if error is not None:
        raise _known(error, [report and report[1] for report in reports], comm.rank)
    for rank, report in enumerate(reports):
        if report is not None:
            is_of_memory, text = report
            raise _known((MemoryError if is_of_memory else RuntimeError)(f"rank {rank}: {text}"), [], rank)


def _known(error: Exception, texts: list[str | None], rank: int) -> Exception:
    """An error that all ranks raise, reported by `rank` or by the first that has the same."""
    text = text_of(error)
    note_known(error, next((other for other, theirs in enumerate(texts) if theirs == text), rank))
    return error


def _check_mpi(comm: MPI.Intracomm) -> None:
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise CommError(
            "MPI was initialized without MPI_THREAD_MULTIPLE, which Lapse needs: "
            "leave mpi4py.rc.thread_level at its default, 'multiple'"
        )
    if comm.size > MAX_RANKS:
        raise ValueError(f"comm has {comm.size} ranks, but at most {MAX_RANKS} are supported")


def _check_equal(first: dict[str, Any], theirs: dict[str, Any], rank: int) -> None:
    for name in first:
        if theirs[name] != first[name]:
            error = f"{name} differs between ranks: {first[name]!r} on rank 0, {theirs[name]!r} on rank {rank}"
            raise _known(ValueError(error), [], 0)


def _check_arguments(given: dict[str, Any]) -> Arguments:
    tables = given["num_keys"] if isinstance(given["num_keys"], Tables) else None
    if tables is not None:
        _check_no_more_than(given)
        num_keys, lengths, optimizers = tables.num_keys, tables.value_lengths, tables.optimizers
    else:
        if given["value_lengths"] is None:
            raise TypeError(
                "value_lengths is None: give a number, or one for each key; or lapse.Tables(...) in place of num_keys"
            )
        num_keys, lengths = check_int(given["num_keys"], "num_keys", 1, MAX_KEYS), given["value_lengths"]
        optimizers = [(num_keys, check_optimizer(given["optimizer"]))]
    dtype = _check_dtype(given["dtype"])
    value_lengths = check_lengths(lengths, num_keys, MAX_VALUE_BYTES // dtype.itemsize)
    if all(optimizer is None for _, optimizer in optimizers):
        optimizers = []
    replicated_keys, order = _check_replicated(given["replicated_keys"], num_keys)
    replication = _check_replication(given["replication"])
    _check_replicated_steps(replication, replicated_keys, optimizers)
    if len(replicated_keys):
        lengths = value_lengths if isinstance(value_lengths, int) else value_lengths[replicated_keys]
        _check_combination(replication, dtype, lengths)
    return Arguments(
        num_keys=num_keys,
        dtype=dtype,
        value_lengths=value_lengths,
        tables=tables,
        optimizers=optimizers,
        replicated_keys=replicated_keys,
        replication=replication,
        replica_levels=_check_levels(replication, order),
        workers=check_int(given["workers"], "workers", 1, MAX_WORKERS),
        threads_per_call=check_int(given["threads_per_call"], "threads_per_call", 1, MAX_WORKERS),
        sampling=_check_sampling(given["sampling"], num_keys),
        shared_memory=_check_shared_memory(given["shared_memory"]),
        sharing_ranks=environment.sharing_ranks(),
        dilation=environment.dilation(),
        silence=environment.dilation() * environment.silence_seconds(),
        stall=environment.dilation() * environment.stall_seconds(),
        max_in_flight=check_int(given["max_in_flight"], "max_in_flight", 1, 2**62),
        seed=check_int(given["seed"], "seed", 0, 2**60),
    )


def _check_no_more_than(given: dict[str, Any]) -> None:
    """Whether tables are given, and nothing that they say themselves."""
    for name in ("value_lengths", "optimizer"):
        if given[name] is not None:
            raise TypeError(f"{name} is {brief(given[name])}, but there are tables: give it to each lapse.Table")


def _check_replicated_steps(
    replication: Replication, replicated_keys: np.ndarray, optimizers: list[tuple[int, Optimizer | None]]
) -> None:
    """Whether gradients of replicated keys can be combined as chosen: their sum, or its mean."""
    first = 0
    for end, optimizer in optimizers:
        at = np.searchsorted(replicated_keys, first)
        if optimizer is not None and at < len(replicated_keys) and replicated_keys[at] < end:
            for name, default in (("combine", "sum"), ("threshold", 0), ("clip", 0)):
                if getattr(replication, name) != default:
                    raise ValueError(
                        f"replicated_keys has {replicated_keys[at]}, which has the optimizer {optimizer}, and "
                        f"replication has {name}={getattr(replication, name)!r}: the home takes a step with the sum of "
                        f"gradients, or with their mean; leave {name} out"
                    )
        first = end


def _check_dtype(given: Any) -> np.dtype:
    try:
        dtype = None if given is None else np.dtype(given)
    except TypeError:
        dtype = None
    if dtype is None or dtype.str[1:] not in ("f4", "f8") or not dtype.isnative:
        raise ValueError(f"dtype is {brief(given)}, but must be 'float32' or 'float64'")
    return dtype


def _check_replicated(given: Any, num_keys: int) -> tuple[np.ndarray, np.ndarray]:
    """The keys, sorted, and where each one was."""
    keys = np.array(() if given is None else given)
    if keys.size == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    if keys.dtype.kind not in "iu":
        raise TypeError(f"replicated_keys must be integers, not {keys.dtype}")
    if keys.ndim != 1:
        raise ValueError(f"replicated_keys has shape {keys.shape}, but must be one-dimensional")
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    for key in (keys[0], keys[-1]):
        if not 0 <= key < num_keys:
            raise ValueError(f"replicated_keys has {key}, but keys are from 0 to {num_keys - 1}")
    repeated = keys[1:][keys[1:] == keys[:-1]]
    if repeated.size:
        raise ValueError(f"replicated_keys has {repeated[0]} more than once: name each key once")
    return keys.astype(np.int64), order


def _check_replication(given: Any) -> Replication:
    if given is None:
        return Replication()
    if not isinstance(given, Replication):
        raise TypeError(f"replication must be a lapse.Replication or None, not {brief(given)}")
    return given


def _check_combination(replication: Replication, dtype: np.dtype, lengths: int | np.ndarray) -> None:
    """Whether values of this kind can be combined and sent as chosen; `lengths` are those of the replicated keys."""
    if dtype != np.float32 and (replication.combine != "sum" or replication.wire != "exact"):
        raise ValueError(
            f'dtype is {dtype}, but combine="{replication.combine}" and wire="{replication.wire}" need float32: '
            'use dtype="float32", or combine="sum" and wire="exact"'
        )
    longest = int(np.max(lengths))
    if replication.combine == "adaptive" and longest > MAX_ADAPTIVE_LENGTH:
        raise ValueError(
            f'a replicated value has {longest} elements, but combine="adaptive" takes at most {MAX_ADAPTIVE_LENGTH}: '
            'use combine="sum"'
        )
    odd = np.atleast_1d(np.asarray(lengths) % 2)
    if replication.combine == "adagrad" and odd.any():
        raise ValueError(
            f"a replicated value has {int(np.atleast_1d(lengths)[odd == 1][0])} elements, but with "
            'combine="adagrad" one half are parameters and the other half their sums of squares: use an even number'
        )


def _check_levels(replication: Replication, order: np.ndarray) -> np.ndarray | None:
    """The levels of the replicated keys, which were at the positions `order`."""
    levels = replication.levels()
    if levels is None or not len(order):
        return None
    if len(levels) != len(order):
        raise ValueError(f"replication has {len(levels)} rates for {len(order)} replicated_keys: give one for each key")
    return levels[order]


def _check_sampling(given: Any, num_keys: int) -> Sampling | None:
    if given is not None and not isinstance(given, Sampling):
        raise TypeError(f"sampling must be a lapse.Sampling or None, not {brief(given)}")
    if given is not None and given.distribution.high > num_keys:
        raise ValueError(
            f"sampling draws keys {given.distribution.low} .. {given.distribution.high - 1}, but the "
            f"server has the keys 0 .. {num_keys - 1}"
        )
    return given


def _check_shared_memory(given: Any) -> bool:
    allowed = environment.shares_memory()
    if given is not None and not isinstance(given, (bool, np.bool_)):
        raise TypeError(f"shared_memory must be True, False or None, not {brief(given)}")
    return allowed and (given is None or bool(given))


def _digest(arguments: Arguments) -> dict[str, Any]:
    """What all ranks must have in common, small enough to send around."""
    lengths = arguments.value_lengths
    keys, levels = arguments.replicated_keys, arguments.replica_levels
    return {
        "num_keys": arguments.num_keys,
        "dtype": str(arguments.dtype),
        "shared_memory": arguments.shared_memory,
        "sharing_ranks": arguments.sharing_ranks,
        "max_in_flight": arguments.max_in_flight,
        "seed": arguments.seed,
        "LAPSE_SILENCE_SECONDS": arguments.silence,
        "sampling": repr(arguments.sampling),  # with a digest of the weights
        "tables": repr(arguments.tables),
        "optimizer": repr([optimizer for _, optimizer in arguments.optimizers]),
        "value_lengths": lengths if isinstance(lengths, int) else f"array {sha256_of_array(lengths)}",
        "replicated_keys": f"{len(keys)} keys {sha256_of_array(keys)[:12]}",
        "replication": repr(arguments.replication),
        "rates of replication": "none" if levels is None else sha256_of_array(levels)[:12],
        "lapse version": __version__,
        "byte order": sys.byteorder,
    }
