"""Servers: made together, compared, several at once, on other communicators, counted."""

import gc
import time
import weakref

import numpy as np
import pytest

import lapse
from groups import HOSTS
from lapse._store import Store
from mpi4py import MPI
from mpi4py.MPI import COMM_WORLD as comm

GOOD = {
    "num_keys": 20,
    "value_lengths": 2,
    "dtype": "float32",
    "workers": 1,
    "max_in_flight": 1 << 20,
    "seed": 1,
}


def check_that_a_server_works():
    with lapse.Server(20, 2) as server, server.worker() as kv:
        kv.push(range(20), np.ones((20, 2), "f4")).wait()
        kv.barrier()
        assert (kv.pull(range(20)).wait() == comm.size).all()
        kv.barrier()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    "change, error",
    [
        ({"num_keys": 0}, ValueError),
        ({"num_keys": "x"}, TypeError),
        ({"value_lengths": 0}, ValueError),
        ({"value_lengths": [1, 2]}, ValueError),
        ({"dtype": "int8"}, ValueError),
        ({"workers": 0}, ValueError),
        ({"max_in_flight": -1}, ValueError),
        ({"seed": -1}, ValueError),
        ({"shared_memory": 3}, TypeError),
    ],
    ids=repr,
)
def test_one_rank_with_a_bad_argument_is_named_on_the_others(change, error):
    bad = comm.size - 1
    name = next(iter(change))
    with pytest.raises(error if comm.rank == bad else ValueError) as caught:
        lapse.Server(**{**GOOD, **(change if comm.rank == bad else {})})
    assert name in str(caught.value)
    assert comm.rank == bad or f"rank {bad}" in str(caught.value)
    check_that_a_server_works()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    "change",
    [
        {"num_keys": 21},
        {"value_lengths": 3},
        {"value_lengths": np.full(20, 2)},
        {"dtype": "float64"},
        {"max_in_flight": 5},
        {"seed": 2},
        {"shared_memory": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_arguments_that_differ_are_named_with_the_rank_on_all(change, monkeypatch):
    monkeypatch.delenv("LAPSE_SHARED_MEMORY", raising=False)
    for odd in {0, comm.size - 1}:
        with pytest.raises(ValueError, match=f"{next(iter(change))} differs between ranks.* rank"):
            lapse.Server(**{**GOOD, **(change if comm.rank == odd else {})})
    check_that_a_server_works()


@pytest.mark.mpi(min_size=2)
def test_lengths_that_differ_in_one_key_are_found():
    lengths = np.full(20, 2)
    if comm.rank == 1:
        lengths[7] = 3
    with pytest.raises(ValueError, match="value_lengths differs"):
        lapse.Server(20, lengths)


@pytest.mark.mpi(min_size=2)
def test_an_environment_switch_that_differs_is_found(monkeypatch):
    monkeypatch.setenv("LAPSE_SHARED_MEMORY", "0" if comm.rank == 1 else "1")
    with pytest.raises(ValueError, match="shared_memory differs"):
        lapse.Server(20, 2)
    monkeypatch.delenv("LAPSE_SHARED_MEMORY")
    check_that_a_server_works()


@pytest.mark.mpi(min_size=2)
def test_no_memory_on_any_rank_is_an_error_on_all():
    with pytest.raises(MemoryError):
        lapse.Server(10**8, 2**29)
    check_that_a_server_works()


def test_workers_may_differ_from_rank_to_rank():
    workers = 1 + comm.rank % 3
    with lapse.Server(30, 1, "float64", workers=workers) as server:
        first = sum(1 + rank % 3 for rank in range(comm.rank))
        total = sum(1 + rank % 3 for rank in range(comm.size))
        assert server.workers == workers and server.num_workers == total

        def work(kv):
            kv.push(range(30), np.ones(30)).wait()
            kv.barrier()
            assert (kv.pull(range(30)).wait() == total).all()
            assert kv.num_workers == total and kv.rank == comm.rank
            kv.barrier()
            return kv.id

        assert server.run(work) == list(range(first, first + workers))


def test_a_server_tells_what_it_was_made_with():
    with lapse.Server(20, 2, np.float64, seed=3) as server:
        assert (server.num_keys, server.dtype, server.rank, server.size) == (
            20,
            np.dtype("f8"),
            comm.rank,
            comm.size,
        )
        assert server.comm is comm
        assert server.value_length(3) == 2 and server.value_length([[1, 2]]).tolist() == [[2, 2]]


def test_several_servers_at_once_do_not_meet():
    with lapse.Server(20, 1, "float64") as a, lapse.Server(30, 3, "float32", workers=2) as b:
        with lapse.Server(20, 1, "float64") as c:
            with a.worker() as kv_a, c.worker() as kv_c:
                for i in range(20):
                    kv_a.push(range(20), np.ones(20))
                    kv_c.push(range(20), np.full(20, 2.0))
                    kv_a.localize(i)
                    kv_c.localize(19 - i)
                kv_a.wait_all()
                kv_c.wait_all()
                kv_c.barrier()
                kv_a.barrier()
                assert (kv_a.pull(range(20)).wait() == 20 * comm.size).all()
                assert (kv_c.pull(range(20)).wait() == 40 * comm.size).all()
                kv_a.barrier()
                kv_c.barrier()
        b.run(lambda kv: kv.push(range(30), np.ones((30, 3), "f4")))
        assert (b.run(lambda kv: kv.pull(range(30)).wait())[0] == 2 * comm.size).all()
        with a.worker() as kv:
            assert (kv.pull(range(20)).wait() == 20 * comm.size).all()
            kv.barrier()


def test_one_server_failing_leaves_the_other_alone():
    with lapse.Server(20, 1, "float64") as good:
        bad = lapse.Server(20, 1, "float64")

        def work(kv):
            if kv.id == 0:
                raise ValueError("of the bad one")
            kv.barrier()

        with pytest.raises(ValueError if comm.rank == 0 else lapse.RemoteError, match="of the bad one"):
            bad.run(work)
        bad.close()
        good.run(lambda kv: kv.push(range(20), np.ones(20)))
        assert (good.run(lambda kv: kv.pull(range(20)).wait())[0] == comm.size).all()


def test_operations_that_a_failed_run_left_unfinished_raise_its_error():
    """Or give their values, where they were done."""
    left = []

    def work(kv):
        left.extend(kv.pull(range(500)) for _ in range(20))
        if kv.id == 0:
            raise ValueError("of worker 0")
        kv.barrier()

    own = ValueError if comm.rank == 0 else lapse.RemoteError
    server = lapse.Server(500, 1000, "float64")
    with pytest.raises(own, match="of worker 0"):
        server.run(work)
    for operation in left:
        try:
            assert operation.wait().shape == (500, 1000)
        except own as error:
            assert "of worker 0" in str(error)
        assert operation.test()
    server.close()


def test_many_servers_one_after_another():
    """More than an MPI has communicators, were they not freed."""
    for _ in range(30):
        lapse.Server(5, 1).close()


def test_a_server_on_part_of_the_ranks():
    part = comm.Split(comm.rank % 2, key=-comm.rank)
    with lapse.Server(20, 1, "float64", comm=part) as server, server.worker() as kv:
        assert server.comm is part and server.size == part.size and kv.rank == part.rank
        kv.localize(range(20)).wait()
        kv.push(range(20), np.full(20, 1.0 + comm.rank % 2)).wait()
        kv.barrier()
        assert (kv.pull(range(20)).wait() == part.size * (1 + comm.rank % 2)).all()
        assert kv.num_workers == part.size
        kv.barrier()
    part.Free()


def test_servers_on_overlapping_communicators():
    part = comm.Split(comm.rank // 2)
    with lapse.Server(20, 1, "float64") as whole, lapse.Server(20, 1, "float64", comm=part) as half:
        with whole.worker() as kv, half.worker() as half_kv:
            kv.push(range(20), np.ones(20))
            half_kv.push(range(20), np.ones(20)).wait()
            half_kv.barrier()
            assert (half_kv.pull(range(20)).wait() == part.size).all()
            kv.wait_all()
            kv.barrier()
            assert (kv.pull(range(20)).wait() == comm.size).all()
            half_kv.barrier()
            kv.barrier()
    part.Free()


def test_comm_self_is_one_rank():
    with lapse.Server(20, 1, "float64", comm=MPI.COMM_SELF) as server, server.worker() as kv:
        kv.push(range(20), np.full(20, comm.rank + 1.0)).wait()
        assert (kv.pull(range(20)).wait() == comm.rank + 1).all()
        assert len(server.local_keys()) == 20


def test_messages_of_the_user_and_ours_do_not_meet():
    """User messages of any tag, received from anybody, and collectives, in a worker."""
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size

    def work(kv):
        for number in range(40):
            kv.push(range(30), np.ones(30))
            kv.localize(kv.rng.integers(0, 30, 3))
            requests = [comm.isend((comm.rank, number, tag), dest=right, tag=tag) for tag in (0, 1, 77)]
            for _ in range(3):
                status = MPI.Status()
                source, there, tag = comm.recv(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG, status=status)
                assert (source, tag) == (left, status.tag)
                assert abs(there - number) <= 40
            MPI.Request.waitall(requests)
            if number % 20 == 0:
                assert comm.allreduce(1) == comm.size
        kv.wait_all()
        kv.barrier()
        assert not comm.iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)
        return kv.pull(range(30)).wait()

    with lapse.Server(30, 1, "float64") as server:
        assert (server.run(work)[0] == 40 * comm.size).all()


def test_initial_values_do_not_depend_on_the_number_of_ranks():
    inits = [
        lapse.Normal(1, 2),
        lapse.UniformValues(-1, 1),
        lapse.Constant(3),
        lambda keys, rng: rng.random(3) + keys[0],
    ]
    for init in inits:
        with (
            lapse.Server(40, 3, "float64", seed=9) as server,
            lapse.Server(40, 3, "float64", seed=9, comm=MPI.COMM_SELF) as alone,
        ):
            if comm.size > 1:
                with server.worker() as kv:  # wherever the keys are
                    kv.localize(kv.rng.integers(0, 40, 10)).wait()
                    kv.barrier()
            server.initialize(range(40), init)
            alone.initialize(range(40), init)
            with server.worker() as kv, alone.worker() as lonely:
                np.testing.assert_array_equal(kv.pull(range(40)).wait(), lonely.pull(range(40)).wait())
                kv.barrier()


def test_initialize_touches_only_the_keys_that_are_named():
    with lapse.Server(40, 2, "float64") as server:
        server.initialize(range(40), lapse.Constant(1))
        server.initialize([3, 5, 5, 3], lapse.Constant(2))
        server.initialize([], lapse.Constant(3))
        with server.worker() as kv:
            values = kv.pull(range(40)).wait()
            assert (values[[3, 5]] == 2).all() and values.sum() == 2 * (38 + 4)
            kv.barrier()


def test_initialize_reaches_keys_whose_localize_nobody_waited_for():
    """Keys that are on their way at the call belong to somebody too."""
    for _repeat in range(10):
        with lapse.Server(200, 50) as server, server.worker() as kv:
            kv.localize(range(200))
            server.initialize(range(200), lapse.Constant(1))
            kv.barrier()
            assert (kv.pull(range(200)).wait() == 1).all()
            kv.barrier()


# Counters ----------------------------------------------------------------------------------------

NAMES = [
    "pulled_keys",
    "pulled_local",
    "pulled_shared",
    "pulled_in_transit",
    "pushed_keys",
    "pushed_local",
    "pushed_shared",
    "pushed_in_transit",
    "localize_keys",
    "localize_local",
    "relocations_in",
    "relocations_out",
    "relocations_passed_on",
    "replica_syncs",
    "replica_keys_sent",
    "messages_sent",
    "bytes_sent",
    "messages_received",
    "bytes_received",
    "sampled_keys",
    "sampled_local",
]


def test_all_counters_exist_and_are_integers():
    with lapse.Server(20, 2) as server:
        to = server.bytes_sent_to()
        assert to.shape == (comm.size,) and to[comm.rank] == 0
        for stats in (server.stats(), server.stats(all_ranks=True)):
            assert sorted(stats) == sorted(NAMES)
            assert all(type(value) is int and value >= 0 for value in stats.values())


def test_counters_count_key_positions():
    with lapse.Server(20, 2, shared_memory=False) as server, server.worker() as kv:
        mine = server.local_keys()
        keys = [*range(20), 3, 3]
        local = int(np.isin(keys, mine).sum())
        kv.pull(keys).wait()
        kv.push(keys, np.ones((22, 2), "f4")).wait()
        kv.set(keys, np.ones((22, 2), "f4")).wait()
        set_local = int(np.isin(range(20), mine).sum())
        kv.barrier()
        stats = server.stats()
        assert (stats["pulled_keys"], stats["pulled_local"]) == (22, local)
        assert stats["pushed_local"] in (2 * local, local + set_local)
        assert stats["pushed_keys"] in (44, 42)
        assert stats["localize_keys"] == 0
        kv.barrier()


def test_a_local_pull_sends_nothing_and_a_remote_one_little():
    with lapse.Server(20, 2, shared_memory=False) as server, server.worker() as kv:
        kv.barrier()
        kv.wait_all()
        server.reset_stats()
        mine, theirs = server.local_keys(), np.setdiff1d(range(20), server.local_keys())
        for _ in range(10):
            kv.pull(mine).wait()
        assert server.stats()["pulled_local"] == 10 * len(mine) == server.stats()["pulled_keys"]
        kv.pull(theirs).wait()
        assert server.stats()["pulled_local"] == 10 * len(mine)
        kv.barrier()


def test_local_in_transit_and_remote_never_exceed_the_whole():
    with lapse.Server(10, 2, workers=3) as server:

        def work(kv):
            for _ in range(50):
                keys = kv.rng.integers(0, 10, 4)
                kv.localize(keys)
                kv.pull(keys)
                kv.push(keys, np.zeros((4, 2), "f4"))

        server.run(work)
        for stats in (server.stats(), server.stats(all_ranks=True)):
            factor = 3 if stats["pulled_keys"] == 600 else 3 * comm.size
            assert stats["pulled_keys"] == stats["pushed_keys"] == stats["localize_keys"] == 200 * factor
            assert stats["pulled_local"] + stats["pulled_in_transit"] <= stats["pulled_keys"]
            assert stats["pushed_local"] + stats["pushed_in_transit"] <= stats["pushed_keys"]
            assert stats["pulled_shared"] <= stats["pulled_local"]
            assert stats["relocations_passed_on"] <= stats["relocations_out"]


def test_all_ranks_sums_and_reset_clears():
    with lapse.Server(20, 2) as server, server.worker() as kv:
        for _ in range(kv.id + 1):
            kv.pull(range(20)).wait()
        kv.barrier()
        whole = server.stats(all_ranks=True)
        assert whole["pulled_keys"] == 20 * sum(range(1, comm.size + 1))
        assert comm.allreduce(server.stats()["pulled_local"]) == whole["pulled_local"]
        kv.barrier()
        server.reset_stats()
        assert all(server.stats()[name] == 0 for name in NAMES if not name.startswith(("messages", "bytes")))
        kv.barrier()


def test_messages_sent_are_received():
    with lapse.Server(20, 2) as server, server.worker() as kv:
        kv.push(range(20), np.ones((20, 2), "f4")).wait()
        kv.localize(range(20)).wait()
        kv.barrier()
        comm.Barrier()
        stats = server.stats()
        sent, received = (
            comm.allreduce(stats["messages_sent"]),
            comm.allreduce(stats["messages_received"]),
        )
        assert (sent > 0) == (comm.size > 1)
        assert 0 <= sent - received <= comm.size * comm.size  # those of the barrier may be under way
        kv.barrier()


def test_setup_resets_the_statistics_and_ends_with_all_operations_done():
    with lapse.Server(20, 2, "float64", workers=2) as server:

        def work(kv):
            with kv.setup():
                kv.push(range(20), np.ones((20, 2)))
                kv.localize(kv.rng.integers(0, 20, 3))
            assert (kv.pull(range(20)).wait() == kv.num_workers).all()

        server.run(work)
        stats = server.stats()
        assert stats["pushed_keys"] == 0 and stats["localize_keys"] == 0
        assert stats["pulled_keys"] == 40 and stats["relocations_in"] == 0


def test_time_spent_waiting_is_counted_apart_from_barriers():
    def work(kv):
        kv.barrier()
        if kv.id == 0:
            time.sleep(0.2)
        kv.barrier()  # the others wait here: not for a parameter
        for _ in range(50):
            kv.pull(range(20)).wait()

    with lapse.Server(20, 2, shared_memory=False) as server:
        server.run(work)
        waited, everywhere = server.seconds_waited(), server.seconds_waited(all_ranks=True)
        assert everywhere == pytest.approx(sum(comm.allgather(waited)))
        assert (waited > 0) == (comm.size > 1)
        times = server.waiting_times()
        assert times["values"] == pytest.approx(waited) and times["rounds"] == 0
        assert times["meetings"] > 0.1 or comm.rank == 0
        server.reset_stats()
        assert server.seconds_waited() == 0


def test_time_spent_waiting_for_a_synchronization_of_replicas_is_that_of_rounds():
    def work(kv):
        for _ in range(20):
            kv.push([1], np.ones((1, 2), "f4"))
            kv.wait_replica_sync()
        kv.barrier()

    with lapse.Server(20, 2, replicated_keys=[1]) as server:
        server.run(work)
        times = server.waiting_times()
        assert (times["rounds"] > 0) == (HOSTS > 1)
        assert times["values"] == 0


def test_a_closed_server_goes_with_its_last_reference():
    """Not only when garbage is collected: its values may be most of the memory."""

    def num_stores():
        return sum(type(each) is Store for each in gc.get_objects())

    gc.disable()
    try:
        before = num_stores()
        server = lapse.Server(20, 2)
        assert num_stores() == before + 1
        with server.worker() as kv:
            kv.barrier()
        del kv
        server.close()
        last = weakref.ref(server)
        del server
        assert last() is None
        assert num_stores() == before, "something else still holds the values"
    finally:
        gc.enable()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("culprit", [0, -1])
def test_one_rank_without_a_thread_is_an_error_on_all(culprit, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    if comm.rank == culprit % comm.size:
        monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises((RuntimeError, MemoryError), match="can't start new thread"):
        lapse.Server(20, 2)
    monkeypatch.undo()
    check_that_a_server_works()


def test_one_rank_without_memory_for_messages_is_an_error_on_all(monkeypatch):
    def refuse(*args):
        raise MemoryError("none today")

    if comm.rank == 0:
        monkeypatch.setattr("lapse.server.assembly.Comm", refuse)
    with pytest.raises(MemoryError, match="none today"):
        lapse.Server(20, 2)
    monkeypatch.undo()
    check_that_a_server_works()
