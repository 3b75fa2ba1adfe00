"""Store and protocol with real threads: workers step without the GIL beside the deliveries."""

import collections
import os
import threading
import time

import numpy as np
import pytest

from lapse._virtual_rank import VirtualRank

ROUNDS = int(4 * float(os.environ.get("LAPSE_TEST_SEEDS", 1)))


class ThreadedRanks:
    """One thread per rank carries and delivers messages, in order; worker threads ask."""

    def __init__(self, size, num_keys, lengths, seed):
        self.ranks = [VirtualRank(rank, size, num_keys, lengths) for rank in range(size)]
        self.channels = {(a, b): collections.deque() for a in range(size) for b in range(size)}
        self.size, self.num_keys, self.seed = size, num_keys, seed
        self.ending = False
        self.errors = []
        self.calls = []  # messages name calls by their address

    def carry(self, rank):
        """Once over all channels of a rank; whether anything moved."""
        moved = False
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

    def finish(self, calls):
        for call in calls:
            while not call.done:
                assert not self.errors, self.errors
                time.sleep(0)

    def run(self, workers, program):
        servers = [
            threading.Thread(target=self.serve, args=(rank,), daemon=True)
            for rank in range(self.size)
        ]
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
        while any([self.carry(rank) for rank in range(self.size)]):
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
            kind = str(random.choice(["push", "push", "pull", "localize", "where"]))
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
        ranks = ThreadedRanks(size, num_keys, lengths, seed)
        ranks.run(3, program)
        for key in range(num_keys):
            owners = [rank for rank in ranks.ranks if rank.state(key) == "owned"]
            assert len(owners) == 1
            assert (owners[0].value(key) == sums[key]).all()
        assert all(rank.at_rest for rank in ranks.ranks)


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
        ThreadedRanks(size, size, 500, seed).run(2, program)
