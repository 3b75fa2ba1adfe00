"""Replication, relocation and sampling in one server, by all workers at once: exact sums, equal bits.

LAPSE_TEST_ROUNDS sets how many calls each worker makes (100: the default number).
"""

import os

import numpy as np
import pytest

import lapse
from mpi4py.MPI import COMM_WORLD as comm

NUM_KEYS = 200
REPLICATED = np.arange(0, NUM_KEYS, 10)
WORKERS = 3
CALLS = int(os.environ.get("LAPSE_TEST_ROUNDS", 100))
LENGTHS = {"uniform": 7, "variable": np.arange(NUM_KEYS) % 5 + 1}
SCHEMES = ["naive", "preloc", "pool", "local"]


POOL = dict(reuse=16, group_size=20, postpone=True)


def make_server(scheme, lengths, dtype, max_pending):
    weights = 1.0 / (np.arange(NUM_KEYS) + 10)
    return lapse.Server(
        NUM_KEYS,
        LENGTHS[lengths],
        dtype,
        workers=WORKERS,
        replicated_keys=REPLICATED,
        replication=lapse.Replication(max_pending=max_pending),
        sampling=lapse.Sampling(scheme, lapse.Weighted(weights), **POOL if scheme == "pool" else {}),
        max_in_flight=20_000,
    )


def amounts_of(random, count, whole):
    if whole:
        return random.integers(-50, 100, count).astype(float)
    return random.standard_normal(count) * 10.0 ** random.integers(-6, 6, count)


def repeat(server, keys, amounts):
    return np.repeat(amounts, server.value_length(keys)).astype(server.dtype)


def work(kv, server, whole):
    """Random calls, many in flight together; returns what was added to each key, by all workers."""
    random = np.random.default_rng([7, kv.id])
    added = np.zeros(NUM_KEYS)
    for _ in range(CALLS):
        kind = random.choice(["push", "push", "pull", "localize", "sample"])
        keys = random.integers(0, NUM_KEYS, int(random.integers(0, 9)))
        if kind == "sample":
            keys = push_to_samples(kv, random)
        if kind in ("push", "sample"):
            amounts = amounts_of(random, len(keys), whole)
            np.add.at(added, keys, amounts)
            kv.push(keys, repeat(server, keys, amounts))
        elif kind == "localize":
            kv.localize(keys)
        else:
            operation = kv.pull(keys)
            if random.random() < 0.5:
                operation.wait()
        if random.random() < 0.02:
            kv.wait_replica_sync()
    kv.wait_all()
    kv.wait_replica_sync()
    return kv.allreduce(added)


def push_to_samples(kv, random):
    """Some of a sample, read; the rest of it dropped."""
    sample = kv.prepare_sample(int(random.integers(1, 30)))
    keys, values = kv.pull_sample(sample, int(random.integers(0, sample.left + 1))).wait()
    assert np.isfinite(values).all()
    kv.finish_sample(sample)
    return keys


def everything(kv):
    """All values, one after another, as this rank has them."""
    values = kv.pull(np.arange(NUM_KEYS)).wait().reshape(-1).copy()
    kv.barrier()
    return values


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_sums_are_exact(scheme, lengths):
    for max_pending in (None, 50):
        with make_server(scheme, lengths, "float64", max_pending) as server:
            sums = server.run(work, server, True)[0]
            for values in server.run(everything):
                np.testing.assert_array_equal(values, repeat(server, np.arange(NUM_KEYS), sums))
            stats = server.stats(all_ranks=True)
            assert stats["sampled_keys"] > 0
            all_share = len(server.sharing_ranks) == comm.size
            assert all_share or stats["replica_syncs"]  # else nothing is replicated
            assert stats["pushed_shared" if all_share else "relocations_in"] or comm.size == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_replicas_are_equal_to_the_last_bit(dtype):
    """Numbers of very different size, whose sum depends on the order of summation."""
    for lengths, max_pending in (("uniform", 20), ("variable", None), ("variable", 300)):
        with make_server("pool", lengths, dtype, max_pending) as server:
            server.run(work, server, False)
            copies = {values.tobytes() for values in server.run(everything)}
            assert len(copies) == 1
            assert len(set(comm.allgather(copies.pop()))) == 1
