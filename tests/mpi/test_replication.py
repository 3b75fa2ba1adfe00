"""Replicated keys under MPI: exact sums, equal replicas, waits, sets, paces, errors.

What ranks must agree on is compared byte by byte. LAPSE_TEST_ROUNDS sets how many rounds of random
calls a job runs.
"""

import os
import signal
import tempfile
import threading
import time

import numpy as np
import pytest

import lapse
from groups import GROUP, HOSTS, several_hosts
from lapse import Replication
from mpi4py.MPI import COMM_WORLD as comm

ROUNDS = max(1, int(os.environ.get("LAPSE_TEST_ROUNDS", 100)) // 25)
ON_DEMAND = Replication(syncs_per_second=0)
PACES = {
    "time": Replication(syncs_per_second=200),
    "each push": Replication(syncs_per_second=0, max_pending=1),
    "pushes": Replication(syncs_per_second=0, max_pending=40),
    "both": Replication(syncs_per_second=100, max_pending=1000),
    "demand": ON_DEMAND,
    "threshold": Replication(syncs_per_second=100, max_pending=20, threshold=50.0),
}
several_ranks = pytest.mark.mpi(min_size=2)


def check_equal(kv, keys):
    """Every rank has the same bytes."""
    mine = kv.pull(keys).wait().reshape(-1).view(np.uint8)
    assert (kv.allreduce(mine, op="min") == mine).all()
    assert (kv.allreduce(mine, op="max") == mine).all()


def settle(kv):
    """All updates of all workers are in all replicas."""
    kv.wait_all()
    kv.wait_replica_sync()
    kv.barrier()


def shared_numbers(count):
    """Numbers that all ranks see at once, by the kernel and not by a message of ours."""
    path = None
    if comm.rank == 0:
        handle, path = tempfile.mkstemp()
        os.ftruncate(handle, 8 * count)
        os.close(handle)
    path = comm.bcast(path)
    numbers = np.memmap(path, np.int64, "r+")
    comm.Barrier()
    if comm.rank == 0:
        os.unlink(path)
    return numbers


# Sums -------------------------------------------------------------------------------------------


def random_round(kv, server, number, before):
    """Random calls on replicated and relocated keys; returns what every key must then hold."""
    random = np.random.default_rng([number, kv.id])
    lengths = server.value_length(range(server.num_keys))
    added = np.zeros(server.num_keys)
    for _ in range(12):
        keys = random.integers(0, server.num_keys, int(random.integers(0, 9)))
        kind = random.choice(["push", "push", "push", "pull", "localize", "sync"])
        if kind == "push":
            amounts = random.integers(-100, 1000, len(keys)).astype(float)
            np.add.at(added, keys, amounts)
            kv.push(keys, np.repeat(amounts, lengths[keys]).astype(server.dtype))
        elif kind == "sync":
            if random.random() < 0.3:
                kv.wait_replica_sync()
        else:
            operation = getattr(kv, kind)(keys)
            if random.random() < 0.3:
                operation.wait()
    settle(kv)
    expected = before + kv.allreduce(added)
    keys = random.permutation(server.num_keys)
    values = kv.pull(keys).wait().reshape(-1)
    np.testing.assert_array_equal(values, np.repeat(expected[keys], lengths[keys]))
    kv.barrier()
    return expected


SHAPES = {  # the dtype, keys, replicated ones and lengths
    "float32": ("float32", 30, range(0, 30, 3), 3),
    "variable": ("float64", 30, range(0, 30, 2), np.arange(30) % 5 + 1),
    "all": ("float64", 12, range(12), 2),
    "one": ("float32", 12, [7], 1),
}


@pytest.mark.deadline(120)
@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("shape", SHAPES)
def test_random_calls_end_with_exact_sums(shape, pace):
    dtype, num_keys, replicated, lengths = SHAPES[shape]
    expected = np.zeros(num_keys)
    with lapse.Server(
        num_keys, lengths, dtype, workers=3, replicated_keys=replicated, replication=PACES[pace]
    ) as server:
        for number in range(ROUNDS):
            results = server.run(random_round, server, number, expected)
            expected = results[0]


@pytest.mark.deadline(120)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_values(dtype):
    """Above a packet; some kilobytes; small ones in between."""
    lengths = np.array([60_000, 1, 5_000, 300, 40_000, 1])

    def work(kv):
        random = np.random.default_rng(kv.id)
        added = np.zeros(6)
        for _ in range(8):
            keys = random.permutation(6)[:3]
            added[keys] += 1
            kv.push(keys, np.ones(lengths[keys].sum(), dtype))
            if random.random() < 0.3:
                kv.localize(random.integers(0, 6, 2))
            if random.random() < 0.2:
                kv.wait_replica_sync()
        settle(kv)
        expected = np.repeat(kv.allreduce(added), lengths)
        np.testing.assert_array_equal(kv.pull(range(6)).wait(), expected)
        kv.barrier()
        if kv.id == 0:
            kv.set([0, 1], np.full(60_001, 7, dtype)).wait()
        kv.barrier()
        assert (kv.pull([0, 1]).wait() == 7).all()

    for replication in (Replication(100), Replication(0, max_pending=2)):
        with lapse.Server(
            6, lengths, dtype, workers=2, replicated_keys=[0, 1, 2, 3], replication=replication
        ) as server:
            server.run(work)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "replication",
    [
        Replication(500),
        Replication(0, max_pending=7),
        Replication(100, max_pending=30, average=True, clip=0.5),
        Replication(100, threshold=1.0),
    ],
    ids=["time", "pushes", "scaled", "threshold"],
)
def test_replicas_are_equal_to_the_last_bit_when_sums_round(replication, dtype):
    """Random numbers of very different size, with sets in between."""
    keys = np.arange(10)

    def work(kv):
        random = np.random.default_rng([5, kv.id])
        for _ in range(150):
            chosen = random.integers(0, 10, 4)
            values = random.standard_normal((4, 5)) * 10.0 ** random.integers(-6, 7, (4, 1))
            kv.push(chosen, values.astype(dtype))
            if random.random() < 0.02:
                kv.set(chosen, values.astype(dtype))
            if random.random() < 0.02:
                kv.wait_replica_sync()
        settle(kv)
        check_equal(kv, keys)

    with lapse.Server(12, 5, dtype, workers=2, replicated_keys=keys, replication=replication) as server:
        server.run(work)


