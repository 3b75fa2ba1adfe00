"""Where keys are, how they move, and what workers see meanwhile."""

import functools

import numpy as np
import pytest

import lapse
from mpi4py.MPI import COMM_WORLD as comm

ROUNDS = 25

# Where ranks share memory, keys stay where they are.
Server = functools.partial(lapse.Server, shared_memory=False)


def owners_by_rank(server):
    """For each rank the keys that it owns, on all ranks; checks that every key is owned once."""
    owned = comm.allgather(server.local_keys())
    together = np.concatenate(owned)
    assert sorted(together) == list(range(server.num_keys))
    return owned


def test_at_the_start_every_key_has_one_owner_and_homes_are_balanced():
    with Server(1000, 1) as server:
        counts = [len(keys) for keys in owners_by_rank(server)]
        assert max(counts) - min(counts) <= 1


def test_owner_names_the_rank_whose_local_keys_hold_the_key():
    with Server(50, 1) as server:
        with server.worker() as kv:
            kv.localize(kv.rng.integers(0, 50, 10)).wait()
            kv.barrier()
            kv.wait_all()
        owned = owners_by_rank(server)
        owners = server.owner(np.arange(50))
        for rank, keys in enumerate(owned):
            assert (owners[keys] == rank).all()
        comm.Barrier()


def test_owner_has_the_shape_of_the_keys():
    with Server(10, 1) as server:
        assert np.shape(server.owner(3)) == ()
        assert server.owner([[1, 2, 3], [4, 5, 6]]).shape == (2, 3)
        assert len(server.owner([])) == 0
        comm.Barrier()


def test_a_localized_key_is_local_here_and_nowhere_else():
    with Server(20, 2, "float64") as server, server.worker() as kv:
        kv.push(range(20), np.ones((20, 2))).wait()
        kv.barrier()
        for winner in range(comm.size):
            if comm.rank == winner:
                kv.localize(range(20)).wait()
            kv.barrier()
            assert kv.is_local(range(20)).tolist() == [comm.rank == winner] * 20
            assert server.local_keys().tolist() == (list(range(20)) if comm.rank == winner else [])
            assert (server.owner(range(20)) == winner).all()
            row = np.full(2, -1.0)
            assert kv.pull_if_local(7, out=row) == (comm.rank == winner)
            assert row.tolist() == ([comm.size] * 2 if comm.rank == winner else [-1.0, -1.0])
            assert (kv.pull(range(20)).wait() == comm.size).all()
            kv.barrier()


def test_a_local_pull_is_done_at_once_and_a_remote_one_sends_a_message():
    with Server(40, 1) as server, server.worker() as kv:
        mine = server.local_keys()
        theirs = np.setdiff1d(np.arange(40), mine)
        assert kv.pull(mine).test()
        server.reset_stats()
        kv.pull(theirs).wait()
        stats = server.stats()
        assert stats["pulled_keys"] == len(theirs)
        assert stats["pulled_local"] == 0
        assert (stats["messages_sent"] > 0) == (comm.size > 1)
        kv.barrier()


def test_pull_if_local_is_all_or_nothing():
    with Server(40, 1, "float64") as server, server.worker() as kv:
        mine = server.local_keys()
        kv.push(mine, np.ones(len(mine))).wait()
        out = np.full((len(mine), 1), -1.0)
        assert kv.pull_if_local(mine, out=out) and (out == 1).all()
        if comm.size > 1:
            theirs = np.setdiff1d(np.arange(40), mine)[:1]
            mixed = np.concatenate([mine, theirs])
            out = np.full((len(mixed), 1), -1.0)
            assert not kv.pull_if_local(mixed, out=out)
            assert (out == -1).all()
        kv.barrier()


@pytest.mark.mpi(min_size=2)
def test_successive_localizes_1_0_2_leave_the_key_at_one_rank():
    order = [1, 0, comm.size - 1]
    with Server(5, 3, "float64") as server, server.worker() as kv:
        for repeat in range(ROUNDS):
            for step, winner in enumerate(order):
                if comm.rank == winner:
                    kv.localize(2).wait()
                    kv.push(2, np.ones(3)).wait()
                kv.barrier()
                assert server.owner(2) == winner
                assert kv.is_local(2) == (comm.rank == winner)
                assert kv.pull(2).wait().tolist() == [3 * repeat + step + 1] * 3
                kv.barrier()


