"""Bytes that are no message of Lapse, or a damaged one: a rank names them and their sender, or lives with them.

A crash would end the whole run of tests, which is how it is noticed here.
"""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lapse.messaging._kinds import FRAME_BYTES, MESSAGE_KINDS, RECORD_BYTES
from lapse.testing._virtual_rank import VirtualRank

from simulated_network import FRAME, Channels, share_in_groups

NUM_KEYS, SIZE = 6, 3
LENGTHS = {"one length": 2, "several lengths": np.array([1, 2, 3, 1, 2, 3])}
EXAMPLES = 300

#: Numbers to put into fields: limits, and what is just beyond them.
ODD = st.sampled_from(
    [0, 1, 2, 3, 5, 6, 7, 8, 24, 31, 32, 33, 255, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1]
)
#: Of a frame's header, then of its first two records: offset and size.
FIELDS = [(0, 4), (4, 4), (8, 2), (10, 2), (12, 4), (16, 4), (20, 4), (24, 4), (28, 4), (32, 4), (36, 4), (40, 8)]

DAMAGES = st.lists(
    st.one_of(
        st.tuples(st.just("field"), st.sampled_from(FIELDS), ODD),
        st.tuples(st.just("bits"), st.integers(0, 400), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, 200), st.none()),
        st.tuples(st.just("more"), st.binary(min_size=1, max_size=60), st.none()),
    ),
    min_size=1,
    max_size=3,
)


def damaged(packet, damages):
    data = bytearray(packet)
    for kind, where, what in damages:
        if kind == "field" and where[0] + where[1] <= len(data):
            data[where[0] : sum(where)] = (what % 2 ** (8 * where[1])).to_bytes(where[1], "little")
        elif kind == "bits" and data:
            data[where % len(data)] ^= what
        elif kind == "cut":
            del data[where % (len(data) + 1) :]
        elif kind == "more":
            data += where
    return bytes(data)


class Ranks:
    """Ranks with calls under way."""

    def __init__(self, lengths, sharing=1):
        self.lengths = np.broadcast_to(lengths, NUM_KEYS)
        self.ranks = [VirtualRank(rank, SIZE, NUM_KEYS, lengths, replicated=[4, 5]) for rank in range(SIZE)]
        share_in_groups(self.ranks, sharing)
        self.channels = Channels(self.ranks)
        self.calls = []
        for rank in range(SIZE):
            for kind in ("push", "pull", "localize", "locate", "set", "push"):
                self.begin(rank, kind, [rank, 3, 2])
            self.begin(rank, "push", [4, 5])
            self.begin(rank, "set", [4 + rank % 2])
            self.ranks[rank].ask_in_vain(1, 2)
            self.begin(rank, "localize", [1])
            self.begin(rank, "pull", [0, 1, 2, 3])
            self.begin(rank, "sync", [])

    def begin(self, rank, kind, keys):
        values = np.ones(int(self.lengths[keys].sum())) if kind in ("push", "set") else None
        call = self.ranks[rank].begin(kind, keys, values)
        self.calls.append(call)  # messages name it by its address
        while not self.ranks[rank].step(call):
            pass
        self.channels.collect(rank)

    def go_on(self, packets):
        """Deliver so many packets; returns the first one that comes then: source, target, bytes."""
        while packets and self.channels:
            packets -= 1
            self.channels.collect(self.channels.deliver(packets))
        if not self.channels:
            return None
        source, target = pair = sorted(self.channels.packets)[packets % len(self.channels.packets)]
        return source, target, self.channels.packets[pair].popleft()

    def deliver(self, source, target, packet):
        """Deliver bytes: a rank lives with them, or names the sender."""
        try:
            self.ranks[target].deliver(source, packet)
        except AssertionError as error:
            assert f"message from rank {source}: " in str(error)
            return str(error)
        self.channels.collect(target)
        return None

    def deliver_rest(self):
        """Deliver what is under way, for its damage to have its effects."""
        for _ in range(500):
            for (source, target), packets in sorted(self.channels.packets.items()):
                if packets and target != source:
                    self.deliver(source, target, packets.popleft())


@pytest.mark.deadline(120)
@pytest.mark.parametrize("sharing", [1, 2])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_damaged_packet_is_named_or_lived_with(lengths, sharing):
    named = []

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(packets=st.integers(0, 60), damages=DAMAGES)
    def deliver_one(packets, damages):
        ranks = Ranks(LENGTHS[lengths], sharing)
        found = ranks.go_on(packets)
        if found is not None:
            source, target, packet = found
            named.append(ranks.deliver(source, target, damaged(packet, damages)))
            ranks.deliver_rest()

    deliver_one()
    texts = [text for text in named if text]
    assert len(texts) > len(named) / 3
    assert any("cut off" in text for text in texts)