# What a worker sees -------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", ["time", "each push", "pushes", "threshold"])
def test_own_updates_are_visible_at_once_and_always(pace):
    """Also beside others that push, and never fewer than before."""

    def work(kv):
        least = 0.0
        for number in range(1, 200):
            kv.push([2, 3], np.ones((2, 2), "f8"))
            seen = kv.pull(2).wait()
            assert seen[0] == seen[1], "a torn value"
            assert seen[0] >= max(number, least)
            least = seen[0]

    with lapse.Server(5, 2, "float64", workers=2, replicated_keys=[2, 3], replication=PACES[pace]) as server:
        server.run(work)


@several_ranks
def test_with_time_alone_updates_arrive_at_other_ranks():
    def work(kv):
        if kv.id == 0:
            kv.push(1, [1.0])
        deadline = time.monotonic() + 20
        while kv.pull(1).wait()[0] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    with lapse.Server(3, 1, "float64", replicated_keys=[1]) as server:
        server.run(work)


@several_hosts
def test_without_a_pace_nothing_is_sent_before_it_is_asked_for():
    def work(kv):
        here = len(server.sharing_ranks)
        kv.push(range(10), np.ones((10, 1)))
        time.sleep(0.05)
        seen = kv.pull(range(10)).wait()
        assert ((seen >= 1) & (seen <= here)).all()
        kv.barrier()
        if kv.id == 0:
            kv.wait_replica_sync()
        kv.barrier()
        seen = kv.pull(range(10)).wait()  # slow ranks may have added theirs to the round that was asked for
        assert ((seen >= here + (kv.id >= GROUP)) & (seen <= comm.size)).all()
        kv.barrier()
        settle(kv)
        assert (kv.pull(range(10)).wait() == comm.size).all()

    with lapse.Server(10, 1, "float64", replicated_keys=range(10), replication=ON_DEMAND) as server:
        server.run(work)


