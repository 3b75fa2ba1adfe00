"""Barrier, allreduce and the workers' generators."""

import time

import numpy as np
import pytest

import lapse
from mpi4py.MPI import COMM_WORLD as comm


@pytest.fixture
def server():
    with lapse.Server(10, 1, "float64", workers=1 + comm.rank % 2, seed=4) as server:
        yield server


def test_nobody_passes_a_barrier_before_all_are_there(server):
    arrived = []

    def work(kv):
        for number in range(10):
            if kv.id == number % kv.num_workers:
                time.sleep(0.02)
            kv.push(3, [1.0]).wait()
            kv.barrier()
            arrived.append(kv.pull(3).wait()[0] == (number + 1) * kv.num_workers)
            kv.barrier()

    server.run(work)
    assert all(arrived) and len(arrived) == 10 * server.workers


def test_a_barrier_does_not_wait_for_operations(server):
    """It may be passed while pulls are under way; they are complete when waited for."""

    def work(kv):
        operations = [kv.pull(range(10)) for _ in range(20)]
        kv.barrier()
        return [operation.wait().shape for operation in operations]

    assert server.run(work) == [[(10, 1)] * 20] * server.workers


def test_allreduce_of_numbers(server):
    n = server.num_workers
    ids = range(n)

    def work(kv):
        assert kv.allreduce(kv.id) == sum(ids) and type(kv.allreduce(1)) is int
        assert kv.allreduce(kv.id + 0.5) == sum(ids) + n / 2 and type(kv.allreduce(0.5)) is float
        assert kv.allreduce(kv.id, op="max") == n - 1
        assert kv.allreduce(kv.id, op="min") == 0
        assert kv.allreduce(2, op="prod") == 2**n
        assert kv.allreduce(2**40) == n * 2**40
        assert kv.allreduce(np.float32(1.5)) == 1.5 * n
        assert kv.allreduce(1 if kv.id == 0 else 0.5) == 1 + 0.5 * (n - 1)
        assert np.isnan(kv.allreduce(float("nan") if kv.id == n - 1 else 1.0))

    server.run(work)


def test_allreduce_of_arrays(server):
    n = server.num_workers

    def work(kv):
        for shape in [(), (0,), (3,), (2, 3), (100_000,), (300, 401)]:
            mine = np.full(shape, kv.id + 1.0)
            total = kv.allreduce(mine)
            assert total.shape == shape and total.dtype == mine.dtype
            assert (total == n * (n + 1) / 2).all() and (mine == kv.id + 1).all()
            total += 1  # everybody's own copy
        assert kv.allreduce([kv.id, -kv.id], op="max").tolist() == [n - 1, 0]
        return kv.allreduce(np.arange(5) * kv.id)

    results = server.run(work)
    assert all(result.tolist() == (np.arange(5) * sum(range(n))).tolist() for result in results)


def test_allreduce_counts_truths(server):
    """A sum of bools counts them, as numpy.sum does."""
    n = server.num_workers
    assert server.run(lambda kv: kv.allreduce(True)) == [n] * server.workers
    totals = server.run(lambda kv: kv.allreduce(np.array([True, kv.id == 0])))
    assert [total.tolist() for total in totals] == [[n, 1]] * server.workers


def test_all_workers_get_the_same_sum_bit_for_bit(server):
    def work(kv):
        return kv.allreduce(kv.rng.normal(size=50)).tobytes() + kv.allreduce(kv.rng.normal(size=50_000)).tobytes()

    assert len(set().union(*comm.allgather(server.run(work)))) == 1


@pytest.mark.parametrize("length", [2, 100_000])
def test_allreduce_of_different_shapes_is_an_error_everywhere(server, length):
    if server.num_workers == 1:
        pytest.skip("rank count: needs two workers")

    def work(kv):
        kv.allreduce(np.zeros(length + (kv.id == server.num_workers - 1)))

    with pytest.raises((ValueError, lapse.RemoteError), match=rf"shapes.*\({length},\).*\({length + 1},\)"):
        server.run(work)


def test_what_is_too_long_for_a_message_is_an_error_everywhere(server, monkeypatch):
    if comm.size == 1:
        pytest.skip("rank count: needs two ranks")
    monkeypatch.setattr("lapse.communication._mail.MAX_LETTER_BYTES", 1000)
    with pytest.raises((ValueError, lapse.RemoteError), match="at most 1000 are possible: divide the array"):
        server.run(lambda kv: kv.allreduce(np.zeros(2000)))


@pytest.mark.mpi(min_size=2)
def test_an_array_of_more_than_4_gib_is_an_error_that_names_the_limit():
    array = np.broadcast_to(np.float32(1), (1 << 30) + 1)  # of one number in memory
    with lapse.Server(10, 1) as server:
        with pytest.raises((ValueError, lapse.RemoteError), match="4294967300 bytes, but at most 2147483648 are"):
            server.run(lambda kv: kv.allreduce(array))


def test_back_to_back_collective_calls_do_not_mix(server):
    def work(kv):
        for number in range(50):
            assert kv.allreduce(number) == number * kv.num_workers
            if number % 3 == 0:
                kv.barrier()

    server.run(work)


def test_generators_depend_on_seed_and_worker_only(server):
    def work(kv):
        return kv.id, kv.rng.integers(0, 2**60, 4).tolist()

    draws = dict(pair for pairs in comm.allgather(server.run(work)) for pair in pairs)
    assert len({tuple(draw) for draw in draws.values()}) == server.num_workers
    for id, draw in draws.items():
        assert draw == np.random.default_rng([4, id]).integers(0, 2**60, 4).tolist()


def test_generators_go_on_where_the_worker_before_left_them():
    with lapse.Server(10, 1, seed=4) as server:
        draws = server.run(lambda kv: kv.rng.random(4))[0].tolist()
        for _ in range(2):
            with server.worker() as kv:
                draws += kv.rng.random(4).tolist()
        draws += server.run(lambda kv: kv.rng.random(4))[0].tolist()
    assert draws == np.random.default_rng([4, comm.rank]).random(16).tolist()


def test_a_workers_generator_is_one_object(server):
    assert server.run(lambda kv: kv.rng is kv.rng) == [True] * server.workers


async def awaited(kv):
    kv.barrier()


def iterated(kv):
    yield kv.barrier()


@pytest.mark.parametrize("fn, words", [(awaited, "coroutine"), (iterated, "generator"), (3, "needs a function.*not 3")])
def test_what_run_does_not_carry_out_is_an_error(fn, words):
    with lapse.Server(10, 1) as server, pytest.raises((TypeError, lapse.RemoteError), match=words):
        server.run(fn)


def test_run_gives_arguments_and_returns_results_in_worker_order(server):
    first = sum(1 + rank % 2 for rank in range(comm.rank))
    assert server.run(lambda kv, a, b: (kv.id, a, b), 5, "x") == [
        (first + worker_slot, 5, "x") for worker_slot in range(server.workers)
    ]