def test_a_value_that_was_pushed_arrives_complete_when_localized():
    with Server(30, np.arange(30) % 3 + 1, "float64") as server, server.worker() as kv:
        start = np.arange(server.value_length(range(30)).sum(), dtype=float)
        if kv.id == 0:
            kv.push(range(30), start).wait()
        kv.barrier()
        for winner in range(comm.size):
            if comm.rank == winner:
                kv.localize(range(30)).wait()
                out = np.empty_like(start)
                assert kv.pull_if_local(range(30), out=out)
                np.testing.assert_array_equal(out, start)
            kv.barrier()
        # zeroing by pushing the negative
        if kv.id == comm.size - 1:
            kv.push(range(30), -start).wait()
        kv.barrier()
        assert (kv.pull(range(30)).wait() == 0).all()
        kv.barrier()


def test_a_key_that_was_written_elsewhere_leaves_no_trace_in_a_reused_place():
    """Rows of memory are used again by other keys: one that was never written must read as zero."""
    with Server(20, 4, "float64") as server, server.worker() as kv:
        for written in range(0, 20, 2):
            kv.push(written, np.full(4, 7.0)).wait()
        kv.barrier()
        for winner in [*range(comm.size), 0]:
            if comm.rank == winner:
                kv.localize(range(20)).wait()
            kv.barrier()
        values = kv.pull(range(20)).wait()
        assert (values[0::2] == 7.0 * comm.size).all() and (values[1::2] == 0).all()
        kv.barrier()
        kv.push(range(1, 20, 2), np.ones((10, 4))).wait()
        kv.barrier()
        assert (kv.pull(range(1, 20, 2)).wait() == comm.size).all()
        kv.barrier()


def test_variable_lengths_mixed_in_one_call():
    lengths = np.array([1, 2, 3, 1, 2, 3, 5])
    with Server(7, lengths) as server, server.worker() as kv:
        assert server.value_length([2, 6]).tolist() == [3, 5] and server.value_length(1) == 2
        if kv.id == 0:
            kv.set([6, 0, 2], np.arange(9, dtype="f4")).wait()
        kv.barrier()
        np.testing.assert_array_equal(kv.pull([2, 0, 6]).wait(), [6, 7, 8, 5, 0, 1, 2, 3, 4])
        np.testing.assert_array_equal(kv.pull([[0, 0], [2, 0]]).wait(), [5, 5, 6, 7, 8, 5])
        assert kv.pull([]).wait().shape == (0,)
        assert kv.pull(6).wait().shape == (5,)
        kv.barrier()


def test_localizes_alone_never_change_what_is_read():
    with Server(50, 2, "float64", workers=2) as server:
        server.initialize(range(50), lapse.Normal())

        def work(kv):
            start = kv.pull(range(50)).wait()
            kv.barrier()
            for _ in range(ROUNDS * 2):
                kv.localize(kv.rng.integers(0, 50, 5))
                keys = kv.rng.integers(0, 50, 8)
                np.testing.assert_array_equal(kv.pull(keys).wait(), start[keys])

        server.run(work)


@pytest.mark.parametrize("outstanding", [1, 10])
def test_own_writes_are_read_and_reads_are_monotone(outstanding):
    """Every push is positive: a pull gives at least what this worker knows to be there already.

    A worker waits for its calls on a key before it issues the next on that key, while up to ten
    others are under way.
    """
    num_keys = 40

    def finish(known, kind, keys, operation):
        values = operation.wait()
        if kind == "pull":
            assert (values == values[:, :1]).all(), "a torn value"
            assert (values[:, 0] >= known[keys]).all()
            known[keys] = values[:, 0]
        elif kind == "push":
            known[keys] += 1

    def work(kv):
        known = np.zeros(num_keys)  # at least this much is in each key
        pending = []  # oldest first; no key is in two of them
        for _ in range(ROUNDS * 4):
            kind = kv.rng.choice(["pull", "push", "localize"])
            keys = kv.rng.choice(num_keys, int(kv.rng.integers(1, 8)), replace=False)
            while any(np.isin(keys, others).any() for _, others, _ in pending):
                finish(known, *pending.pop(0))
            if kind == "pull":
                operation = kv.pull(keys)
            elif kind == "push":
                operation = kv.push(keys, np.ones((len(keys), 2)))
            else:
                operation = kv.localize(keys)
            pending.append((kind, keys, operation))
            if len(pending) >= outstanding:
                finish(known, *pending.pop(0))
        for call in pending:
            finish(known, *call)
        return known

    with Server(num_keys, 2, "float64", workers=2) as server:
        known = server.run(work)
        with_all = server.run(lambda kv: kv.pull(range(num_keys)).wait()[:, 0])
        assert all((values >= mine).all() for values in with_all for mine in known)