# Waiting for synchronization ------------------------------------------------------------------------


@several_ranks
@pytest.mark.parametrize("pace", PACES)
def test_after_a_wait_all_ranks_have_what_was_pushed_before(pace):
    """Called by several workers of a rank at once, beside one that pushes without a pause."""
    workers = 3

    def work(kv):
        if kv.id % workers == workers - 1:
            while len(done) < workers - 1:
                kv.push(range(kv.num_workers, num_keys), np.ones((40, 1)))
            return
        try:
            for number in range(1, 11):
                kv.push(kv.id, [1.0])
                kv.wait_replica_sync()
                synced[kv.id] = number
                promised = synced.copy()
                assert (kv.pull(range(kv.num_workers)).wait().reshape(-1) >= promised).all()
        finally:
            done.append(kv.id)

    num_workers = workers * comm.size
    num_keys = num_workers + 40
    done = []
    synced = shared_numbers(num_workers)
    with lapse.Server(
        num_keys, 1, "float64", workers=workers, replicated_keys=range(num_keys), replication=PACES[pace]
    ) as server:
        server.run(work)


def test_a_wait_without_replicas_and_one_with_nothing_pushed():
    with lapse.Server(5, 1) as server, server.worker() as kv:
        kv.wait_replica_sync()
    with lapse.Server(5, 1, replicated_keys=[2]) as server, server.worker() as kv:
        for _ in range(20):
            kv.wait_replica_sync()
        assert server.stats()["replica_syncs"] == 0
        kv.barrier()


# Sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pace", ["time", "pushes", "each push", "demand"])
def test_a_push_behind_a_set_and_a_barrier_is_never_dropped(pace):
    def work(kv):
        for number in range(12):
            kv.push(range(8), np.ones((8, 2)))  # before or beside the set: void
            kv.wait_all()  # a push of a key without replicas that is still under way may come after the set
            kv.barrier()
            if kv.id == number % kv.num_workers:
                kv.set(range(8), np.full((8, 2), 100.0 * number)).wait()
                assert (kv.pull(range(8)).wait() == 100 * number).all()
                kv.push(3, [1.0, 1.0])
            kv.barrier()
            kv.push(range(8), np.ones((8, 2)))
            settle(kv)
            expected = np.full((8, 2), 100.0 * number + kv.num_workers)
            expected[3] += 1
            np.testing.assert_array_equal(kv.pull(range(8)).wait(), expected)
            kv.barrier()

    with lapse.Server(8, 2, "float64", workers=2, replicated_keys=[1, 2, 3, 5, 6], replication=PACES[pace]) as server:
        server.run(work)


def test_of_a_repeated_key_in_a_set_the_last_occurrence_counts():
    def work(kv):
        if kv.id == kv.num_workers - 1:
            kv.push([1, 2], np.ones((2, 1)))
            kv.set([1, 2, 1, 0, 1], np.array([[1.0], [2], [3], [4], [5]])).wait()
        kv.barrier()
        assert kv.pull([0, 1, 2]).wait().reshape(-1).tolist() == [4, 5, 2]

    with lapse.Server(4, 1, "float64", replicated_keys=[1, 2], replication=ON_DEMAND) as server:
        server.run(work)


@pytest.mark.parametrize("pace", ["time", "each push", "demand"])
def test_sets_by_all_workers_at_once_leave_one_value_everywhere(pace):
    def work(kv):
        for number in range(30):
            kv.set(range(6), np.full((6, 700), kv.id + 1000.0 * number))
            kv.push(range(6), np.full((6, 700), 0.25))
            assert len(set(kv.pull(int(kv.rng.integers(6))).wait())) == 1, "a torn value"
        settle(kv)
        check_equal(kv, range(6))
        kv.barrier()
        kv.set(range(6), np.full((6, 700), float(kv.id))).wait()
        kv.barrier()
        check_equal(kv, range(6))
        values = kv.pull(range(6)).wait()
        assert (values == values[:, :1]).all() and values[0, 0] in range(kv.num_workers)

    with lapse.Server(6, 700, "float64", workers=2, replicated_keys=range(6), replication=PACES[pace]) as server:
        server.run(work)


