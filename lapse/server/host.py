"""Floor 5. What the ranks of one host share: a page for waking each other and, if wanted, their values.

Shared memory has no name in any file system: a rank offers the descriptor of its memory, and the
others open it through /proc while that rank waits.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lapse._store import Store
from lapse.base import environment
from lapse.base._connections import own_addresses
from lapse.storage._host_peers import HostPeers
from lapse.storage._segment import Segment
from mpi4py import MPI

MAX_SHARING = 254  # ranks of one host: a latch says in one byte who holds it


def sharing_ranks(comm: MPI.Intracomm | None = None) -> int:
    """The smallest number of ranks that will share memory with each other in a server of `comm`. Collective.

    For choices before a server exists, such as `choose_hot_spots`; a server has `Server.sharing_ranks`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        By default MPI.COMM_WORLD.

    Returns
    -------
    int
        1 when values are sent in messages only; `comm.size` when every rank reaches every value.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    host = Host(comm)
    group_size = environment.sharing_ranks() or host.size
    host.free()
    mine = min(group_size, host.size - host.local_rank // group_size * group_size)
    return comm.allreduce(mine if environment.shares_memory() else 1, op=MPI.MIN)


class Place(NamedTuple):
    """Where a rank is.

    Attributes
    ----------
    host : int
        The lowest rank of its host.
    local_rank : int
        Its number among the ranks of the host.
    name : str
        Of the host.
    addresses : tuple of bytes
        Of the host: see `_connections.own_addresses`.
    """

    host: int
    local_rank: int
    name: str
    addresses: tuple[bytes, ...] = ()


def partners_of(rank: int, places: Sequence[Place]) -> list[int]:
    """The ranks of other hosts with which a rank exchanges heartbeats: at least one on each other host, and mutually.

    Two ranks are partners if their numbers on their hosts are equal. On a host with fewer ranks these take turns.
    """
    sizes = Counter(place.host for place in places)
    own = places[rank]
    return [
        other
        for other, place in enumerate(places)
        if place.host != own.host
        and (
            own.local_rank % sizes[place.host] == place.local_rank
            or place.local_rank % sizes[own.host] == own.local_rank
        )
    ]


def far_addresses(rank: int, places: Sequence[Place]) -> dict[bytes, str]:
    """The addresses of other hosts, with their names; not those that the host of `rank` has as well.

    Hosts with containers, for example, mostly have a bridge of the same address.
    """
    own = set(places[rank].addresses)
    return {address: place.name for place in places for address in place.addresses if address not in own}


class Host:
    """The ranks of one host. Created by all ranks together; `free` it when everything is shared.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm

    Attributes
    ----------
    local_rank, size : int
        This rank's number among those of its host, and how many there are.
    local_ranks : list of int
        For each rank of `comm` its number among those of this host; -1 if it is on another one.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
        self._rank = comm.rank
        self.local_rank, self.size = self._comm.rank, self._comm.size
        local_ranks = MPI.Group.Translate_ranks(comm.group, range(comm.size), self._comm.group)
        self.local_ranks = [-1 if local_rank == MPI.UNDEFINED else local_rank for local_rank in local_ranks]

    def gather_places(self, comm: MPI.Intracomm, host_peers: HostPeers) -> list[Place]:
        """Where each rank is. Collective over all ranks.

        Parameters
        ----------
        comm : mpi4py.MPI.Intracomm
            The one that was given.
        host_peers : HostPeers
            Ranks that cannot wake each other count as ranks of different hosts.

        Returns
        -------
        list of Place
            By rank.
        """
        first = next(rank for rank, local_rank in enumerate(self.local_ranks) if local_rank == 0)
        together = host_peers.can_wake
        mine = Place(
            first if together else comm.rank,
            self.local_rank if together else 0,
            MPI.Get_processor_name(),
            tuple(own_addresses()),
        )
        return comm.allgather(mine)

    def free(self) -> None:
        """Free the communicator. Collective over the host."""
        self._comm.Free()

    def make_host_peers(self) -> HostPeers:
        """Create the page by which ranks of this host wake each other. Collective over the host.

        Returns
        -------
        HostPeers
            Without peers when they cannot share memory, which is reported once on stderr.
        """
        page, problem = _share_new(self._comm, HostPeers.page_bytes(self.size))
        if problem is not None:
            if self.local_rank == 0 and self.size > 1:
                self._warn(f"{problem}; waking each other takes longer")
            return HostPeers(self._rank, None, self.local_ranks)
        return HostPeers(self._rank, page, self.local_ranks)

    def share_values(
        self, store: Store, host_peers: HostPeers, group_size: int | None = None, replica_bytes: int = 0
    ) -> tuple[list[int], Segment | None]:
        """Let ranks of this host reach the values that the others own. Collective over the host.

        Parameters
        ----------
        store : Store
            In shareable memory.
        host_peers : HostPeers
        group_size : int, optional
            Share among this many neighbouring ranks only, not among all of the host.
        replica_bytes : int
            The size of the memory for replicas, which these ranks have in common.

        Returns
        -------
        local_ranks : list of int
            Those that share with this rank, its own among them. Only its own when they cannot share memory, which is
            reported once on stderr.
        replicas : Segment or None
            The memory for replicas; None for a rank that shares with nobody, and if `replica_bytes` is 0.
        """
        group = self._comm.Split(self.local_rank // (group_size or self.size), key=self.local_rank)
        replicas, problem = None, None
        try:
            local_ranks = group.allgather(self.local_rank)
            if group.size > 1:
                replicas, problem = self._join(group, local_ranks, store, host_peers, replica_bytes)
        finally:
            store.hide()
            group.Free()
        if problem is None:
            return local_ranks, replicas
        if self.local_rank == local_ranks[0]:
            self._warn(f"{problem}; they send messages instead of reaching each other's values")
        return [self.local_rank], None

    def _join(
        self, group: MPI.Comm, local_ranks: list[int], store: Store, host_peers: HostPeers, replica_bytes: int
    ) -> tuple[Segment | None, str | None]:
        """Map the others' stores, and let them map this rank's; returns memory for replicas, and why not, or None."""
        problem = store.reason
        if self.size > MAX_SHARING:
            problem = f"there are {self.size}, but at most {MAX_SHARING} can share values"
        segments, problem = _map_all(group, store.ticket, problem)
        hints, replicas = None, None
        if problem is None:
            hints, problem = _share_new(group, store.hint_bytes)
        if problem is None and replica_bytes:
            replicas, problem = _share_new(group, replica_bytes)
        if problem is None and hints is not None:
            store.join(self.local_rank, dict(zip(local_ranks, segments)), hints, host_peers)
        return replicas, problem

    def _warn(self, problem: str) -> None:
        print(f"lapse: the ranks of this host cannot share memory: {problem}", file=sys.stderr)


def _share_new(comm: MPI.Comm, size: int) -> tuple[Segment | None, str | None]:
    """Create one segment for all on the first rank; returns it, or None and the reason."""
    made, offer = _make(size) if comm.rank == 0 else (None, None)
    ticket, problem = comm.bcast(offer)
    segment = made
    if made is None and problem is None:
        segment, problem = _open(ticket)
    problem = _first_problem(comm, problem)
    if made is not None:
        made.hide()
    return segment if problem is None else None, problem


def _make(size: int) -> tuple[Segment | None, tuple]:
    """A segment, and what the others get: its ticket, or None and why it cannot be shared."""
    try:
        made = Segment(size, shareable=True)
    except Exception as error:  # of this rank alone: the others wait for its answer
        return None, (None, str(error))
    return made, (made.ticket, made.reason)


def _map_all(comm: MPI.Comm, ticket: tuple | None, problem: str | None) -> tuple[list[Segment | None], str | None]:
    """The segments of all ranks (None for this one), and why they cannot be mapped, or None."""
    segments = []
    for rank, other in enumerate(comm.allgather(ticket)):
        segment = None
        if rank != comm.rank and problem is None and other is not None:
            segment, problem = _open(other)
        segments.append(segment)
    return segments, _first_problem(comm, problem)


def _first_problem(comm: MPI.Comm, problem: str | None) -> str | None:
    """The problem of the first rank that has one. Collective: no rank continues before all have answered."""
    return next((text for text in comm.allgather(problem) if text is not None), None)


def _open(ticket: tuple) -> tuple[Segment | None, str | None]:
    try:
        return Segment.open(ticket), None
    except Exception as error:
        return None, str(error)