@pytest.mark.parametrize("lengths", [2, "variable"])
def test_pushes_that_cancel_leave_everything_as_it_was(lengths):
    num_keys = 40
    if lengths == "variable":
        lengths = np.arange(num_keys) % 3 + 1
    with Server(num_keys, lengths, "float64", workers=2) as server:
        server.initialize(
            range(num_keys),
            lambda keys, rng: np.full(server.value_length(int(keys[0])), float(keys[0])),
        )

        def work(kv):
            total = np.zeros(num_keys)
            for _ in range(ROUNDS):
                keys = kv.rng.choice(num_keys, 10, replace=False)
                amounts = kv.rng.integers(1, 100, 10).astype(float)
                total[keys] += amounts
                kv.push(keys, np.repeat(amounts, server.value_length(keys)))
                kv.localize(kv.rng.choice(num_keys, 5))
                kv.pull(keys)
            kv.push(range(num_keys), np.repeat(-total, server.value_length(range(num_keys))))
            kv.wait_all()
            kv.barrier()
            return kv.pull(range(num_keys)).wait()

        expected = np.repeat(np.arange(num_keys, dtype=float), server.value_length(range(num_keys)))
        for values in server.run(work):
            np.testing.assert_array_equal(values.reshape(-1), expected)


def test_pushes_of_all_workers_after_a_set_add_exactly():
    """The set of one worker, behind a barrier pushes of all, while the key moves."""
    with Server(4, 2, "float64", workers=2) as server:

        def work(kv):
            for repeat in range(ROUNDS):
                key = repeat % 4
                if kv.id == repeat % kv.num_workers:
                    kv.set(key, [repeat, -repeat]).wait()
                    assert kv.pull(key).wait().tolist() == [repeat, -repeat]
                kv.barrier()
                kv.localize(key)
                kv.push(key, [1.0, 2.0])
                kv.localize(key)
                kv.push([key, key], np.ones((2, 2)))
                kv.wait_all()
                kv.barrier()
                n = kv.num_workers
                assert kv.pull(key).wait().tolist() == [repeat + 3 * n, -repeat + 4 * n]
                kv.barrier()

        server.run(work)


def test_waited_sets_and_pulls_of_one_key_are_seen_in_one_order():
    """Numbers that one worker sets one after another never go backwards for anybody."""
    with Server(3, 4, "float64", workers=2) as server:

        def work(kv):
            last = 0
            for number in range(1, ROUNDS * 4):
                if kv.id == 0:
                    kv.set(1, np.full(4, float(number))).wait()
                elif number % 5 == kv.id % 5:
                    kv.localize(1)
                value = kv.pull(1).wait()
                assert (value == value[0]).all(), "a torn value"
                assert value[0] >= last
                assert kv.id != 0 or value[0] == number
                last = value[0]

        server.run(work)


def test_of_repeated_keys_every_push_counts_and_the_last_set_wins():
    with Server(10, 2, "float64") as server, server.worker() as kv:
        for key in range(10):
            if key % comm.size == comm.rank:
                kv.set([key, key, key], [[1, 2], [3, 4], [5, 6]]).wait()
                kv.push([key] * 3, [[1, 1], [2, 2], [3, 3]]).wait()
        kv.barrier()
        assert (kv.pull(range(10)).wait() == [11, 12]).all()
        assert (kv.pull([4, 4, 2, 4]).wait() == [11, 12]).all()
        kv.barrier()


def test_of_repeated_keys_the_last_set_wins_while_they_move():
    with Server(6, 1, "float64", workers=3) as server:

        def work(kv):
            own = np.arange(6)[np.arange(6) % kv.num_workers == kv.id]
            for number in range(ROUNDS * 2):
                kv.localize(kv.rng.integers(0, 6, 2))
                if len(own):
                    keys = np.repeat(own, 5)
                    values = np.tile([0.0, 1.0, 2.0, 3.0, float(number)], len(own))
                    kv.set(keys, values).wait()
                    assert (kv.pull(own).wait() == number).all()

        server.run(work)


def test_relocations_are_counted_where_they_leave_and_where_they_arrive():
    with Server(30, 1) as server, server.worker() as kv:
        with kv.setup():
            pass
        if kv.id == 0:
            before = len(server.local_keys())
            kv.localize(range(30)).wait()
            stats = server.stats()
            assert stats["localize_keys"] == 30
            assert stats["localize_local"] == before
            assert stats["relocations_in"] == 30 - before
        kv.barrier()
        stats = server.stats(all_ranks=True)
        assert stats["relocations_in"] == stats["relocations_out"] == 30 - len(home_keys_of_rank_0(server))
        kv.barrier()


def home_keys_of_rank_0(server):
    with Server(server.num_keys, 1) as other:
        return comm.bcast(other.local_keys())
