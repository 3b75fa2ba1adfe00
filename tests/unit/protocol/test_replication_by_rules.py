"""Replicas as a state machine: hypothesis chooses each step, tick and delivery, and shrinks.

LAPSE_TEST_SEEDS multiplies how many examples are tried.
"""

import os
from collections import deque

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lapse.testing._virtual_rank import VirtualRank

from simulated_network import Channels, Network, share_in_groups

NUM_KEYS = 4
REPLICATED = (0, 2, 3)
EXAMPLES = int(100 * float(os.environ.get("LAPSE_TEST_SEEDS", 1)))
KEYS = st.integers(0, NUM_KEYS - 1)
PACES = [
    {},
    {"interval": 0.01},
    {"max_pending": 1},
    {"max_pending": 2, "interval": 0.01},
    {"max_pending": 2, "threshold": 6.0},
    {"interval": 0.01, "threshold": 1e9},
]
STEP_OF_SETS = 1000.0  # sets give multiples of it, and all pushes together come to less


class Ranks(RuleBasedStateMachine):
    @initialize(
        size=st.integers(1, 5),
        sharing=st.integers(1, 3),
        lengths=st.sampled_from([1, 3, (2, 1, 2, 3)]),
        dtype=st.sampled_from(["float32", "float64"]),
        pace=st.sampled_from(PACES),
        with_sets=st.booleans(),
        in_place=st.booleans(),
    )
    def start(self, size, sharing, lengths, dtype, pace, with_sets, in_place):
        lengths = lengths if isinstance(lengths, int) else np.array(lengths)
        self.ranks = [
            VirtualRank(rank, size, NUM_KEYS, lengths, dtype, REPLICATED, in_place=in_place, **pace)
            for rank in range(size)
        ]
        share_in_groups(self.ranks, sharing)
        self.size = size
        self.lengths = np.broadcast_to(lengths, NUM_KEYS)
        self.replicated = REPLICATED if size > sharing else ()
        self.with_sets = with_sets
        self.in_place = in_place
        self.borrowed = []  # [rank, key, its value in place, what was added to it since]
        self.channels = Channels(self.ranks)
        self.unfinished = deque()  # calls that have not asked for all of their keys
        self.calls = []
        self.syncs = []  # (call, what its rank had pushed when it began)
        self.pushes = []  # (when, rank, key, number), each when it was carried out
        self.sets = {}  # by value: [key, when it was issued, its call, when it was done]
        self.time = 1.0
        self.clock = 0

    # What happens ---------------------------------------------------------------------------------

    def begin(self, rank, kind, keys, values=None):
        call = self.ranks[rank].begin(kind, keys, values)
        self.calls.append(call)
        self.unfinished.append((rank, call))
        return call

    def values_for(self, keys, number):
        return np.full(int(self.lengths[keys].sum()) if keys else 0, float(number))

    @rule(
        rank=st.integers(0, 4),
        kind=st.sampled_from(["pull", "localize", "locate"]),
        keys=st.lists(KEYS, max_size=3),
    )
    def ask(self, rank, kind, keys):
        self.begin(rank % self.size, kind, keys)

    @rule(rank=st.integers(0, 4), keys=st.lists(KEYS, max_size=4), number=st.integers(1, 5))
    def push(self, rank, keys, number):
        self.begin(rank % self.size, "push", keys, self.values_for(keys, number))

    @precondition(lambda self: self.with_sets and self.replicated)
    @rule(rank=st.integers(0, 4), key=st.sampled_from(REPLICATED))
    def set(self, rank, key):
        value = STEP_OF_SETS * (len(self.sets) + 1)
        call = self.begin(rank % self.size, "set", [key], self.values_for([key], value))
        self.sets[value] = [key, None, call, None]

    @rule(rank=st.integers(0, 4))
    def sync(self, rank):
        rank %= self.size
        pushed = self.pushed_by(rank)
        for borrower, key, _, added in self.borrowed:
            pushed[key] -= added * (borrower == rank)  # it counts as pushed when it is returned
        self.syncs.append((self.begin(rank, "sync", []), pushed))

    @precondition(lambda self: self.in_place and self.replicated)
    @rule(rank=st.integers(0, 4), key=st.sampled_from(REPLICATED), shared=st.booleans())
    def borrow(self, rank, key, shared):
        value = self.ranks[rank % self.size].borrow(key, shared)
        if value is not None:
            self.borrowed.append([rank % self.size, key, value, 0])

    @precondition(lambda self: self.borrowed)
    @rule(which=st.integers(0, 10), number=st.integers(1, 5))
    def change_in_place(self, which, number):
        borrowed = self.borrowed[which % len(self.borrowed)]
        rank, key, value, _ = borrowed
        self.clock += 1
        self.pushes.append((self.clock, rank, key, float(number)))
        value += number
        borrowed[3] += number

    @precondition(lambda self: self.borrowed)
    @rule(which=st.integers(0, 10))
    def give_back(self, which):
        rank, key, *_ = self.borrowed.pop(which % len(self.borrowed))
        self.clock += 1
        self.ranks[rank].give_back(key)
        self.after(rank)

    @precondition(lambda self: self.unfinished)
    @rule(which=st.integers(0, 10))
    def step(self, which):
        self.unfinished.rotate(which)
        rank, call = self.unfinished[0]
        if call.kind == "push" and self.ranks[rank].runs_ahead:
            return
        self.clock += 1
        if call.issued < len(call.keys) and call.kind == "push":
            self.pushes.append((self.clock, rank, int(call.keys[call.issued]), float(call.values[0])))
        if call.kind == "set":
            self.sets[float(call.values[0])][1] = self.clock
        if self.ranks[rank].step(call):
            self.unfinished.popleft()
        self.after(rank)

    @precondition(lambda self: self.channels)
    @rule(which=st.integers(0, 20))
    def deliver(self, which):
        self.clock += 1
        self.after(self.channels.deliver(which))

    @rule(rank=st.integers(0, 4), milliseconds=st.sampled_from([0, 1, 3, 11, 30]))
    def tick(self, rank, milliseconds):
        self.time += milliseconds / 1000
        self.ranks[rank % self.size].tick(self.time)
        self.after(rank % self.size)

    def after(self, rank):
        """Collect what a rank sends, and see which sets and synchronizations are done."""
        self.channels.collect(rank)
        for known in self.sets.values():
            if known[3] is None and known[2].done:
                known[3] = self.clock
        for one in [one for one in self.syncs if one[0].done]:
            self.syncs.remove(one)
            self.after_sync(one[1])

    def after_sync(self, pushed):
        for key in set(self.replicated) - self.keys_set():
            for other in self.ranks:
                assert (other.base(key) >= pushed[key]).all(), "the wait ended too early"

    # What must hold -------------------------------------------------------------------------------

    def keys_set(self):
        return {key for key, *_ in self.sets.values()}

    def pushed_by(self, rank):
        pushed = np.zeros(NUM_KEYS)
        for _, by, key, number in self.pushes:
            pushed[key] += number * (by == rank)
        return pushed

    @invariant()
    def a_rank_sees_its_own_pushes_and_no_push_twice(self):
        if not hasattr(self, "ranks"):
            return
        pushed = np.array([self.pushed_by(rank) for rank in range(self.size)])
        for key in set(self.replicated) - self.keys_set():
            for number, rank in enumerate(self.ranks):
                value = rank.value(key)
                assert (pushed[number, key] <= value).all()
                assert (value <= pushed[:, key].sum()).all()
                assert (rank.base(key) <= value).all()

    def check_replica(self, key):
        first = self.ranks[0].value(key)
        for rank in self.ranks:
            assert rank.value(key).tobytes() == rank.base(key).tobytes() == first.tobytes()
        value = first[0]
        assert (first == value).all()
        last = value // STEP_OF_SETS * STEP_OF_SETS
        issued, done = self.sets[last][1::2] if last else (0, 0)
        assert not last or self.sets[last][0] == key
        later = [(when, number) for when, _, of, number in self.pushes if of == key]
        least = sum(number for when, number in later if when > done)
        most = sum(number for when, number in later if when > issued)
        assert least <= value - last <= most, "a push behind the set was dropped, or one before it was not"
        for value, (of, issued_then, _, _) in self.sets.items():
            assert of != key or value == last or issued_then < done, "a set was lost"

    def run_until_rest(self):
        for number in range(20_000):
            if self.unfinished:
                self.step(1)
            if self.channels:
                self.deliver(number)
            elif not self.unfinished and not self.syncs:
                return
            else:
                for rank in range(self.size):
                    self.tick(rank, 30)
        raise AssertionError("the ranks do not come to rest")

    def teardown(self):
        if not hasattr(self, "ranks"):
            return
        while self.borrowed:
            self.give_back(0)
        self.run_until_rest()
        for rank in range(self.size):
            self.sync(rank)
        self.run_until_rest()
        assert all(call.done for call in self.calls)
        assert all(rank.at_rest for rank in self.ranks)
        for key in self.replicated:
            self.check_replica(key)
        for key in set(range(NUM_KEYS)) - set(self.replicated):
            owners = [rank for rank in self.ranks if rank.state(key) == "owned"]
            assert len(owners) == 1
            total = sum(number for _, _, of, number in self.pushes if of == key)
            assert (owners[0].value(key) == total).all()


