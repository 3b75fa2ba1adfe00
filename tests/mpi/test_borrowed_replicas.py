"""Replicas that workers borrow and change where they are, while others pull, push and set them, and rounds pass by."""

import os

import numpy as np
import pytest
from lapse.apps.word2vec._kernel import Trainer
from lapse.testing._borrowed import Borrowed

import lapse
from borrowing import add_two

NUM_KEYS = 6
WORKERS = 2
ROUNDS = int(os.environ.get("LAPSE_TEST_ROUNDS", 100))


def make_server(length, workers=1, dtype="float64", num_keys=NUM_KEYS, **replication):
    return lapse.Server(
        num_keys,
        length,
        dtype,
        workers=workers,
        replicated_keys=range(num_keys),
        replication=lapse.Replication(syncs_per_second=0, **{"in_place": True, **replication}),
    )


def are_replicated(server):
    return len(server.sharing_ranks) < server.size


def change(kv, keys, amount):
    """Add to keys where they are; return those that were not lent."""
    borrowed = Borrowed(kv, keys)
    for array in borrowed.arrays:
        if array is not None:
            array += amount
    refused = [key for key, array in zip(keys, borrowed.arrays, strict=True) if array is None]
    borrowed.give_back()
    return refused


def test_what_is_changed_in_place_reaches_all_ranks():
    def work(kv):
        refused = change(kv, list(range(NUM_KEYS)), 1.0)
        kv.push(refused, np.ones((len(refused), 3))).wait()
        kv.wait_replica_sync()
        kv.barrier()
        np.testing.assert_array_equal(kv.pull(range(NUM_KEYS)).wait(), kv.num_workers)
        return refused

    with make_server(3) as server:
        refused = server.run(work)
        assert refused == [[]] or not are_replicated(server) or len(server.sharing_ranks) > 1


def test_replicas_are_lent_only_if_that_was_asked_for():
    def work(kv):
        return change(kv, list(range(NUM_KEYS)), 0.0)

    with make_server(3, in_place=False) as server:
        assert server.run(work) == [list(range(NUM_KEYS))] or not are_replicated(server)


def test_workers_that_only_borrow_keep_the_pace():
    """Each return counts as pushes, and a worker that runs ahead waits for the next round before it borrows again."""

    def work(kv):
        keys = list(range(kv.id % 2, NUM_KEYS, 2))
        pushed = 0
        for _ in range(ROUNDS):
            refused = change(kv, keys, 1.0)
            pushed += len(keys) - len(refused)
        total = kv.allreduce(float(pushed))
        kv.wait_replica_sync()
        kv.barrier()
        assert kv.pull(range(NUM_KEYS)).wait().sum() == total

    with make_server(1, max_pending=2 * NUM_KEYS) as server:
        server.run(work)
        if are_replicated(server) and ROUNDS >= 10:
            assert server.stats(all_ranks=True)["replica_syncs"] > server.size


def one_round(kv, dtype, number, before):
    """Random calls and changes in place; returns what every key must then hold, and how many were lent."""
    random = np.random.default_rng([number, kv.id])
    added = np.zeros(NUM_KEYS)
    lent = 0
    for _ in range(15):
        keys = random.choice(NUM_KEYS, int(random.integers(1, 5)), replace=False)
        kind = str(random.choice(["pull", "push", "borrow", "borrow", "sync"], p=[0.2, 0.2, 0.28, 0.28, 0.04]))
        if kind == "pull":
            kv.pull(keys)
        elif kind == "sync" and kv.id == 0:
            kv.wait_replica_sync()
        elif kind == "push":
            amounts = random.integers(-100, 1000, len(keys)).astype(float)
            added[keys] += amounts
            kv.push(keys, np.repeat(amounts, 3).astype(dtype))
        elif kind == "borrow":
            in_place = add_two(kv, keys, random, 0.3)
            added[keys] += in_place
            lent += np.count_nonzero(in_place)
    expected = before + kv.allreduce(added)
    kv.wait_all()
    kv.barrier()
    kv.wait_replica_sync()
    kv.barrier()
    np.testing.assert_array_equal(kv.pull(range(NUM_KEYS)).wait(), np.repeat(expected, 3).reshape(-1, 3))
    kv.barrier()
    return expected, kv.allreduce(lent)


@pytest.mark.deadline(170)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_pending", [1, 20])
def test_exact_sums_while_replicas_are_borrowed(dtype, max_pending):
    expected, lent = np.zeros(NUM_KEYS), 0
    with make_server(3, WORKERS, dtype, max_pending=max_pending) as server:
        for number in range(max(ROUNDS // 10, 1)):
            expected, of_round = server.run(one_round, dtype, number, expected)[0]
            lent += of_round
        assert lent or ROUNDS < 10


@pytest.mark.parametrize("rule", [{"combine": "adaptive"}, {"wire": "bfloat16"}, {"clip": 0.5}])
def test_replicas_that_were_changed_in_place_end_equal_to_the_last_bit(rule):
    def work(kv):
        random = np.random.default_rng(kv.id)
        for _ in range(ROUNDS // 2):
            change(kv, random.choice(NUM_KEYS, 3, replace=False).tolist(), random.normal())
            kv.push(random.integers(NUM_KEYS), random.normal(size=5).astype(np.float32))
        kv.barrier()
        kv.wait_replica_sync()
        kv.barrier()
        values = kv.pull(range(NUM_KEYS)).wait()
        assert np.isfinite(values).all()
        first = kv.allreduce(values if kv.id == 0 else np.zeros_like(values))
        assert first.tobytes() == values.tobytes()

    with make_server(5, WORKERS, "float32", max_pending=10, **rule) as server:
        server.run(work)


def train(kv, start, borrows_units):
    """Train some sentences on the first worker; the others wait. Returns all vectors."""
    words, dim = len(start) // 2, start.shape[1]
    random = np.random.default_rng(1)
    if kv.id == 0:
        kv.set(range(2 * words), start).wait()
        trainer = Trainer(
            kv,
            dim=dim,
            is_localized=np.zeros(2 * words, np.uint8),
            borrows_units=borrows_units,
            window=3,
            negative=0,
            keep=np.full(words, 2**32 - 1, np.uint32),
            is_replicated=np.ones(2 * words, np.uint8),
            unit_pairs=20,
            block_units=1,
            lookahead=0,
            seeds=(1, 2),
        )
        trainer.train(random.integers(0, words, 400).astype(np.int32), np.arange(40, 401, 40), 0.1, 0.05)
        trainer.finish()
    kv.barrier()
    kv.wait_replica_sync()
    kv.barrier()
    return kv.pull(range(2 * words)).wait()


def test_word2vec_learns_the_same_in_place_as_with_copies():
    start = np.random.default_rng(0).normal(size=(60, 20)).astype(np.float32)
    results = []
    for borrows_units in (False, True):
        with make_server(20, dtype="float32", num_keys=60, max_pending=50) as server:
            results.append(server.run(train, start, borrows_units)[0])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert np.abs(results[0] - start).max() > 0.1
