"""The protocol as a state machine: hypothesis chooses each step and each delivery, and shrinks."""

import os
from collections import deque

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lapse.testing._virtual_rank import VirtualRank

from lapse import optim
from simulated_network import Channels, share_in_groups

NUM_KEYS = 3
EXAMPLES = int(100 * float(os.environ.get("LAPSE_TEST_SEEDS", 1)))
KEYS = st.integers(0, NUM_KEYS - 1)


class Ranks(RuleBasedStateMachine):
    @initialize(
        size=st.integers(1, 4),
        lengths=st.sampled_from([1, 3, (2, 1, 2)]),
        sharing=st.integers(1, 4),
    )
    def start(self, size, lengths, sharing):
        self.size = size
        lengths = lengths if isinstance(lengths, int) else np.array(lengths)
        optimizer = optim.SGD(lr=1.0).parameters()
        self.ranks = [VirtualRank(rank, size, NUM_KEYS, lengths, optimizer=optimizer) for rank in range(size)]
        share_in_groups(self.ranks, sharing)
        self.lengths = np.broadcast_to(lengths, NUM_KEYS)
        self.channels = Channels(self.ranks)
        self.unfinished = deque()  # calls that have not asked for all of their keys
        self.calls = []
        self.lent = []  # (rank, key)
        self.sums = np.zeros(NUM_KEYS)

    def begin(self, rank, kind, keys, values=None, **options):
        rank %= self.size
        call = self.ranks[rank].begin(kind, keys, values, **options)
        self.calls.append((rank, call))
        self.unfinished.append((rank, call))

    @rule(
        rank=st.integers(0, 3),
        kind=st.sampled_from(["pull", "localize", "locate"]),
        keys=st.lists(KEYS, max_size=3),
    )
    def ask(self, rank, kind, keys):
        self.begin(rank, kind, keys)

    @rule(rank=st.integers(0, 3), keys=st.lists(KEYS, max_size=3), number=st.integers(1, 9))
    def push(self, rank, keys, number):
        np.add.at(self.sums, keys, number)
        self.begin(rank, "push", keys, np.full(self.lengths[keys].sum() if keys else 0, float(number)))

    @rule(
        rank=st.integers(0, 3),
        keys=st.lists(KEYS, max_size=3),
        number=st.integers(1, 9),
        rate=st.sampled_from([np.nan, 2.0]),
    )
    def apply(self, rank, keys, number, rate):
        np.add.at(self.sums, keys, -number * (1 if np.isnan(rate) else rate))
        values = np.full(self.lengths[keys].sum() if keys else 0, float(number))
        self.begin(rank, "gradient", keys, values, rate=rate)

    @rule(rank=st.integers(0, 3), key=KEYS, times=st.integers(0, 4))
    def ask_in_vain(self, rank, key, times):
        self.ranks[rank % self.size].ask_in_vain(key, times)

    @precondition(lambda self: self.unfinished)
    @rule(which=st.integers(0, 10))
    def step(self, which):
        self.unfinished.rotate(which)
        rank, call = self.unfinished[0]
        if self.ranks[rank].step(call):
            self.unfinished.popleft()
        self.channels.collect(rank)

    @rule(rank=st.integers(0, 3), key=KEYS, shared=st.booleans(), number=st.integers(1, 9))
    def borrow(self, rank, key, shared, number):
        value = self.ranks[rank % self.size].borrow(key, shared)
        if value is not None:
            self.sums[key] += number
            value += number
            self.lent.append((rank % self.size, key))

    @precondition(lambda self: self.lent)
    @rule(which=st.integers(0, 10))
    def give_back(self, which):
        rank, key = self.lent.pop(which % len(self.lent))
        self.ranks[rank].give_back(key)
        self.channels.collect(rank)

    @precondition(lambda self: self.channels)
    @rule(which=st.integers(0, 20))
    def deliver(self, which):
        self.channels.collect(self.channels.deliver(which))

    @invariant()
    def a_key_has_at_most_one_owner(self):
        for key in range(NUM_KEYS):
            states = [rank.state(key) for rank in getattr(self, "ranks", [])]
            here = states.count("owned") + states.count("lent")
            assert here <= 1
            assert not states or here + states.count("arriving") >= 1 or self.channels

    def teardown(self):
        if not hasattr(self, "ranks"):
            return
        while self.unfinished:
            self.step(0)
        while self.lent:
            self.give_back(0)
        for _ in range(10_000):
            if not self.channels:
                break
            self.deliver(0)
        assert not self.channels, "the ranks do not come to rest"
        for _, call in self.calls:
            assert call.done
            assert call.kind != "pull" or not np.isnan(call.values).any()
        for rank in self.ranks:
            assert rank.at_rest
        for key in range(NUM_KEYS):
            owners = [rank for rank in self.ranks if rank.state(key) == "owned"]
            assert len(owners) == 1
            assert owners[0].value(key).tolist() == [self.sums[key]] * self.lengths[key]


Ranks.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
test_any_order_of_steps_and_deliveries_ends_with_exact_sums = Ranks.TestCase