Ranks.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=60, deadline=None)
test_any_order_of_steps_ticks_and_deliveries_ends_with_equal_replicas = Ranks.TestCase


@pytest.mark.parametrize("threshold", [0.0, 1e-9, 1e9])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_wait_ends_while_other_workers_push_without_a_pause(size, threshold):
    """Whatever the threshold: a round that others begin meanwhile must not keep it from coming to its own."""

    def pusher(network, random, state):
        while not state["done"]:
            while network.ranks[0].runs_ahead:
                yield None
            state["pushes"] += 1
            assert state["pushes"] < 1000, "the wait does not end"
            yield network.start(0, "push", [int(random.integers(6))], [1.0])

    def waiter(network, state):
        yield network.start(0, "push", [0], [1.0])
        yield from network.sync(0)
        state["done"] = True

    for seed in range(10):
        network = Network(size, 6, 1, seed, replicated=range(6), max_pending=3, threshold=threshold)
        state = {"done": False, "pushes": 0}
        for number in range(2):
            network.worker(0, pusher(network, np.random.default_rng([seed, number]), state))
        network.worker(0, waiter(network, state))
        network.run()
        assert state["done"]


def test_homes_keep_no_sums_that_others_wait_for():
    """Where every rank runs ahead, each waits for sums of the others: none may wait for its own next round."""
    for seed in range(10):
        network = Network(4, 40, 1, seed, replicated=range(40), max_pending=10, max_delay=1.0)
        ended = []

        def program(rank, network=network, ended=ended):
            for _ in range(30):
                while network.ranks[rank].runs_ahead:
                    yield None
                yield network.start(rank, "push", range(40), np.ones(40))
            ended.append(network.time)

        for rank in range(4):
            network.worker(rank, program(rank))
        network.run()
        assert max(ended) < 30 * 15  # milliseconds; a home's patience alone is 20 for each round