# Where values begin -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"average": True}, {"clip": 1e-9}, {"threshold": 1e9}, {"average": True, "clip": 0.1}]
)
def test_in_setup_updates_arrive_unscaled_and_whatever_their_size(options):
    def work(kv):
        kv.barrier()
        with kv.setup():
            for _ in range(3):
                kv.push(range(10), np.full((10, 2), 0.5))
                kv.push(range(10), np.full((10, 2), 0.5)).wait()
            if kv.id == 0:
                kv.set(9, [8.0, 8.0]).wait()
        values = kv.pull(range(9)).wait()
        assert (values == 3 * kv.num_workers).all()
        check_equal(kv, range(10))
        statistics = server.stats()
        kv.barrier()
        for name in ("pushed_keys", "pushed_local", "replica_syncs", "replica_keys_sent"):
            assert statistics[name] == 0
        if comm.size > 1 and options == {"average": True}:
            kv.push(4, [1.0, 1.0])
            settle(kv)
            expected = 3 * kv.num_workers + kv.num_workers / HOSTS
            np.testing.assert_allclose(kv.pull(4).wait(), expected)

    with lapse.Server(
        10,
        2,
        "float64",
        workers=2,
        replicated_keys=range(0, 10, 2),
        replication=Replication(100, max_pending=4, **options),
    ) as server:
        server.run(work)


def test_several_setup_phases_and_pushes_between_them():
    def work(kv):
        for _ in range(5):
            with kv.setup():
                kv.push(1, [1.0])
            kv.push(1, [float(HOSTS)])  # is averaged
            settle(kv)
        per_round = kv.num_workers * 2
        assert kv.pull(1).wait()[0] == 5 * per_round

    with lapse.Server(
        3,
        1,
        "float64",
        workers=2,
        replicated_keys=[1] if comm.size > 1 else None,
        replication=Replication(1000, max_pending=1, average=True),
    ) as server:
        if comm.size > 1:
            server.run(work)


def test_initialize_fills_replicas_also_after_pushes():
    def push(kv):
        kv.push(range(20), np.full((20, 3), 9.0))

    def values(kv):
        pulled = kv.pull(range(20)).wait()
        check_equal(kv, range(20))
        kv.push(range(20), np.ones((20, 3)))
        settle(kv)
        np.testing.assert_allclose(kv.pull(range(20)).wait(), pulled + kv.num_workers)
        return pulled

    drawn = []
    for replicated in (None, range(0, 20, 2)):
        with lapse.Server(
            20, 3, "float64", replicated_keys=replicated, seed=3, replication=Replication(100, threshold=1e6)
        ) as server:
            for _ in range(2):
                server.run(push)
                server.initialize(range(20), lapse.Normal(0, 1))
                drawn.append(server.run(values)[0])
    assert all((other == drawn[0]).all() for other in drawn)


# Who has what --------------------------------------------------------------------------------------------


@several_ranks
def test_replicated_keys_are_local_everywhere_and_owned_by_their_homes():
    replicated = [0, 3, 4, 9]

    def work(kv):
        assert kv.is_local(replicated).all()
        before = server.stats()
        kv.localize(replicated).wait()
        kv.localize(0).wait()
        assert server.stats()["relocations_in"] == before["relocations_in"]
        row = np.full((4, 2), np.nan)
        assert kv.pull_if_local(replicated, out=row) and (row == 0).all()
        kv.barrier()  # ranks that share memory see each other's pushes
        kv.push(replicated, np.ones((4, 2)))
        assert kv.pull_if_local(9, out=row[0]) and (row[0] >= 1).all()
        kv.pull(replicated).wait()
        kv.barrier()

    with lapse.Server(10, 2, "float64", replicated_keys=replicated, replication=ON_DEMAND) as server:
        server.run(work)
        statistics = server.stats()
        assert statistics["pulled_local"] == statistics["pulled_keys"] == 4
        assert statistics["pushed_local"] == statistics["pushed_keys"] == 4
        assert statistics["localize_local"] == statistics["localize_keys"] == 5
        owners = server.owner(range(10))
        assert all((other == owners).all() for other in comm.allgather(owners))
        assert server.local_keys().tolist() == np.flatnonzero(owners == comm.rank).tolist()
        assert sorted(key for keys in comm.allgather(server.local_keys().tolist()) for key in keys) == list(range(10))


