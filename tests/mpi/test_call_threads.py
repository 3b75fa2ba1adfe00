"""Large calls whose keys are shared by several threads, while keys move: every update takes effect exactly once."""

import os
import threading

import numpy as np
import pytest

import lapse
from mpi4py.MPI import COMM_WORLD as comm

pytestmark = pytest.mark.skipif(comm.size > 4, reason="rank count: more ranks would show nothing else")
NUM_KEYS = 300
LENGTH = 1024  # 8 KB: a thread takes 8 keys at a time
ROUNDS = max(2, int(os.environ.get("LAPSE_TEST_ROUNDS", 100)) // 20)
REPLICATED = [0, 7, 50]


def server_with(lengths=LENGTH, **options):
    return lapse.Server(
        NUM_KEYS, lengths, "float64", workers=2, threads_per_call=3, optimizer=lapse.optim.SGD(lr=1.0), **options
    )


def change(kv, random, rows_of, added):
    """A push or a step with many keys, some of them repeated; whole numbers, so that sums are exact in any order."""
    keys = random.integers(0, NUM_KEYS, int(random.integers(100, NUM_KEYS)))
    amounts = random.integers(1, 100, len(keys)).astype(float)
    np.add.at(added, keys, amounts)
    if random.random() < 0.5:
        return kv.push(keys, rows_of(keys, amounts))
    return kv.apply_gradients(keys, rows_of(keys, -amounts))


def one_round(kv, number, rows_of, before):
    """Calls of all kinds in flight together; returns what every key must then hold."""
    random = np.random.default_rng([number, kv.id])
    added = np.zeros(NUM_KEYS)
    for _ in range(6):
        kv.localize(random.integers(0, NUM_KEYS, 100))
        change(kv, random, rows_of, added)
        kv.pull(random.integers(0, NUM_KEYS, 200))
    kv.wait_all()
    kv.wait_replica_sync()
    expected = before + kv.allreduce(added)
    kv.wait_replica_sync()
    keys = random.permutation(NUM_KEYS)
    found = kv.pull(keys).wait().reshape(-1)
    np.testing.assert_array_equal(found, rows_of(keys, expected[keys]))
    kv.barrier()
    return expected


@pytest.mark.deadline(150)
@pytest.mark.parametrize("replicated", [None, REPLICATED], ids=["relocated", "some_replicated"])
@pytest.mark.parametrize("variable", [False, True], ids=["uniform", "variable_lengths"])
def test_shared_calls_end_with_exact_sums(variable, replicated):
    lengths = np.where(np.arange(NUM_KEYS) % 3, LENGTH, 64) if variable else LENGTH
    lengths_of = (lambda keys: lengths[keys]) if variable else (lambda keys: LENGTH)
    rows_of = lambda keys, amounts: np.repeat(amounts, lengths_of(keys))  # noqa: E731
    with server_with(lengths, replicated_keys=replicated) as server:
        expected = np.zeros(NUM_KEYS)
        for number in range(ROUNDS):
            expected = server.run(one_round, number, rows_of, expected)[0]
        stats = server.stats(all_ranks=True)
        all_share = len(server.sharing_ranks) == comm.size
        assert comm.size == 1 or all_share or stats["relocations_in"] > ROUNDS


def test_a_pull_gives_each_row_its_place():
    """The keys that other ranks own are asked for by their positions in the whole call."""
    with server_with() as server:

        def work(kv):
            for key in range(kv.id, NUM_KEYS, kv.num_workers):
                kv.set(key, np.full(LENGTH, float(key)))
            kv.wait_all()
            kv.barrier()
            keys = np.random.default_rng(kv.id).integers(0, NUM_KEYS, 1000)
            found = kv.pull(keys).wait()
            return np.array_equal(found, np.repeat(keys, LENGTH).reshape(-1, LENGTH))

        assert all(server.run(work))


def helpers():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lapse-call-")]


def test_helpers_run_while_workers_do():
    with server_with() as server:
        assert not helpers()
        assert [len(names) for names in server.run(lambda kv: (kv.barrier(), helpers())[1])] == [2, 2]
        assert not helpers()
        comm.Barrier()  # else a rank that is still in the first run learns of the error of another there
        with pytest.raises((ZeroDivisionError, lapse.RemoteError), match="division by zero"):
            server.run(lambda kv: 1 / 0)
        assert not helpers()


def test_each_rank_may_have_a_number_of_its_own():
    with lapse.Server(NUM_KEYS, LENGTH, threads_per_call=1 + comm.rank) as server, server.worker() as kv:
        kv.push(np.arange(NUM_KEYS), np.ones((NUM_KEYS, LENGTH), "f4")).wait()
        kv.barrier()
        assert (kv.pull(np.arange(NUM_KEYS)).wait() == comm.size).all()
        assert len(helpers()) == comm.rank


@pytest.mark.parametrize("given", [0, -1, 1.5, 10**9, "2"])
def test_a_number_of_threads_that_makes_no_sense_is_refused(given):
    with pytest.raises((TypeError, ValueError), match="threads_per_call"):
        lapse.Server(2, 1, threads_per_call=given)
