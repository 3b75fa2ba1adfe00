"""Store and protocol with real threads: workers step without the GIL beside the deliveries."""

import collections
import os
import threading
import time

import numpy as np
import pytest
from lapse.testing._virtual_rank import VirtualRank

from simulated_network import share_in_groups

ROUNDS = int(4 * float(os.environ.get("LAPSE_TEST_SEEDS", 1)))


class ThreadedRanks:
    """One thread per rank carries and delivers messages, in order, and tells the time; worker threads ask."""

    def __init__(self, size, num_keys, lengths, seed, dtype="float64", replicated=(), sharing=1, **management):
        self.ranks = [
            VirtualRank(rank, size, num_keys, lengths, dtype, replicated, **management) for rank in range(size)
        ]
        share_in_groups(self.ranks, sharing)
        self.channels = {(a, b): collections.deque() for a in range(size) for b in range(size)}
        self.size, self.num_keys, self.seed, self.sharing = size, num_keys, seed, sharing
        self.ending = False
        self.errors = []
        self.calls = []  # messages name calls by their address

    def carry(self, rank):
        """Once over all channels of a rank; whether anything moved."""
        moved = False
        self.ranks[rank].tick(time.monotonic())
        for other in range(self.size):
            while (packet := self.ranks[rank].take(other)) is not None:
                self.channels[rank, other].append(packet)
                moved = True
            channel = self.channels[other, rank]
            while channel:
                self.ranks[rank].deliver(other, channel.popleft())
                moved = True
        return moved

    def serve(self, rank):
        try:
            while self.carry(rank) or not self.ending:
                time.sleep(0)
        except BaseException as error:
            self.errors.append(error)

    def worker(self, rank, number, program):
        try:
            program(self, rank, np.random.default_rng([self.seed, rank, number]))
        except BaseException as error:
            self.errors.append(error)

    def call(self, rank, random, kind, keys, values=None):
        """Issue a call, giving the processor away at random between its steps."""
        call = self.ranks[rank].begin(kind, keys, values)
        self.calls.append(call)
        while not self.ranks[rank].step(call):
            if random.random() < 0.1:
                time.sleep(0)
        return call

    def when_in_step(self, rank):
        """Wait while the rank runs ahead, as a worker does before it pushes."""
        while self.ranks[rank].runs_ahead:
            assert not self.errors, self.errors
            time.sleep(0)

    def sync(self, rank, random):
        """Bring a rank's updates to all replicas, as a worker does."""
        self.finish([self.call(rank, random, "sync", [])])

    def check_sums(self, sums):
        """At rest each key has one owner, whose value is the sum of all pushes."""
        for key, total in enumerate(sums):
            owners = [rank for rank in self.ranks if rank.state(key) == "owned"]
            assert len(owners) == 1
            assert (owners[0].value(key) == total).all()
        assert all(rank.at_rest for rank in self.ranks)

    def finish(self, calls):
        for call in calls:
            while not call.done:
                assert not self.errors, self.errors
                time.sleep(0)

    def run(self, workers, program):
        servers = [threading.Thread(target=self.serve, args=(rank,), daemon=True) for rank in range(self.size)]
        threads = [
            threading.Thread(target=self.worker, args=(rank, number, program), daemon=True)
            for rank in range(self.size)
            for number in range(workers)
        ]
        for thread in servers + threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a worker waits for ever"
        self.ending = True
        for thread in servers:
            thread.join(30)
        assert not self.errors, self.errors
        while any(self.carry(rank) for rank in range(self.size)):
            pass


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [1, 300, 3000, "variable"])
def test_concurrent_steps_end_with_exact_sums(size, lengths):
    num_keys = 5
    lengths = np.array([1, 7, 2500, 300, 1]) if lengths == "variable" else lengths
    sizes = np.broadcast_to(lengths, num_keys)

    def program(ranks, rank, random):
        calls = []
        for _ in range(60):
            keys = random.integers(0, num_keys, 3)
            kind = str(random.choice(["push", "push", "pull", "localize", "locate"]))
            values = np.repeat(np.ones(3), sizes[keys]) if kind == "push" else None
            calls.append(ranks.call(rank, random, kind, keys, values))
            if kind == "push":
                with lock:
                    np.add.at(sums, keys, 1)
            if len(calls) >= 10:
                ranks.finish(calls)
                calls.clear()
        ranks.finish(calls)

    for seed in range(ROUNDS):
        sums, lock = np.zeros(num_keys), threading.Lock()
        ranks = ThreadedRanks(size, num_keys, lengths, seed, sharing=seed % 3 + 1)
        ranks.run(3, program)
        ranks.check_sums(sums)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 3000])
