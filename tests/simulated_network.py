"""Many ranks of the protocol in one process, and a network that delays each message at random.

Deterministic by seed. The unit of interleaving is one key step: a call on n keys is n events,
several workers of a rank take turns at that grain, each packet is an event of its own. Channels
keep their order, as MPI's do, unless `reorder` is set.
"""

import heapq
import struct
from collections import deque

import numpy as np
from lapse.messaging._kinds import FRAME_BYTES, MESSAGE_KINDS, RECORD_BYTES
from lapse.testing._virtual_rank import VirtualRank, share_memory

FRAME = struct.Struct("<IIHHIQ")  # bytes, records, origin, credited_to, kind, operation
RECORD = struct.Struct("<II")  # key, position
TERMS_BYTES = 12  # a gradient's learning rate and step
assert (FRAME.size, RECORD.size) == (FRAME_BYTES, RECORD_BYTES)


def requests_in(packet, value_bytes):
    """The pulls, pushes, sets and gradients in a packet, one by one, as (origin, operation, key, position)."""
    at = 0
    while at < len(packet):
        size, count, origin, _, kind, operation = FRAME.unpack_from(packet, at)
        record = at + FRAME.size
        name = MESSAGE_KINDS[kind].name
        for _ in range(count if name in ("PULL", "PUSH", "SET", "GRADIENT") else 0):
            key, position = RECORD.unpack_from(packet, record)
            yield origin, operation, key, position
            record += (
                RECORD.size + (0 if name == "PULL" else int(value_bytes[key])) + TERMS_BYTES * (name == "GRADIENT")
            )
        at += size


def share_in_groups(ranks, sharing):
    """Let each so many neighbours be ranks of one host that share memory."""
    if sharing > 1:
        share_memory(ranks, sharing)


class Channels:
    """What ranks have sent and is not delivered yet, in order for each pair; the caller chooses what comes next."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.packets = {}  # (source, target): deque

    def __bool__(self):
        return bool(self.packets)

    def collect(self, source):
        """Take over what a rank has queued."""
        for target in range(len(self.ranks)):
            while (packet := self.ranks[source].take(target)) is not None:
                self.packets.setdefault((source, target), deque()).append(packet)

    def deliver(self, which):
        """Deliver the first packet of one of the channels that hold any; return the rank that received it."""
        source, target = pair = sorted(self.packets)[which % len(self.packets)]
        packet = self.packets[pair].popleft()
        if not self.packets[pair]:
            del self.packets[pair]
        self.ranks[target].deliver(source, packet)
        return target


class Network:
    """`sharing`: so many neighbouring ranks share memory; 1: messages only."""

    def __init__(
        self,
        size,
        num_keys,
        lengths,
        seed,
        dtype="float64",
        reorder=False,
        max_delay=10.0,
        replicated=(),
        sharing=1,
        **management,
    ):
        self.random = np.random.default_rng(seed)
        self.ranks = [
            VirtualRank(rank, size, num_keys, lengths, dtype, replicated, **management) for rank in range(size)
        ]
        share_in_groups(self.ranks, sharing)
        self.replicated = set(replicated) if size > sharing else set()
        self.size, self.num_keys, self.max_delay, self.reorder = size, num_keys, max_delay, reorder
        self.time = 0.0
        self.events = []  # (time, number, action)
        self.number = 0
        self.last_arrival = {}
        self.trace = []
        self.calls = []

    def after(self, delay, action):
        self.at(self.time + delay, action)

    def at(self, time, action):
        self.number += 1
        heapq.heappush(self.events, (time, self.number, action))

    def delay(self):
        """Mostly short, now and then long: long ones let whole chains of relocations pass by."""
        return self.random.exponential(1.0) if self.random.random() < 0.8 else self.random.uniform(0, self.max_delay)

    def collect(self, source):
        """Put what a rank has queued on its channels."""
        rank = self.ranks[source]
        for target in range(self.size):
            while (packet := rank.take(target)) is not None:
                arrival = self.time + self.delay()
                if not self.reorder:
                    arrival = max(arrival, self.last_arrival.get((source, target), 0.0))
                    self.last_arrival[source, target] = arrival
                self.at(arrival, lambda t=target, s=source, p=packet: self.deliver(s, t, p))

    def deliver(self, source, target, packet):
        self.trace.append((self.time, source, target, self.ranks[target].kinds_in(packet)))
        self.ranks[target].deliver(source, packet)
        self.collect(target)

    def run(self, most_events=1_000_000):
        while self.events:
            self.time, _, action = heapq.heappop(self.events)
            action()
            if self.replicated and self.random.random() < 0.2:
                self.tick(int(self.random.integers(self.size)))
            most_events -= 1
            assert most_events > 0, "the network does not come to rest"

    def tick(self, rank):
        """Tell a rank the time; a unit of ours is a millisecond."""
        self.ranks[rank].tick(1 + self.time / 1000)
        self.collect(rank)

    def worker(self, rank, program):
        """Run a generator of calls: it yields a call to wait for, or a number to sleep."""
        self.after(self.delay(), lambda: self.advance(rank, program, None))

    def advance(self, rank, program, waiting_for):
        if waiting_for is not None and not waiting_for.done:
            return self.after(0.5, lambda: self.advance(rank, program, waiting_for))
        try:
            waiting_for = next(program)
        except StopIteration:
            return None
        return self.after(self.delay() * 0.1, lambda: self.advance(rank, program, waiting_for))

    def issue(self, rank, call):
        """Let a call advance a key a step, with pauses in which others take their turns."""
        if not self.ranks[rank].step(call):
            self.after(self.delay() * 0.05, lambda: self.issue(rank, call))
        self.collect(rank)

    def start(self, rank, kind, keys, values=None, **options):
        call = self.ranks[rank].begin(kind, keys, values, **options)
        self.calls.append(call)  # messages name it by its address
        self.issue(rank, call)
        return call

    def owner(self, key):
        if key in self.replicated:
            return 0  # any rank has it
        owners = [rank.rank for rank in self.ranks if rank.state(key) == "owned"]
        assert len(owners) == 1, f"key {key} is owned by {owners}"
        return owners[0]

    def value(self, key):
        return self.ranks[self.owner(key)].value(key)

    def sync(self, rank):
        """Part of a program: bring a rank's updates to all replicas."""
        yield self.start(rank, "sync", [])

    def check_at_rest(self):
        """One owner per key, known to its home; nothing arriving, queued or in flight."""
        for key in self.replicated:
            self.check_replicas(key)
        for key in set(range(self.num_keys)) - self.replicated:
            owner = self.owner(key)
            home = [rank for rank in range(self.size) if self.ranks[(rank + 1) % self.size].route(key) == rank]
            states = [rank.state(key) for rank in self.ranks]
            assert states.count("absent") == self.size - 1, f"key {key}: {states}"
            assert self.size == 1 or home, f"key {key} has no home"
            assert owner in {rank.route(key) for rank in self.ranks}, f"the home of key {key} names another owner"
        for rank in self.ranks:
            assert rank.at_rest, f"rank {rank.rank} is not at rest"

    def check_replicas(self, key):
        """Equal on all ranks, to the last bit."""
        first = self.ranks[0].value(key).tobytes()
        for rank in self.ranks:
            assert rank.state(key) == "replicated"
            assert rank.base(key).tobytes() == rank.value(key).tobytes(), f"rank {rank.rank}"
            assert rank.value(key).tobytes() == first, f"key {key} differs at rank {rank.rank}"