# Cost and pace ---------------------------------------------------------------------------------------------


@several_hosts
def test_the_cost_of_a_round_grows_with_what_changed():
    """One contribution to the home, if that is elsewhere, and one sum to every other host."""

    def work(kv):
        sent, rounds = [], []
        for changed in (0, 1, 10, 1000):
            kv.barrier()
            server.reset_stats()
            kv.barrier()
            if kv.id == GROUP - 1:  # a member, where ranks share memory
                kv.push(np.tile(np.arange(changed), 2), np.ones((2 * changed, 4), "f4"))
            settle(kv)
            statistics = server.stats()
            sent.append(kv.allreduce(statistics["replica_keys_sent"]))
            # More than one where another rank asks for a round in the middle of the push.
            assert bool(statistics["replica_syncs"]) == (changed > 0 and kv.id == 0)
            rounds.append(kv.allreduce(statistics["replica_syncs"]))
            assert kv.allreduce(statistics["bytes_sent"]) < 100 * sent[-1] + 50_000
        return sent, rounds

    with lapse.Server(5000, 4, replicated_keys=range(5000), replication=ON_DEMAND) as server:
        (none, *sent), (_, *rounds) = server.run(work)[0]
    assert none == 0
    for changed, number, times in zip((1, 10, 1000), sent, rounds):
        assert changed * (HOSTS - 1) <= number <= changed * HOSTS * times


@several_hosts
@pytest.mark.parametrize("max_late", [None, 0])
@pytest.mark.parametrize("others", ["barrier", "compute", "sleep", "push"])
def test_nobody_runs_ahead_and_nobody_waits_for_ever(others, max_late):
    """A round at least for every 1.5 * max_pending positions, whatever the other ranks do meanwhile."""
    most, positions, workers = 25, 1500, 2
    finished = shared_numbers(1)

    def work(kv):
        kv.pace_rounds(max_pending=most, max_late=max_late)
        if kv.rank > 0 and others == "compute":
            while finished[0] < workers:
                sum(range(1000))
        elif kv.rank > 0 and others == "sleep":
            time.sleep(1)
        elif kv.rank == 0 or others == "push":
            began = time.monotonic()
            for number in range(positions):
                kv.push(number % 7, [1.0])
            if kv.rank == 0:
                with lock:
                    finished[0] += 1
                assert time.monotonic() - began < 20
        settle(kv)
        pushing = workers if others != "push" else kv.num_workers
        assert kv.pull(range(7)).wait().sum() == pushing * positions

    lock = threading.Lock()
    with lapse.Server(
        7, 1, "float64", workers=workers, replicated_keys=range(7), replication=Replication(0, max_pending=10**6)
    ) as server:
        server.run(work)
        if comm.rank == 0 or (others == "push" and comm.rank % GROUP == 0):
            at_least = workers * positions / (2 * most + workers)
            assert server.stats()["replica_syncs"] >= at_least - 1


@pytest.mark.parametrize(
    "pace, text",
    [
        ({"max_late": 3}, "max_late is 3, but there is no max_pending"),
        ({"max_pending": 5, "max_late": -1}, "max_late"),
        ({"max_pending": 0}, "max_pending"),
        ({"syncs_per_second": -1}, "syncs_per_second"),
    ],
)
def test_paces_that_are_none(pace, text):
    def work(kv):
        with pytest.raises(ValueError, match=text):
            kv.pace_rounds(**pace)

    with lapse.Server(7, 1, replicated_keys=range(7)) as server:
        server.run(work)


