"""Floor 5. How the parts of a server are made, in order and by all ranks together.

When one rank has no memory or thread for a part, all ranks raise, and nothing is left behind.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from lapse._comm import Comm
from lapse._store import Store
from lapse.communication import _guard
from lapse.options.replication import Replication
from lapse.options.sampling import Sampling
from lapse.protocol._protocol import Protocol
from lapse.protocol._replica_memory import replica_bytes, replicate
from lapse.sampling._draws import Table
from lapse.sampling._sampler import Sampler
from lapse.sampling.schemes import make_sampler
from lapse.server.advice import warn_of_binding, warn_of_network_module
from lapse.server.arguments import Arguments, raise_first
from lapse.server.host import Host, far_addresses, partners_of
from lapse.storage._host_peers import HostPeers
from lapse.storage._segment import Segment
from lapse.worker._call_threads import CallThreads
from lapse.worker._counters import Counters
from lapse.worker.collectives import Collectives
from lapse.worker.group import WorkerGroup
from lapse.worker.steps import Steps
from lapse.worker.streams import Streams
from mpi4py import MPI

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What a server is made of, apart from its workers.

    Attributes
    ----------
    group : WorkerGroup
        What the workers use together. Its communication is not started yet: see `start`.
    samplers : list of Sampler or None
        One for each worker slot of this rank; they continue from one run to the next.
    sharing : list of int
        The ranks that reach this one's values without messages, and it theirs; itself among them.
    communicator : mpi4py.MPI.Intracomm or None
        A private duplicate of the user's; None when there is one rank only.
    """

    group: WorkerGroup
    samplers: list[Sampler | None]
    sharing: list[int]
    communicator: MPI.Intracomm | None


def assemble(comm: MPI.Intracomm, arguments: Arguments, worker_counts: list[int]) -> Parts:
    """Make the parts of a server, without starting it. Collective.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    arguments : Arguments
    worker_counts : list of int
        By rank.

    Raises
    ------
    Exception
        On every rank, when a part cannot be made on one: that rank's own on this one, else a MemoryError or
        RuntimeError that names the rank.
    """
    ids = range(sum(worker_counts[: comm.rank]), sum(worker_counts[: comm.rank + 1]))
    host = Host(comm)
    try:
        store = _agree_on(comm, _make_store, comm, arguments, host.size > 1)
        host_peers = _agree_on(comm, host.make_host_peers) if comm.size > 1 else HostPeers()
        sharing, replicas = _agree_on(comm, _share, store, arguments, host, host_peers)
    finally:
        host.free()
    leaders = comm.allgather(sharing[0])
    _agree_on(comm, replicate, store, arguments.replicated_keys, leaders, replicas, arguments.replication.in_place)
    protocol, samplers = _agree_on(comm, _make_protocol, store, arguments, ids)
    communicator = _duplicate(comm)
    try:
        is_crowded = _advise(comm, arguments.workers, host)
        places = host.gather_places(comm, host_peers)
        _agree_on(comm, _guard.watch_hosts, far_addresses(comm.rank, places), arguments.silence)
        watch = (partners_of(comm.rank, places), [place.name for place in places], arguments.silence, arguments.stall)
        own_comm = _agree_on(comm, Comm, protocol, communicator, host_peers, is_crowded, arguments.dilation, *watch)
    except Exception:  # on all ranks
        _free(communicator)
        raise
    counters = Counters(own_comm, protocol)
    collectives = Collectives(own_comm, comm.rank, comm.size, len(ids))
    num_workers = sum(worker_counts)
    streams = Streams(arguments.seed, ids, num_workers, samplers)
    threads = CallThreads(arguments.threads_per_call)
    group = WorkerGroup(
        own_comm,
        store,
        protocol,
        collectives,
        counters,
        streams,
        Steps(),
        threads,
        arguments.seed,
        ids.start,
        num_workers,
    )
    return Parts(group, samplers, sharing, communicator)


def start(comm: MPI.Intracomm, parts: Parts) -> None:
    """Start the communication threads of all ranks. Collective; raises as `assemble` does."""
    own_comm = parts.group.comm
    try:
        _agree_on(comm, own_comm.start)
    except Exception:  # on all ranks
        own_comm.abandon()
        _free(parts.communicator)
        raise
    except BaseException:  # on this rank alone, such as a KeyboardInterrupt: the others may not free with it
        own_comm.abandon()
        raise
    if parts.communicator is not None:
        parts.communicator.Barrier()  # every rank receives before any sends


def _agree_on(comm: MPI.Intracomm, make: Callable[..., T], *args: Any) -> T:
    """What `make(*args)` returns, when it succeeds on all ranks; else all ranks raise."""
    made, error = None, None
    try:
        made = make(*args)
    except Exception as caught:
        error = caught
    raise_first(comm, error)
    return cast(T, made)


def _make_store(comm: MPI.Intracomm, arguments: Arguments, has_neighbours: bool) -> Store:
    return Store(
        arguments.num_keys,
        arguments.value_lengths,
        arguments.dtype,
        comm.rank,
        comm.size,
        shareable=arguments.shared_memory and has_neighbours,
        optimizers=[
            (end, None if optimizer is None else optimizer.parameters()) for end, optimizer in arguments.optimizers
        ],
    )


def _make_protocol(store: Store, arguments: Arguments, ids: range) -> tuple[Protocol, list[Sampler | None]]:
    protocol = Protocol(store, arguments.workers, arguments.max_in_flight)
    protocol.manage_replicas(levels=arguments.replica_levels, **_management(arguments.replication, arguments.dilation))
    return protocol, _make_samplers(arguments.sampling, arguments.seed, ids)


def _management(replication: Replication, dilation: float) -> dict[str, Any]:
    """What the user chose, in the terms of the protocol."""
    return dict(
        interval=dilation * replication.interval,
        max_pending=replication.max_pending or 0,
        threshold=replication.threshold,
        average=replication.average,
        clip=replication.clip,
        combine=replication.combine,
        constant=replication.curvature,
        wire=replication.wire,
    )


def _make_samplers(sampling: Sampling | None, seed: int, ids: range) -> list[Sampler | None]:
    """One for each worker slot of this rank; they continue from one run to the next."""
    if sampling is None:
        return [None] * len(ids)
    distribution = sampling.distribution
    table = Table(distribution.low, distribution.high, distribution.weights)
    return [make_sampler(sampling, table, seed, worker) for worker in ids]


def _share(store: Store, arguments: Arguments, host: Host, host_peers: HostPeers) -> tuple[list[int], Segment | None]:
    """The ranks that reach this one's values without messages, and it theirs; their memory for replicas."""
    local_ranks, replicas = [host.local_rank], None
    if arguments.shared_memory:
        size = replica_bytes(store, arguments.replicated_keys, arguments.replication.in_place)
        local_ranks, replicas = host.share_values(store, host_peers, arguments.sharing_ranks, size)
    return sorted(host.local_ranks.index(local_rank) for local_rank in local_ranks), replicas


def _duplicate(comm: MPI.Intracomm) -> MPI.Intracomm | None:
    if comm.size == 1:
        return None
    communicator = comm.Dup()
    communicator.Set_errhandler(MPI.ERRORS_RETURN)
    return communicator


def _free(communicator: MPI.Intracomm | None) -> None:
    if communicator is not None:
        communicator.Free()


def _advise(comm: MPI.Intracomm, workers: int, host: Host) -> bool:
    """Warn of settings of MPI that cost much; returns whether this host has more workers than cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    warn_of_binding(comm, workers, cores)
    if -1 in host.local_ranks and comm.rank == 0:
        warn_of_network_module()
    return host.size * workers > cores
