"""Values, batches and queues above every limit: of a packet, of a chunk, of the bytes in flight."""

import numpy as np
import pytest

import lapse
from mpi4py.MPI import COMM_WORLD as comm

#: Around the packet size (64 KB) and the limit for copies under a latch (16 KB), and above 1 MB.
LENGTHS = [4095, 4096, 4097, 16381, 16382, 16383, 16384, 16385, 40_000, 300_001]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_value_of_any_size_is_pushed_pulled_set_and_moved(length):
    ramp = np.arange(length, dtype="f4")
    with lapse.Server(3, length) as server, server.worker() as kv:
        for key in range(3):
            kv.push(key, ramp).wait()
        kv.barrier()
        np.testing.assert_array_equal(kv.pull(1).wait(), ramp * comm.size)
        for winner in range(min(comm.size, 3)):
            if comm.rank == winner:
                kv.localize(range(3)).wait()
            kv.push(2, ramp)  # some of these meet the key on its way
            kv.wait_all()
            kv.barrier()
        np.testing.assert_array_equal(kv.pull(2).wait(), ramp * comm.size * (1 + min(comm.size, 3)))
        np.testing.assert_array_equal(kv.pull(0).wait(), ramp * comm.size)
        kv.barrier()
        if comm.rank == comm.size - 1:
            kv.set(1, -ramp).wait()
        kv.barrier()
        np.testing.assert_array_equal(kv.pull(1).wait(), -ramp)
        kv.barrier()


def test_small_and_large_values_in_one_call():
    lengths = np.array([1, 70_000, 3, 20_000, 2, 300_000])
    with lapse.Server(6, lengths, "float64") as server, server.worker() as kv:
        values = np.concatenate([np.full(n, key + 1.0) for key, n in enumerate(lengths)])
        for _ in range(3):
            kv.push(range(6), values)
            kv.localize(range(6))
        kv.wait_all()
        kv.barrier()
        np.testing.assert_array_equal(kv.pull(range(6)).wait(), 3 * comm.size * values)
        kv.barrier()


def test_a_batch_of_several_chunks():
    """More than 1 MB in one call, from everybody at once, with repeated keys."""
    num_keys, length = 20_000, 25
    with lapse.Server(num_keys, length) as server, server.worker() as kv:
        keys = np.concatenate([np.arange(num_keys), np.arange(0, num_keys, 2)])
        operation = kv.push(keys, np.ones((len(keys), length), "f4"))
        kv.localize(np.arange(kv.id, num_keys, 7))
        operation.wait()
        kv.wait_all()
        kv.barrier()
        values = kv.pull(keys).wait()
        assert (values == np.where(keys % 2 == 0, 2, 1)[:, None] * comm.size).all()
        kv.barrier()


@pytest.mark.parametrize("max_in_flight", [1, 100, 5000])
@pytest.mark.parametrize("length", [1, 5000])
def test_calls_go_on_however_few_bytes_may_be_in_flight(max_in_flight, length):
    num_keys = 30
    with lapse.Server(num_keys, length, "float64", workers=2, max_in_flight=max_in_flight) as server:

        def work(kv):
            for _ in range(8):
                keys = kv.rng.integers(0, num_keys, 20)
                kv.push(keys, np.ones((20, length)))
                kv.localize(keys[:3])
                kv.pull(keys)
            kv.wait_all()
            total = kv.allreduce(1)
            return kv.pull(range(num_keys)).wait()[:, 0].sum() / total

        assert server.run(work) == [8 * 20] * 2


def test_very_many_operations_that_nobody_waits_for():
    with lapse.Server(50, 2, "float64", max_in_flight=10_000) as server, server.worker() as kv:
        for number in range(3000):
            kv.push([number % 50, (number * 7) % 50], np.ones((2, 2)))
        kv.wait_all()
        kv.barrier()
        assert kv.pull(range(50)).wait().sum() == 3000 * 2 * 2 * comm.size
        kv.barrier()


def test_many_operations_wait_for_one_arriving_key():
    """More than are served under one latch (64), of all ranks, pulls among them."""
    with lapse.Server(2, 2000, "float64") as server, server.worker() as kv:
        for _ in range(5):
            kv.localize(0)
            pulls = [kv.pull(0) for _ in range(100)]
            for _ in range(100):
                kv.push(0, np.ones(2000))
            for values in kv.wait(*pulls):
                assert (values == values[0]).all(), "a torn value"
            kv.wait_all()
        kv.barrier()
        assert (kv.pull(0).wait() == 500 * comm.size).all()
        kv.barrier()
