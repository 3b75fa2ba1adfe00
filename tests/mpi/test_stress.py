"""Everything at once, asynchronously, and exact sums: no update lost, none applied twice.

Values are whole numbers in float64, so that sums are exact in any order. LAPSE_TEST_ROUNDS sets how
many rounds one job runs, LAPSE_TEST_LOCALIZES how often each rank asks for the one contested key.
"""

import os
import time

import numpy as np
import pytest

import lapse
from mpi4py.MPI import COMM_WORLD as comm

NUM_KEYS = 60
HOT_KEYS = 3
WORKERS = 5
CALLS = 12
ROUNDS = int(os.environ.get("LAPSE_TEST_ROUNDS", 100))
LOCALIZES = int(os.environ.get("LAPSE_TEST_LOCALIZES", 1000))


def random_keys(random, num_keys, most=8):
    """Up to `most` keys, repeats and none included; half of them among the hot ones."""
    count = int(random.integers(0, most + 1))
    is_hot = random.random(count) < 0.5
    return np.where(is_hot, random.integers(0, HOT_KEYS, count), random.integers(0, num_keys, count))


def one_round(kv, server, number, before):
    """Random calls, all of them in flight together; returns what every key must then hold."""
    shared = server.num_keys - kv.num_workers  # each worker has one key above these for its sets
    own_key = shared + kv.id
    random = np.random.default_rng([number, kv.id])
    added = np.zeros(server.num_keys)
    operations = []
    own_value = 0.0
    for _ in range(CALLS):
        kind = random.choice(["pull", "push", "push", "localize", "own"])
        keys = random_keys(random, shared)
        if kind == "pull":
            operations.append(kv.pull(keys))
        elif kind == "localize":
            operations.append(kv.localize(keys if random.random() < 0.8 else [own_key]))
        elif kind == "push":
            amounts = random.integers(-100, 1000, len(keys)).astype(float)
            np.add.at(added, keys, amounts)
            operations.append(kv.push(keys, np.repeat(amounts, server.value_length(keys))))
        else:
            own_value = change_own_key(kv, server, own_key, random)
        if random.random() < 0.1 and operations:
            kv.wait(operations[int(random.integers(len(operations)))])
    kv.wait_all()
    assert all(operation.test() for operation in operations)
    added[own_key] = own_value
    total = kv.allreduce(added)
    expected = before + total
    changed_own = total[shared:] != 0
    expected[shared:] = np.where(changed_own, total[shared:], before[shared:])
    check_values(kv, server, expected)
    return expected


def change_own_key(kv, server, key, random):
    """A set and then a push on a key that others may localize, but not change."""
    length = server.value_length(key)
    first, second = (float(x) for x in random.integers(1, 1000, 2))
    kv.set(key, np.full(length, first)).wait()
    kv.push(key, np.full(length, second)).wait()
    assert kv.pull(key).wait().tolist() == [first + second] * length
    return first + second


def check_values(kv, server, expected):
    keys = kv.rng.permutation(server.num_keys)
    values = kv.pull(keys).wait().reshape(-1)
    np.testing.assert_array_equal(values, np.repeat(expected[keys], server.value_length(keys)))


@pytest.mark.deadline(170)
@pytest.mark.parametrize("variable", [False, True], ids=["uniform", "variable_lengths"])
def test_random_calls_in_flight_together_end_with_exact_sums(variable):
    num_workers = WORKERS * comm.size
    num_keys = NUM_KEYS + num_workers
    lengths = np.arange(num_keys) % 4 + 1 if variable else 3
    expected = np.zeros(num_keys)
    with lapse.Server(num_keys, lengths, "float64", workers=WORKERS) as server:
        for number in range(ROUNDS):
            expected = server.run(one_round, server, number, expected)[0]
        stats = server.stats(all_ranks=True)
        # The rounds must have been through what they are to test.
        all_share = len(server.sharing_ranks) == comm.size
        assert comm.size == 1 or stats["pushed_shared" if all_share else "relocations_in"] > ROUNDS
        assert stats["relocations_in"] == stats["relocations_out"]


@pytest.mark.deadline(120)
def test_all_ranks_localize_one_key_while_all_push_to_it():
    def work(kv):
        for i in range(LOCALIZES):
            operation = kv.localize(0)
            kv.push(0, [1.0])
            if i % 4 == 0:
                operation.wait()
            if i % 16 == 0:
                time.sleep(1e-5)  # else a rank does all its work in one slice of the processor
        kv.wait_all()
        kv.barrier()
        return kv.pull(0).wait()[0]

    with lapse.Server(2, 1, "float64") as server:
        assert server.run(work) == [comm.size * LOCALIZES]
        # Of ranks that share memory one may do everything without the key.
        hosts = len(set(map(tuple, comm.allgather(server.sharing_ranks))))
        assert server.stats(all_ranks=True)["relocations_in"] >= hosts - 1
        owners = comm.allgather(0 in server.local_keys())
        assert owners.count(True) == 1
        assert owners[server.owner(0)]


@pytest.mark.deadline(120)
def test_waited_localizes_of_one_key_by_all_ranks():
    """Every localize arrives, however many others want the key."""

    def work(kv):
        arrived_local = 0
        for _ in range(LOCALIZES // 5):
            kv.localize(1).wait()
            arrived_local += kv.is_local(1)
            kv.push(1, [1.0]).wait()
        kv.barrier()
        assert kv.pull(1).wait()[0] == kv.num_workers * (LOCALIZES // 5)
        return arrived_local

    with lapse.Server(2, 1, "float64") as server:
        assert sum(server.run(work)) > 0
