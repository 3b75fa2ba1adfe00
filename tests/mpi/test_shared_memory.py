"""Ranks of one host that reach each other's values; in groups, where the environment asks for that."""

import os

import numpy as np
import pytest

import lapse
from groups import GROUP, HOSTS, several_hosts
from lapse.server import network
from lapse.storage._segment import Segment
from mpi4py.MPI import COMM_WORLD as comm
from mpi4py.MPI import Intracomm

IS_OFF = os.environ.get("LAPSE_SHARED_MEMORY") == "0"

needs_sharing = pytest.mark.skipif(IS_OFF or comm.size == 1, reason="rank count: shared memory is off")


def owned_by(server):
    """The owner of each key, asked on all ranks before any moves."""
    owners = np.full(server.num_keys, -1)
    for rank, keys in enumerate(comm.allgather(server.local_keys())):
        owners[keys] = rank
    return owners


def test_who_shares_with_whom():
    first = comm.rank - comm.rank % GROUP
    together = [comm.rank] if IS_OFF else list(range(first, min(first + GROUP, comm.size)))
    with lapse.Server(5, 1) as server:
        assert server.sharing_ranks == together
        assert lapse.sharing_ranks() == min(comm.allgather(len(server.sharing_ranks)))
    with lapse.Server(5, 1, shared_memory=False) as server:
        assert server.sharing_ranks == [comm.rank]


@needs_sharing
def test_a_key_of_a_host_peer_is_local_without_a_message():
    with lapse.Server(100, 3, "float64") as server, server.worker() as kv:
        owners = owned_by(server)
        near = np.flatnonzero(np.isin(owners, server.sharing_ranks))
        theirs = near[owners[near] != comm.rank]
        assert kv.is_local(range(100)).tolist() == np.isin(range(100), near).tolist()
        kv.barrier()
        server.reset_stats()
        for _ in range(3):
            assert kv.push(theirs, np.ones((len(theirs), 3))).test()
        assert kv.pull(theirs).test()
        assert kv.pull_if_local(theirs, out=np.empty((len(theirs), 3)))
        assert kv.localize(near).test()
        stats = server.stats()
        assert stats["pulled_keys"] == stats["pulled_local"] == stats["pulled_shared"] == len(theirs)
        assert stats["pushed_keys"] == stats["pushed_local"] == stats["pushed_shared"] == 3 * len(theirs)
        assert stats["localize_keys"] == stats["localize_local"] == len(near)
        kv.barrier()
        sharing = len(server.sharing_ranks) - 1  # everybody but the owner
        assert (kv.pull(server.local_keys()).wait() == 3 * sharing).all()
        assert (server.owner(range(100)) == owners).all()
        kv.barrier()


@needs_sharing
def test_set_by_a_host_peer_is_what_the_owner_reads():
    with lapse.Server(100, 2, "float64") as server, server.worker() as kv:
        for setter in range(comm.size):
            if comm.rank == setter:
                kv.set(range(100), np.full((100, 2), float(setter + 1))).wait()
            kv.barrier()
            assert (kv.pull(range(100)).wait() == setter + 1).all()
            kv.barrier()


@pytest.mark.parametrize("lengths", ["uniform", "variable"])
def test_sums_of_all_ranks_are_exact_and_values_never_torn(lengths):
    """Everybody pushes to and reads the same few keys, in batches with repeats, while some of them move."""
    num_keys, rounds = 12, 150
    sizes = np.full(num_keys, 300) if lengths == "uniform" else np.arange(num_keys) * 40 + 1
    starts = np.concatenate([[0], np.cumsum(sizes)])
    with lapse.Server(num_keys, 300 if lengths == "uniform" else sizes, "float64", 2) as server:

        def work(kv):
            for number in range(rounds):
                keys = kv.rng.integers(0, num_keys, 6)
                kv.push(keys, np.ones(sizes[keys].sum()))
                total.append(np.bincount(keys, minlength=num_keys))
                if number % 7 == 0:
                    kv.localize(keys[:2])
                values = kv.pull(range(num_keys)).wait().reshape(-1)
                assert (values == np.repeat(values[starts[:-1]], sizes)).all(), "a torn value"
            kv.wait_all()
            kv.barrier()
            return kv.pull(range(num_keys)).wait().reshape(-1)

        total = []
        results = server.run(work)
        expected = comm.allreduce(np.sum(total, axis=0))
        for values in results:
            assert (values == np.repeat(expected, sizes)).all()


@needs_sharing
def test_pushes_of_host_peers_to_keys_that_were_never_written_give_each_its_own_row():
    """All ranks push to every key for the first time at the same moment: rows are taken in the owner's slab."""
    with lapse.Server(2000, 5, "float64") as server, server.worker() as kv:
        order = kv.rng.permutation(2000)
        kv.barrier()
        for some in np.split(order, 40):
            kv.push(some, np.repeat(some + 1.0, 5).reshape(-1, 5))
        kv.wait_all()
        kv.barrier()
        expected = np.repeat((np.arange(2000) + 1.0) * comm.size, 5).reshape(-1, 5)
        assert (kv.pull(range(2000)).wait() == expected).all()
        kv.barrier()


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_servers_leave_no_descriptor_and_nothing_in_dev_shm():
    before = descriptors(), set(os.listdir("/dev/shm"))
    for _ in range(3):
        with lapse.Server(1000, 10) as server, server.worker() as kv:
            kv.push(range(1000), np.ones((1000, 10), "f4")).wait()
            kv.barrier()
            during = descriptors()
        assert during == before[0]
    assert {name for name in os.listdir("/dev/shm") if "lapse" in name} <= before[1]


