"""Optimizers under relocation: each step exactly once, wherever the key is, and its state moves with it."""

import numpy as np
import pytest

import lapse
from lapse import optim
from mpi4py.MPI import COMM_WORLD as comm

NUM_KEYS = 40
WORKERS = 3
HOT_KEYS = 3


def random_keys(random, most=8):
    count = int(random.integers(0, most + 1))
    return np.where(
        random.random(count) < 0.5, random.integers(0, HOT_KEYS, count), random.integers(0, NUM_KEYS, count)
    )


def many_calls(kv, lengths, seed):
    """Random calls in flight together; what the gradients of this worker come to, by key."""
    random = np.random.default_rng([seed, kv.id])
    steps = np.zeros(NUM_KEYS)
    for _ in range(40):
        keys = random_keys(random)
        kind = random.choice(["pull", "push", "gradient", "gradient", "localize"])
        amounts = random.integers(-100, 100, len(keys)).astype(float)
        rate = float(random.integers(1, 4))
        if kind == "pull":
            kv.pull(keys)
        elif kind == "localize":
            kv.localize(keys)
        elif kind == "push":
            np.add.at(steps, keys, amounts)
            kv.push(keys, np.repeat(amounts, lengths[keys]))
        else:
            np.add.at(steps, keys, -rate * amounts)
            kv.apply_gradients(keys, np.repeat(amounts, lengths[keys]), lr=rate)
        if random.random() < 0.2:
            kv.wait_all()
    kv.wait_all()
    return kv.allreduce(steps)


@pytest.mark.deadline(120)
@pytest.mark.parametrize("variable", [False, True], ids=["uniform", "variable_lengths"])
def test_steps_are_taken_exactly_once_while_keys_move(variable):
    lengths = np.arange(NUM_KEYS) % 4 + 1 if variable else np.full(NUM_KEYS, 3)
    expected = np.zeros(NUM_KEYS)
    server = lapse.Server(NUM_KEYS, lengths if variable else 3, "float64", workers=WORKERS, optimizer=optim.SGD(lr=1.0))
    with server:
        for seed in range(8):
            expected += server.run(many_calls, lengths, seed)[0]
            with_values = server.run(lambda kv: kv.pull(range(NUM_KEYS)).wait().reshape(-1))[0]
            np.testing.assert_array_equal(with_values, np.repeat(expected, lengths))


