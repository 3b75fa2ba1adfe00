"""Values that workers borrow and change where they are, while others pull, push and localize them."""

import os
import threading
import time

import numpy as np
import pytest
from lapse.testing._borrowed import Borrowed

import lapse
from borrowing import add_two

NUM_KEYS = 20
HOT_KEYS = 3
WORKERS = 3
ROUNDS = int(os.environ.get("LAPSE_TEST_ROUNDS", 100))


def test_what_is_changed_in_place_is_what_everybody_pulls():
    def work(kv):
        keys = np.arange(kv.id, NUM_KEYS, kv.num_workers)
        kv.localize(keys).wait()
        borrowed = Borrowed(kv, keys.tolist())
        lent = np.array([array is not None for array in borrowed.arrays])
        for key, array in zip(keys, borrowed.arrays, strict=True):
            if array is not None:
                array += key
        borrowed.give_back()
        borrowed.give_back()  # nothing is left
        rest = keys[~lent]  # at a rank that shares memory
        kv.push(rest, np.repeat(rest.astype(float), 2)).wait()
        kv.barrier()
        np.testing.assert_array_equal(
            kv.pull(np.arange(NUM_KEYS)).wait(), np.repeat(np.arange(NUM_KEYS), 2).reshape(-1, 2)
        )
        return lent.all()

    with lapse.Server(NUM_KEYS, 2, "float64", workers=2) as server:
        was_lent = server.run(work)
        assert all(was_lent) or len(server.sharing_ranks) > 1
        stats = server.stats(all_ranks=True)
        assert stats["pulled_local"] > 0


def test_a_borrower_may_not_wait_and_goes_on_after_the_return():
    def work(kv):
        kv.localize(kv.id).wait()
        borrowed = Borrowed(kv, [kv.id])
        if borrowed.arrays[0] is not None:
            for call in (lambda: kv.pull(0), lambda: kv.push(0, [1.0]), kv.wait_all, kv.barrier, kv.wait_replica_sync):
                with pytest.raises(RuntimeError, match="has borrowed 1 values.*return_keys first"):
                    call()
        borrowed.give_back()
        kv.push(kv.id, [1.0]).wait()
        with pytest.raises(ValueError, match="has borrowed 0"):
            borrowed.give_back_again()
        kv.barrier()

    with lapse.Server(100, 1, "float64", workers=2) as server:
        server.run(work)


def test_an_address_that_is_returned_for_another_key_is_an_error():
    def work(kv):
        kv.localize(kv.id).wait()
        first = Borrowed(kv, [kv.id])
        if first.arrays[0] is not None:
            other = Borrowed(kv, [50])
            other.give_back()
            with pytest.raises(ValueError, match=r"key 50 is not lent"):
                other.give_back_again()
        first.give_back()
        kv.barrier()

    with lapse.Server(100, 1, "float64") as server:
        server.run(work)


def test_keys_out_of_range_are_named_and_nothing_is_borrowed():
    def work(kv):
        with pytest.raises(IndexError, match="7"):
            Borrowed(kv, [0, 7])
        kv.pull(0).wait()

    with lapse.Server(5, 1) as server:
        server.run(work)


def test_a_run_that_ends_with_a_borrowed_value_is_an_error_everywhere():
    def work(kv):
        kv.localize(kv.id).wait()
        return Borrowed(kv, [kv.id])

    with pytest.raises((lapse.RemoteError, RuntimeError), match="has borrowed"):
        with lapse.Server(100, 1, shared_memory=False) as server:
            server.run(work)


def test_others_do_not_hang_if_a_borrower_fails():
    """Their localizes and pushes wait for a return that never comes."""

    def work(kv):
        kv.localize(0).wait()
        kv.barrier()
        borrowed = Borrowed(kv, [0])
        if kv.id == 0:
            assert borrowed is not None
            time.sleep(0.05)
            raise ZeroDivisionError("on purpose")
        borrowed.give_back()
        while True:
            kv.push(0, [1.0]).wait()
            kv.localize(0).wait()

    with pytest.raises((ZeroDivisionError, lapse.RemoteError), match="on purpose"):
        with lapse.Server(2, 1, "float64") as server:
            server.run(work)


def test_workers_of_a_rank_share_values():
    def work(kv, met):
        borrowed = Borrowed(kv, range(5), shared=True)
        met.wait()  # all have them
        lent = [array is not None for array in borrowed.arrays]
        if kv.id % WORKERS == 0:
            for array in borrowed.arrays:
                if array is not None:
                    array += 1
        met.wait()
        borrowed.give_back()
        kv.barrier()
        return lent

    met = threading.Barrier(WORKERS, timeout=30)
    with lapse.Server(5, 1, "float64", workers=WORKERS) as server:
        lent = server.run(work, met)
        assert all(mine == lent[0] for mine in lent)
        keys = server.local_keys()
        assert np.array(lent[0])[keys].all()


def one_round(kv, number, before):
    """Random calls and changes in place; returns what every key must then hold."""
    random = np.random.default_rng([number, kv.id])
    added = np.zeros(NUM_KEYS)
    lent = 0
    for _ in range(12):
        count = int(random.integers(1, 6))
        is_hot = random.random(count) < 0.5
        keys = np.where(is_hot, random.integers(0, HOT_KEYS, count), random.integers(0, NUM_KEYS, count))
        kind = str(random.choice(["pull", "push", "localize", "borrow", "borrow"]))
        if kind == "pull":
            kv.pull(keys)
        elif kind == "localize":
            operation = kv.localize(keys)
            if random.random() < 0.5:
                operation.wait()
        elif kind == "push":
            amounts = random.integers(-100, 1000, count).astype(float)
            np.add.at(added, keys, amounts)
            kv.push(keys, np.repeat(amounts, 3))
        else:
            in_place = add_two(kv, keys, random, 0.2)
            np.add.at(added, keys, in_place)
            lent += np.count_nonzero(in_place)
    kv.wait_all()
    expected = before + kv.allreduce(added)
    np.testing.assert_array_equal(kv.pull(np.arange(NUM_KEYS)).wait(), np.repeat(expected, 3).reshape(-1, 3))
    return expected, kv.allreduce(lent)


@pytest.mark.deadline(170)
def test_exact_sums_while_values_are_borrowed_and_move():
    expected, lent = np.zeros(NUM_KEYS), 0
    with lapse.Server(NUM_KEYS, 3, "float64", workers=WORKERS) as server:
        for number in range(ROUNDS // 2):
            expected, of_round = server.run(one_round, number, expected)[0]
            lent += of_round
        stats = server.stats(all_ranks=True)
        assert lent > ROUNDS
        assert stats["relocations_in"] == stats["relocations_out"]