@needs_sharing
@pytest.mark.parametrize("culprit", [0, -1])
def test_where_one_rank_cannot_share_its_group_sends_messages(culprit, monkeypatch, capfd):
    culprit %= comm.size
    real = os.memfd_create

    def refuse(name, flags):
        if refuse.left == 0:
            raise OSError("none today")
        refuse.left -= 1
        return real(name, flags)

    refuse.left = 0
    if comm.rank == culprit:
        monkeypatch.setattr(os, "memfd_create", refuse)
    with lapse.Server(50, 2) as server, server.worker() as kv:
        kv.push(range(50), np.ones((50, 2), "f4")).wait()
        kv.barrier()
        assert (kv.pull(range(50)).wait() == comm.size).all()
        alone = culprit // GROUP == comm.rank // GROUP
        assert not alone or server.sharing_ranks == [comm.rank]
        kv.barrier()
    said = "".join(comm.allgather(capfd.readouterr().err))
    lonely = culprit % GROUP == 0 and culprit + 1 == comm.size  # a group of one has nobody to share with
    assert lonely or said.count("none today; they send messages") == 1


@needs_sharing
def test_where_the_first_rank_has_no_addresses_for_what_all_share_nobody_hangs(monkeypatch):
    class Refusing:
        open = Segment.open

        def __new__(cls, size, shareable):
            raise MemoryError("none today")

    if comm.rank == 0:
        monkeypatch.setattr("lapse.server.host.Segment", Refusing)
    with lapse.Server(50, 2) as server, server.worker() as kv:
        kv.push(range(50), np.ones((50, 2), "f4")).wait()
        kv.barrier()
        assert (kv.pull(range(50)).wait() == comm.size).all()
        kv.barrier()


@needs_sharing
def test_ranks_of_a_host_have_one_copy_of_what_is_replicated():
    """What one of them pushes the others read at once; one of them sends it, once."""
    replication = lapse.Replication(syncs_per_second=0)
    with (
        lapse.Server(20, 1, "float64", replicated_keys=[1, 2, 3], replication=replication) as server,
        server.worker() as kv,
    ):
        kv.push(range(20), np.ones((20, 1)))
        kv.wait_all()
        kv.barrier()
        assert (kv.pull([1, 2, 3]).wait() == len(server.sharing_ranks)).all()
        assert kv.is_local([1, 2, 3]).all() and kv.localize([1, 2, 3]).test()
        kv.barrier()
        kv.wait_replica_sync()
        kv.barrier()
        assert (kv.pull(range(20)).wait() == comm.size).all()
        sent = server.stats()["replica_keys_sent"]
        assert comm.allreduce(sent) == 3 * 2 * (HOSTS - 1)  # from each host but the home, and back to each
        assert sent == 0 or comm.rank == server.sharing_ranks[0]
        kv.barrier()


@needs_sharing
@several_hosts
@pytest.mark.parametrize("max_late", [None, 0])
def test_members_get_their_rounds_while_leaders_push_nothing(max_late):
    """Workers of leaders wait for each other: the communication thread begins the rounds that others need."""
    positions, most = 1500, 25

    def work(kv):
        kv.pace_rounds(max_pending=most, max_late=max_late)
        for number in range(positions if kv.rank not in leaders else 0):
            kv.push(number % 7, [1.0])
        kv.barrier()
        if kv.rank not in leaders:
            kv.wait_replica_sync()
        kv.barrier()
        pushing = 2 * (comm.size - len(leaders))
        assert kv.pull(range(7)).wait().sum() == pushing * positions

    with lapse.Server(7, 1, workers=2, replicated_keys=range(7), replication=lapse.Replication(0)) as server:
        leaders = set(comm.allgather(server.sharing_ranks[0]))
        server.run(work)
        if comm.rank in leaders and len(server.sharing_ranks) > 1:
            assert server.stats()["replica_syncs"] >= 2 * positions / (2 * most + 2) - 1


def test_memory_of_values_that_nobody_wrote_is_not_taken():
    """Also where ranks read each other's."""
    with lapse.Server(200_000, 250, shared_memory=None) as server, server.worker() as kv:  # 200 MB
        before = resident()
        for first in range(0, 200_000, 10_000):
            assert not kv.pull(range(first, first + 10_000)).wait().any()
        assert resident() - before < 40e6
        kv.barrier()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_the_network_is_measured_alike_on_all_ranks():
    measured = lapse.measure_network()
    assert len(set(comm.allgather(measured))) == 1
    assert 1e-8 < measured.latency < 1 and measured.bytes_per_second > 1e5 and 0 < measured.record_seconds < 1e-2
    if comm.size == 1:
        assert measured == lapse.Network()


@pytest.mark.parametrize("limit, pings, exchanges", [(0.0, 4, 2), (60.0, 50, 4)])
def test_a_network_that_is_slow_is_measured_with_few_messages(limit, pings, exchanges, monkeypatch):
    monkeypatch.setattr(network, "PING_SECONDS", limit)
    monkeypatch.setattr(network, "EXCHANGE_SECONDS", limit)
    Counting.sends = Counting.exchanges = 0
    lapse.measure_network(Counting(comm))
    assert comm.allreduce(Counting.sends) == (2 * pings if comm.size > 1 else 0)
    assert Counting.exchanges == (exchanges if comm.size > 1 else 0)


class Counting(Intracomm):
    """Counts calls, also those of duplicates."""

    sends = exchanges = 0

    def Send(self, *args):
        Counting.sends += 1
        super().Send(*args)

    def Alltoall(self, *args):
        Counting.exchanges += 1
        super().Alltoall(*args)