def test_values_that_are_lent_change_exactly_while_others_push_and_localize_them(size, length):
    num_keys = 4

    def program(ranks, rank, random):
        calls = []
        for _ in range(60):
            key = int(random.integers(num_keys))
            kind = str(random.choice(["push", "borrow", "borrow", "localize", "pull"]))
            if kind == "borrow":
                value = ranks.ranks[rank].borrow(key)
                if value is None:
                    continue
                for _ in range(int(random.integers(1, 4))):
                    value += 1
                    time.sleep(0)
                    with lock:
                        sums[key] += 1
                ranks.ranks[rank].give_back(key)
                continue
            values = np.ones(length) if kind == "push" else None
            calls.append(ranks.call(rank, random, kind, [key], values))
            if kind == "push":
                with lock:
                    sums[key] += 1
            if len(calls) >= 10:
                ranks.finish(calls)
                calls.clear()
        ranks.finish(calls)

    for seed in range(ROUNDS):
        sums, lock = np.zeros(num_keys), threading.Lock()
        ranks = ThreadedRanks(size, num_keys, length, seed, sharing=seed % 3 + 1)
        ranks.run(3, program)
        ranks.check_sums(sums)


@pytest.mark.parametrize("size", [2, 3])
def test_concurrent_workers_read_their_own_waited_writes_and_no_torn_values(size):
    def program(ranks, rank, random):
        for number in range(40):
            own = rank
            ranks.call(rank, random, "localize", random.integers(0, size, 2))
            if random.random() < 0.7:
                with own_locks[rank]:  # one writer of a key at a time; the readers go on
                    write = ranks.call(rank, random, "set", [own], np.full(500, float(number)))
                    ranks.finish([write])
                    read = ranks.call(rank, random, "pull", [own])
                    ranks.finish([read])
                    assert (read.values == number).all()
            read = ranks.call(rank, random, "pull", [int(random.integers(size))])
            ranks.finish([read])
            assert (read.values == read.values[0]).all(), "a torn value"

    for seed in range(ROUNDS):
        own_locks = [threading.Lock() for _ in range(size)]
        ThreadedRanks(size, size, 500, seed, sharing=seed % 3 + 1).run(2, program)


# Replicas -----------------------------------------------------------------------------------------

PACES = {
    "time": {"interval": 1e-4},
    "each push": {"max_pending": 1},
    "pushes": {"max_pending": 20, "interval": 1e-3},
    "threshold": {"max_pending": 5, "threshold": 30.0},
    "demand": {},
}