@several_hosts
@pytest.mark.parametrize("lengths", [1, np.arange(20) % 3 + 1], ids=["uniform", "variable"])
def test_one_call_with_many_positions_does_not_run_ahead(lengths):
    """Of a member, where ranks share memory: its leader, which does nothing else, begins the rounds."""
    most, positions = 10, 1000
    pushing = GROUP - 1
    finished = shared_numbers(1)
    with lapse.Server(20, lengths, replicated_keys=range(20), replication=Replication(0, max_pending=most)) as server:

        def work(kv):
            if kv.id == pushing:
                keys = np.arange(positions) % 20
                kv.push(keys, np.ones(server.value_length(keys).sum(), "f4")).wait()
                finished[0] = 1
            if kv.rank == pushing - pushing % GROUP:  # its leader
                while not finished[0]:
                    time.sleep(0.001)
                assert server.stats()["replica_syncs"] >= positions / (3 * most) - 1
            settle(kv)
            assert (kv.pull(range(20)).wait() == positions / 20).all()

        server.run(work)


@several_hosts
def test_ranks_that_all_run_ahead_do_not_wait_for_each_others_patience():
    """Each rank's next round waits for sums of the others: a home must not keep its sums until that round."""

    def work(kv):
        keys, ones = np.arange(50), np.ones((50, 2), "f4")
        kv.barrier()
        began = time.monotonic()
        for _ in range(rounds):
            kv.push(keys, ones)
        kv.barrier()
        return time.monotonic() - began

    rounds = 400  # of a rank's, at most: a call exceeds max_pending, two are possible before a wait
    with lapse.Server(100, 2, replicated_keys=range(50), replication=Replication(0, max_pending=50)) as server:
        seconds = server.run(work)[0]
        begun = server.stats()["replica_syncs"]
    # On crowded machines scheduling takes its time; at 20 ms each they would take far longer in all.
    assert begun < 20 or seconds / begun < 0.012 * max(1, comm.size / 4)


# Errors and ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, error",
    [
        ([1, 1], ValueError),
        ([-1], ValueError),
        ([10], ValueError),
        ([[1, 2]], ValueError),
        (3, ValueError),
        ([1.0], TypeError),
        (["a"], TypeError),
        ([True], TypeError),
        ({1, 2}, TypeError),
    ],
    ids=repr,
)
def test_bad_replicated_keys_on_one_rank_are_an_error_on_all(given, error):
    bad = comm.size - 1
    with pytest.raises(error if comm.rank == bad else ValueError) as caught:
        lapse.Server(10, 1, replicated_keys=given if comm.rank == bad else [1, 2])
    assert "replicated_keys" in str(caught.value)


@several_ranks
@pytest.mark.parametrize(
    "change",
    [
        {"replicated_keys": [1, 3]},
        {"replicated_keys": None},
        {"replication": Replication(7)},
        {"replication": Replication(average=True)},
        {"replication": 5},
    ],
    ids=repr,
)
def test_different_arguments_are_an_error_on_all_ranks(change):
    given = {"replicated_keys": [2, 1], "replication": Replication()}
    if comm.rank == comm.size - 1:
        given.update(change)
    with pytest.raises((ValueError, TypeError)) as caught:
        lapse.Server(10, 1, **given)
    assert next(iter(change)) in str(caught.value)


def test_the_order_of_the_list_is_free():
    keys = np.random.default_rng(comm.rank).permutation(10).astype("u1")
    with lapse.Server(10, 1, replicated_keys=keys), lapse.Server(10, 1, replicated_keys=[]):
        pass


@pytest.mark.parametrize("rate", [1e300, 1e10, 1e-10, 1e-300])
def test_rates_of_any_size(rate):
    """From more than the clock can count to less than one in a century."""

    def work(kv):
        kv.push(1, [1.0])
        if rate > 1:  # replicas agree by themselves
            deadline = time.monotonic() + 20
            while kv.pull(1).wait()[0] < kv.num_workers:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        else:
            time.sleep(0.05)
            assert server.stats()["replica_syncs"] <= 1
        settle(kv)
        assert kv.pull(1).wait()[0] == kv.num_workers

    with lapse.Server(3, 1, "float64", replicated_keys=[1], replication=Replication(rate)) as server:
        server.run(work)