@pytest.mark.deadline(120)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_random_bytes_of_every_kind_are_named_or_lived_with(lengths):
    kinds = st.sampled_from([*sorted(MESSAGE_KINDS), 0, 6, 63, 64, 2**31])

    @settings(max_examples=2 * EXAMPLES, deadline=None)
    @given(
        kind=kinds,
        count=ODD,
        ranks_named=st.tuples(ODD, ODD),
        operation=st.integers(0, 2**64 - 1),
        rest=st.binary(max_size=90),
    )
    def deliver_one(kind, count, ranks_named, operation, rest):
        ranks = Ranks(LENGTHS[lengths])
        header = FRAME.pack(
            FRAME_BYTES + len(rest), count, ranks_named[0] % 2**16, ranks_named[1] % 2**16, kind, operation
        )
        ranks.deliver(1, 0, header + rest)

    deliver_one()


@pytest.mark.parametrize(
    "kind, origin, count, rest, wrong",
    [
        ("PULL", 1, 2, struct.pack("<2I", 0, 0), "its records are cut off"),
        ("PUSH", 1, 1, struct.pack("<2I", 0, 0), "its records are cut off"),
        ("TRANSFER", 1, 1, struct.pack("<2Id", 0, 0, 1.0), "its records are cut off"),
        ("PULL", 1, 1, struct.pack("<2I", NUM_KEYS, 0), "it names a key or a position that does not exist"),
        ("SUM", 1, 1, struct.pack("<2I2d", 0, 0, 1, 1), "it names a key .* not in this way"),
        ("PULL", 1, 1, struct.pack("<2I", 4, 0), "a pull of a replicated key"),
        ("PUSH", SIZE, 1, struct.pack("<2I2d", 0, 0, 1, 1), "it names a rank that does not exist"),
        ("PULL_REPLY", 0, 1, struct.pack("<2I2d", 0, 0, 1, 1), "it names an operation that does not wait for it"),
        ("ACK", 0, 1, struct.pack("<Q", 0), "it names an operation that does not wait for it"),
        ("ACK", 0, 1, b"", "its credits are cut off"),
        ("APPLIED", 0, 1, struct.pack("<Q", 0), "it names a set that does not wait for it"),
        ("HAND_OVER", 0, 1, struct.pack("<2I", 0, 0), "it names the rank itself"),
        ("ROUND_END", 1, 1, b"", "its record is cut off"),
        ("SUMS_END", 1, 1, struct.pack("<2I", 0, 0), "no round is under way"),
        ("MAIL", 1, 1, struct.pack("<2I", 9, 0) + b"12345678", "its text is cut off"),
        ("FAILURE", 1, 1, struct.pack("<I", 9), "its text is cut off"),
    ],
)
def test_what_is_wrong_is_said(kind, origin, count, rest, wrong):
    rank = VirtualRank(0, SIZE, NUM_KEYS, 2, replicated=[4, 5])
    number = next(number for number, each in MESSAGE_KINDS.items() if each.name == kind)
    frame = FRAME.pack(FRAME_BYTES + len(rest), count, origin, 0, number, 0) + rest
    with pytest.raises(AssertionError, match=f"message from rank 2: .*{wrong}.*\\(.*{kind}|{wrong}"):
        rank.deliver(2, frame)


def test_an_acknowledgement_that_comes_again_is_named():
    """Also when the next set has the memory of the one that it names."""
    ranks = [VirtualRank(rank, 2, NUM_KEYS, 2, replicated=[4, 5]) for rank in range(2)]
    home = ranks[0].route(4)

    def set_key():
        call = ranks[home].begin("set", [4], np.ones(2))
        ranks[home].step(call)
        return call, ranks[home].take(1 - home)

    first, replace = set_key()
    ranks[1 - home].deliver(home, replace)
    applied = ranks[1 - home].take(home)
    ranks[home].deliver(1 - home, applied)
    second, _ = set_key()
    assert first.done and not second.done
    with pytest.raises(AssertionError, match=f"message from rank {1 - home}: it names a set that does not wait"):
        ranks[home].deliver(1 - home, applied)
    assert not second.done


@pytest.mark.parametrize("size", [1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + RECORD_BYTES])
def test_a_packet_that_ends_within_a_frame_is_named(size):
    frame = FRAME.pack(FRAME_BYTES + 16, 2, 1, 0, 1, 0) + bytes(16)
    with pytest.raises(AssertionError, match="message from rank 1: "):
        VirtualRank(0, SIZE, NUM_KEYS, 2).deliver(1, frame[:size])