def check_replicas(ranks, keys):
    """Equal on all ranks, to the last bit. If all share memory there are none."""
    if ranks.sharing >= ranks.size:
        return
    for key in keys:
        first = ranks.ranks[0].value(key).tobytes()
        for rank in ranks.ranks:
            assert rank.value(key).tobytes() == rank.base(key).tobytes() == first


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("pace", PACES)
def test_concurrent_pushes_to_replicas_end_with_exact_sums(size, pace):
    """Beside relocated keys, and sets of keys of which only equality is asked."""
    num_keys, replicated, set_keys = 9, (0, 1, 2, 3, 4, 5), (4, 5)
    lengths = np.array([1, 7, 2500, 30, 600, 1, 1, 20, 3000])

    def program(ranks, rank, random):
        calls = []
        for _ in range(40):
            keys = random.integers(0, num_keys, 3)
            kind = str(random.choice(["push", "push", "push", "pull", "localize", "set", "sync"]))
            if kind == "sync":
                if random.random() < 0.3:
                    ranks.sync(rank, random)
                continue
            values = None
            if kind == "set":
                keys = [int(random.choice(set_keys))]
                values = np.full(lengths[keys[0]], random.random())
            elif kind == "push":
                ranks.when_in_step(rank)
                values = np.ones(lengths[keys].sum())
                with lock:
                    np.add.at(sums, keys, 1)
            calls.append(ranks.call(rank, random, kind, keys, values))
            if len(calls) >= 10:
                ranks.finish(calls)
                calls.clear()
        ranks.finish(calls)
        ranks.sync(rank, random)

    for seed in range(ROUNDS):
        sums, lock = np.zeros(num_keys), threading.Lock()
        ranks = ThreadedRanks(
            size,
            num_keys,
            lengths,
            seed,
            replicated=replicated,
            sharing=seed % 3 + 1,
            **PACES[pace],
        )
        ranks.run(3, program)
        check_replicas(ranks, replicated)
        for key in set(range(num_keys)) - set(set_keys):
            owner = next(r for r in ranks.ranks if r.state(key) in ("owned", "replicated"))
            assert (owner.value(key) == sums[key]).all()
        assert all(rank.at_rest for rank in ranks.ranks)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pace", ["time", "each push", "pushes"])
@pytest.mark.parametrize("size, sharing", [(3, 1), (4, 2), (5, 2)])
def test_concurrent_pushes_and_sets_leave_equal_replicas_when_sums_round(size, sharing, pace, dtype):
    def program(ranks, rank, random):
        for _number in range(60):
            key = int(random.integers(3))
            kind = "set" if random.random() < 0.1 else "push"
            ranks.when_in_step(rank)
            values = random.standard_normal(40) * 10.0 ** random.integers(-6, 7)
            ranks.call(rank, random, kind, [key], values)
        ranks.finish(ranks.calls)
        ranks.sync(rank, random)

    for seed in range(ROUNDS):
        ranks = ThreadedRanks(size, 3, 40, seed, dtype, range(3), sharing, **PACES[pace])
        ranks.run(2, program)
        check_replicas(ranks, range(3))
        assert all(rank.at_rest for rank in ranks.ranks)


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("size, sharing", [(2, 1), (3, 2), (4, 2)])
def test_concurrent_workers_see_their_own_pushes_and_no_torn_values(size, sharing, pace):
    def program(ranks, rank, random):
        seen = 0.0
        for pushed in range(1, 61):
            ranks.when_in_step(rank)
            ranks.call(rank, random, "push", [1], np.ones(500))
            read = ranks.call(rank, random, "pull", [1])
            assert (read.values == read.values[0]).all(), "a torn value"
            assert read.values[0] >= max(pushed, seen)
            seen = read.values[0]

    for seed in range(ROUNDS):
        ThreadedRanks(size, 2, 500, seed, replicated=[1], sharing=sharing, **PACES[pace]).run(2, program)


def test_a_wait_brings_also_what_was_pushed_while_a_round_was_beginning():
    """That round may have passed the key already: it must not count as having taken the push along."""
    num_keys = 600

    def program(ranks, rank, random):
        if rank == 1:
            return
        with lock:
            number = len(started)
            started.append(number)
        if number > 0:  # keeps rounds going that take their time
            while not ended:
                ranks.when_in_step(0)
                ranks.call(0, random, "push", random.permutation(num_keys)[:40], zeros)
            return
        try:
            pushed = np.zeros(num_keys)
            for _ in range(50 * ROUNDS):
                time.sleep(random.random() * 0.005)
                key = int(random.integers(num_keys))
                ranks.call(0, random, "push", [key], ones)
                pushed[key] += 1
                ranks.sync(0, random)
                assert (ranks.ranks[1].base(key) == pushed[key]).all()
        finally:
            ended.append(True)

    ones, zeros = np.ones(300), np.zeros(40 * 300)
    lock, started, ended = threading.Lock(), [], []
    ranks = ThreadedRanks(2, num_keys, 300, 0, replicated=range(num_keys), max_pending=50)
    ranks.run(2, program)