@several_ranks
@pytest.mark.parametrize("where", ["sync", "ahead", "set", "setup"])
def test_a_failing_worker_while_others_wait_is_told_to_all(where):
    def work(kv):
        if kv.id == kv.num_workers - 1:
            time.sleep(0.05)
            raise ZeroDivisionError("the text")
        while True:
            kv.push(range(5), np.ones((5, 1), "f4"))
            if where == "sync":
                kv.wait_replica_sync()
            elif where == "set":
                kv.set(range(5), np.ones((5, 1), "f4")).wait()
            elif where == "setup":
                with kv.setup():
                    kv.push(1, [1.0])

    server = lapse.Server(5, 1, workers=2, replicated_keys=range(5), replication=Replication(0, max_pending=1))
    is_mine = comm.rank == comm.size - 1
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError if is_mine else lapse.RemoteError, match="the text"):
        server.run(work)
    with pytest.raises(ZeroDivisionError if is_mine else lapse.RemoteError, match="the text"):
        server.stats()
    server.close()
    assert time.monotonic() - began < 20


@several_ranks
@pytest.mark.parametrize("where", ["sync", "ahead", "set"])
def test_ctrl_c_ends_a_wait_for_a_rank_that_stands_still(where):
    """The first rank of the next host is stopped by the kernel, so that no answer can come."""
    victim = comm.allgather(os.getpid())[GROUP if HOSTS > 1 else 1]

    def wait_for_ever(kv):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        os.kill(victim, signal.SIGSTOP)
        try:
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                while True:
                    kv.push(range(8), np.ones((8, 1), "f4"))
                    if where == "sync":
                        kv.wait_replica_sync()
                    elif where == "set":
                        kv.set(range(8), np.ones((8, 1), "f4")).wait()
        finally:
            timer.join()
            os.kill(victim, signal.SIGCONT)

    rounds = Replication(0, max_pending=1 if where == "ahead" else None)
    with lapse.Server(8, 1, replicated_keys=range(8), replication=rounds) as server:
        with server.worker() as kv:
            kv.barrier()
            if comm.rank == 0:
                began = time.monotonic()
                wait_for_ever(kv)
                assert time.monotonic() - began < 5
                kv.push(range(8), np.zeros((8, 1), "f4"))  # the worker is as good as before
                kv.wait_all()
            kv.barrier()
            settle(kv)
            check_equal(kv, range(8))


def test_close_with_updates_that_were_never_synchronized():
    for replication in PACES.values():
        with lapse.Server(2000, 3, workers=2, replicated_keys=range(0, 2000, 2), replication=replication) as server:
            server.run(lambda kv: kv.push(range(kv.id, 2000), np.ones((2000 - kv.id, 3), "f4")))


def test_several_servers_at_once():
    with (
        lapse.Server(9, 1, "float64", replicated_keys=[1, 2], replication=Replication(0, max_pending=1)) as first,
        lapse.Server(5, 1, "float64", replicated_keys=[1, 4], replication=ON_DEMAND) as second,
        lapse.Server(5, 1, "float64") as third,
    ):
        with first.worker() as a, second.worker() as b, third.worker() as c:
            for _ in range(30):
                for kv in (a, b, c):
                    kv.push([1, 2, 4], np.ones((3, 1)))
            b.wait_replica_sync()
            a.wait_replica_sync()
            for kv in (a, b, c):
                kv.barrier()
            for kv in (c, b, a):
                settle(kv)
                assert (kv.pull([1, 2, 4]).wait() == 30 * comm.size).all()
                kv.barrier()


@pytest.mark.deadline(120)
def test_a_million_replicated_keys():
    many = 1_000_000
    began = time.monotonic()
    with lapse.Server(many, 1, replicated_keys=np.arange(many), replication=Replication(20, max_pending=100)) as server:
        started = time.monotonic()

        def work(kv):
            keys = kv.rng.integers(0, many, 50)
            kv.push(keys, np.ones((50, 1), "f4"))
            settle(kv)
            total = kv.pull(keys).wait().sum()
            assert total >= 50
            kv.barrier()

        server.run(work)
        assert server.stats()["replica_keys_sent"] <= 100 * comm.size
        ended = time.monotonic()
    seconds = [started - began, time.monotonic() - ended]
    assert max(seconds) < 3 * max(1, comm.size), seconds