def equal_steps(kv, gradients, count):
    """Every worker takes the same steps, between localizes of the same keys."""
    keys = np.arange(NUM_KEYS)
    for _ in range(count):
        kv.localize(kv.rng.permutation(NUM_KEYS)[: NUM_KEYS // 2])
        kv.apply_gradients(keys, gradients)
    kv.wait_all()
    kv.barrier()
    return kv.pull(keys).wait()


@pytest.mark.deadline(120)
@pytest.mark.parametrize(
    "optimizer",
    [
        optim.Adagrad(lr=0.1, initial_accumulator_value=0.1, weight_decay=0.01),
        optim.RowWiseAdagrad(lr=0.1),
        optim.Adam(lr=0.1),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_equal_steps_of_all_workers_are_those_of_one(optimizer):
    # Equal gradients commute, so that the bits must be those of one rank.
    gradients = np.random.default_rng(1).normal(size=(NUM_KEYS, 5)).astype(np.float32)
    with lapse.Server(NUM_KEYS, 5, workers=WORKERS, optimizer=optimizer) as server:
        values = server.run(equal_steps, gradients, 10)[0]
    with lapse.Server(NUM_KEYS, 5, optimizer=optimizer, comm=comm.Split(comm.rank)) as alone, alone.worker() as kv:
        for _ in range(10 * WORKERS * comm.size):
            kv.apply_gradients(range(NUM_KEYS), gradients).wait()
        np.testing.assert_array_equal(values, kv.pull(range(NUM_KEYS)).wait())


def test_large_gradients_and_states():
    """Frames above the packet size."""
    length = 100_000
    with lapse.Server(3, length, optimizer=optim.Adagrad(lr=1.0)) as server, server.worker() as kv:
        for turn in range(3):
            kv.localize([(turn + kv.rank) % 3])
            kv.apply_gradients([0, 1, 2, 1], np.ones((4, length), "f4"))
        kv.wait_all()
        kv.barrier()
        steps = 3 * comm.size
        expected = -np.sum(1 / np.sqrt(np.arange(1, steps + 1)))
        np.testing.assert_allclose(kv.pull([0, 1, 2]).wait(), expected, rtol=1e-5)


def test_tables_with_several_optimizers():
    tables = lapse.Tables(
        sums=lapse.Table(20, 3, optimizer=optim.SGD(lr=1.0)),
        slow=lapse.Table(10, 3, lapse.Constant(1), optim.Adagrad(lr=1.0)),
        other=lapse.Table(10, 4),
    )
    with lapse.Server(tables) as server, server.worker() as kv:
        keys = np.concatenate([tables["sums"].keys([3, 19]), tables["slow"].keys([0, 9])])
        kv.localize(keys).wait()
        kv.apply_gradients(keys, np.ones(12, "f4")).wait()
        kv.barrier()
        steps = np.sum(1 / np.sqrt(np.arange(1, comm.size + 1)))
        values = kv.pull(keys).wait().reshape(4, 3)
        np.testing.assert_allclose(values[:2], -comm.size)
        np.testing.assert_allclose(values[2:], 1 - steps, rtol=1e-5)
        with pytest.raises(ValueError, match="key 30, which has no optimizer"):
            kv.apply_gradients([30], np.ones(4, "f4"))


def apply_in_rounds(kv, keys, gradients, rounds):
    """Every worker applies a gradient in each round; the values after each, and what a worker sees before its end."""
    seen = []
    for number in range(rounds):
        kv.barrier()
        before = kv.pull(keys).wait()
        kv.barrier()
        kv.apply_gradients(keys, gradients, step=1 + 10 * number + kv.id).wait()
        np.testing.assert_array_equal(kv.pull(keys).wait(), before)
        kv.barrier()
        kv.wait_replica_sync()
        kv.barrier()
        seen.append(kv.pull(keys).wait())
    return seen


@pytest.mark.deadline(120)
@pytest.mark.parametrize("wire", ["exact", "bfloat16"])
@pytest.mark.parametrize("optimizer", [optim.SGD(lr=0.5), optim.Adagrad(), optim.Adam()], ids=str)
def test_a_round_of_replicated_keys_is_one_step(optimizer, wire):
    keys = np.arange(0, NUM_KEYS, 3)
    gradients = np.random.default_rng(2).normal(size=(len(keys), 4)).astype(np.float32)
    pace = lapse.Replication(syncs_per_second=0, wire=wire)
    with lapse.Server(NUM_KEYS, 4, replicated_keys=keys, replication=pace, optimizer=optimizer) as server:
        if len(server.sharing_ranks) == comm.size:
            return  # nothing is replicated
        seen = server.run(apply_in_rounds, keys, gradients, 5)[0]
        assert all(other == seen[-1].tobytes() for other in comm.allgather(seen[-1].tobytes()))
    with lapse.Server(NUM_KEYS, 4, optimizer=optimizer, comm=comm.Split(comm.rank)) as alone, alone.worker() as kv:
        for number, values in enumerate(seen):
            kv.apply_gradients(keys, gradients * comm.size, step=10 * number + comm.size).wait()  # the largest of all
            tolerance = 1e-5 if wire == "exact" else 1e-2
            np.testing.assert_allclose(values, kv.pull(keys).wait(), rtol=tolerance, atol=tolerance)


def test_gradients_of_replicated_keys_are_neither_lost_nor_repeated():
    keys = np.arange(NUM_KEYS)

    def work(kv):
        for number in range(30):
            kv.apply_gradients(keys[:: 1 + number % 3], np.ones((len(keys[:: 1 + number % 3]), 2), "f4"))
            if number % 4 == 0:
                kv.localize(kv.rng.permutation(keys)[:10])
            if number % 7 == 0:
                kv.wait_replica_sync()
        kv.wait_all()
        kv.barrier()
        kv.wait_replica_sync()
        kv.barrier()
        return kv.pull(keys).wait()

    pace = lapse.Replication(syncs_per_second=200, max_pending=100)
    server = lapse.Server(
        NUM_KEYS, 2, workers=2, replicated_keys=keys[::2], replication=pace, optimizer=optim.SGD(lr=1.0)
    )
    with server:
        values = server.run(work)[0]
    expected = sum((keys % (1 + number % 3) == 0).astype(int) for number in range(30)) * -2 * comm.size
    np.testing.assert_array_equal(values, np.repeat(expected, 2).reshape(-1, 2))
