"""A rank of the relocation protocol without MPI, threads or clock, driven from Python.

For the simulated network of the tests, and to watch the protocol: calls advance one key per step,
messages are bytes that the caller carries from rank to rank in an order of its choice.
"""

from libc.math cimport NAN
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

from lapse.messaging._kinds import MESSAGE_KINDS
from lapse.protocol._replica_memory import replica_bytes, replicate

from lapse.messaging._messages cimport frame_t, is_whole
from lapse.messaging._outbox cimport block_data, block_t, give_block_back, take_block
from lapse.messaging._operations cimport complete
from lapse.protocol._lending cimport lend_keys, returned_t, take_keys_back
from lapse.protocol._protocol cimport Protocol, ask, ask_location, handle_frame, localize
from lapse.protocol._validation cimport check_frame
from lapse.protocol._contention cimport memory_of, note_remote_use, wasted_before
from lapse.storage._replicas cimport base_of, replica_t
from lapse.protocol._rounds cimport note_pushes, request_sync, runs_ahead, tick
from lapse.storage._segment cimport Segment
from lapse._store cimport (ABSENT, ARRIVING, OWNED, REPLICATED, Store, access_host_peer, entry_t, is_owned,
                           is_reachable, is_replicated, read_reachable)
from lapse.storage._slabs cimport NO_SLOT
from lapse.base._sync cimport fetch_add, load
from lapse.base._types cimport (FAILED, GRADIENT, LOCALIZE, LOCATE, NO_MEMORY, OK, PULL, PUSH, SET, operation_t,
                                worker_slot_t, terms_of)

cdef enum:
    SYNC = 64   # of the calls here only: a worker waits for rounds, not for an operation

KINDS = {"pull": PULL, "push": PUSH, "set": SET, "gradient": GRADIENT, "localize": LOCALIZE, "locate": LOCATE,
         "sync": SYNC}
STATES = {ABSENT: "absent", OWNED: "owned", ARRIVING: "arriving", REPLICATED: "replicated"}


cdef class Call:
    """One call on several keys that advances a key a step.

    Attributes
    ----------
    kind : str
    keys : int64 array
    issued : int
        Keys that were asked for so far.
    """

    cdef VirtualRank rank       # of a sync
    cdef int64_t last_round     # that a sync waits for
    cdef operation_t c
    cdef worker_slot_t worker_slot
    cdef readonly str kind
    cdef readonly object keys
    cdef readonly object values
    cdef object lengths_before
    cdef readonly int issued

    @property
    def done(self):
        """Whether the call has taken effect for all keys."""
        if self.issued < len(self.keys) or load(&self.c.pending):
            return False
        return self.c.kind != SYNC or load(&self.rank.protocol.c.replication.rounds.common.summed) >= self.last_round

    def __dealloc__(self):
        free(self.c.offsets)


cdef inline char* place_of(Call call, uint32_t position) noexcept nogil:
    return call.c.out + call.c.offsets[position]


def share_memory(ranks, int sharing):
    """Let each so many neighbours among all virtual ranks be ranks of one host, before they do anything."""
    cdef VirtualRank rank
    leaders = [place - place % sharing for place in range(len(ranks))]
    for first in range(0, len(ranks), sharing):
        join_memory(ranks[first : first + sharing])
    for rank in ranks:
        leader = <VirtualRank>ranks[leaders[rank.rank]]
        if leader is rank and rank.rank + 1 < rank.size and leaders[rank.rank + 1] == rank.rank:
            rank.segment = Segment(replica_bytes(rank.store, rank.replicated, rank.in_place))
        rank.make_protocol(leaders, (<VirtualRank>leader).segment)


def join_memory(ranks):
    for rank in ranks:
        (<VirtualRank>rank).make_store()
    if len(ranks) == 1:
        return
    hints = Segment((<VirtualRank>ranks[0]).store.hint_bytes)
    segments = {place: (<VirtualRank>rank).store.segment for place, rank in enumerate(ranks)}
    for place, rank in enumerate(ranks):
        (<VirtualRank>rank).store.join(place, segments, hints)


cdef class VirtualRank:
    """One rank of the protocol.

    Parameters
    ----------
    rank, size, num_keys : int
    lengths : int or int64 array
    dtype : numpy.dtype
    replicated : sorted sequence of int
    optimizer : dict, optional
        Parameters of that of all keys, as `plan_slabs` takes them.
    in_place : bool
        Whether replicas are lent.
    **management
        As `Protocol.manage_replicas` takes it.
    """

    cdef Store store
    cdef Protocol protocol
    cdef Segment segment            # of a leader: the replicas that ranks of a host have in common
    cdef object arguments           # of the store
    cdef object replicated
    cdef object management
    cdef bint in_place
    cdef readonly int rank
    cdef readonly int size
    cdef readonly int64_t shared    # steps that were served at a rank that shares memory
    cdef readonly int64_t declined  # localizes of contended keys that stay where they are

    def __init__(self, rank, size, num_keys, lengths, dtype="float64", replicated=(), levels=None, optimizer=None,
                 in_place=False, **management):
        self.arguments = num_keys, lengths, dtype, rank, size, False, [(num_keys, optimizer)]
        self.replicated = np.array(replicated, dtype=np.int64)
        if levels is not None:
            management["levels"] = np.array(levels, dtype=np.uint8)
        self.management = management
        self.in_place = in_place
        self.rank = rank
        self.size = size
        self.make_store()
        self.make_protocol(range(size), None)

    cdef make_store(self):
        self.store = Store(*self.arguments)

    cdef make_protocol(self, leaders, Segment segment):
        replicate(self.store, self.replicated, leaders, segment, self.in_place)
        self.protocol = Protocol(self.store)
        self.protocol.manage_replicas(**self.management)

    def begin(self, kind, keys, values=None, double rate=NAN, uint32_t step=0):
        """A call that has asked for nothing yet.

        Parameters
        ----------
        kind : {"pull", "push", "set", "gradient", "localize", "locate", "sync"}
            A sync takes no keys.
        keys : sequence of int
        values : array, optional
            For pushes, sets and gradients: 1-D, one value after another.
        rate : float
            Of gradients; NaN: the optimizer's own.
        step : int
            Of gradients, as of `Worker.apply_gradients`; 0: none is given.

        Returns
        -------
        Call
        """
        cdef Call call = Call.__new__(Call)
        cdef int64_t[::1] ends
        call.kind = kind = str(kind)
        call.keys = np.array(keys if kind != "sync" else [0], dtype=np.int64)
        call.rank = self
        lengths = self.store.value_length(call.keys)
        if kind == "locate":
            call.values = np.full(len(call.keys), -1, dtype=np.int32)
        elif kind == "pull":
            call.values = np.full(int(lengths.sum()), np.nan, dtype=self.store.dtype)
        elif values is not None:
            call.values = np.array(values, dtype=self.store.dtype).reshape(-1)
        call.lengths_before = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        call.c.kind = KINDS[kind]
        call.c.terms.weight, call.c.terms.step = rate, step
        call.c.worker_slot = &call.worker_slot
        call.c.count = len(call.keys)
        if kind == "pull":
            ends = call.lengths_before * self.store.dtype.itemsize
            call.c.offsets = <int64_t*>calloc(len(ends), sizeof(int64_t))
            memcpy(call.c.offsets, &ends[0], len(ends) * sizeof(int64_t))
            call.c.offsets_have_ends = True
        if kind in ("pull", "locate") and len(call.keys):
            call.c.out = <char*><size_t>call.values.ctypes.data
        return call

    def step(self, Call call):
        """Ask for the call's next key; whether that was the last.

        Like the steps of a worker, this runs without the GIL, beside those of other threads.
        """
        cdef int64_t done = 0, declined = 0, parked = 0, key
        cdef int status = OK
        cdef bint to_replica
        cdef char* given = NULL
        cdef uint32_t position = call.issued
        if call.issued < len(call.keys):
            key = call.keys[position]
            if call.kind in ("push", "set", "gradient"):
                given = <char*><size_t>(call.values.ctypes.data
                                        + int(call.lengths_before[position]) * self.store.dtype.itemsize)
            to_replica = is_replicated(&self.store.c.entries[key])
            fetch_add(&call.c.pending, 1)
            with nogil:
                if call.c.kind == SYNC:
                    status = self.sync(call)
                elif call.c.kind == LOCALIZE and is_reachable(&self.store.c, key):
                    done = 1
                elif call.c.kind == LOCALIZE:
                    status = localize(&self.protocol.c, &call.c, key, &done, &declined)
                elif call.c.kind == LOCATE:
                    status = ask_location(&self.protocol.c, &call.c, key, position, &done)
                elif access_host_peer(&self.store.c, call.c.kind, key,
                                    given if call.c.kind != PULL else place_of(call, position),
                                    call.c.terms if call.c.kind == GRADIENT else terms_of(1)):
                    done = 1
                    fetch_add(&self.shared, not to_replica)
                else:
                    status = ask(&self.protocol.c, &call.c, key, position, given, &done, &parked)
                if (call.c.kind == PUSH or call.c.kind == GRADIENT) and status == OK and to_replica:
                    status = note_pushes(&self.protocol.c.replication.rounds, 1)
                complete(&call.c, done + declined)
            self.declined += declined
            if status != OK:
                raise MemoryError("no memory for a step of the protocol")
            call.issued += 1
        return call.issued == len(call.keys)

    cdef int sync(self, Call call) noexcept nogil:
        complete(&call.c, 1)
        if self.store.c.replicas.count == 0:
            return OK
        return request_sync(&self.protocol.c.replication.rounds, &call.last_round)

    def borrow(self, int64_t key, bint shared=False):
        """The value of a key, as an array in place, which the rank lends until `give_back`; None if it does not."""
        cdef void* value
        if lend_keys(&self.protocol.c.relocation, shared, &key, 1, &value):
            return None
        size = int(self.store.value_length(key)) * self.store.dtype.itemsize
        return np.frombuffer(<char[:size]><char*>value, dtype=self.store.dtype)

    def give_back(self, int64_t key, float weight=1):
        """Return a borrowed key; the weight counts for a replica."""
        cdef void* value = <void*>1
        cdef int64_t done
        cdef returned_t returned
        cdef int status
        with nogil:
            status = take_keys_back(&self.protocol.c.relocation, &key, 1, &weight, &value, &done, &returned)
            if status == OK and returned.replicated:
                status = note_pushes(&self.protocol.c.replication.rounds, 1)
        if status == FAILED:
            raise ValueError(f"key {key} is not lent")
        if status != OK:
            raise MemoryError("no memory for a step of the protocol")

    @property
    def runs_ahead(self):
        """Whether workers would have to wait before the next push."""
        return runs_ahead(&self.protocol.c.replication.rounds)

    def tick(self, double time):
        """Tell the time, in seconds: rounds that are due begin."""
        cdef int64_t nanoseconds = <int64_t>(time * 1e9)
        cdef int status
        with nogil:
            status = tick(&self.protocol.c.replication.rounds, nanoseconds)
        if status != OK:
            raise MemoryError("no memory for a round of replicas")

    def ask_in_vain(self, int64_t key, int times):
        """Let an absent key be one that was relocated here in vain so many times in a row; whether it is absent."""
        cdef entry_t* entry = &self.store.c.entries[key]
        cdef int _i
        if entry.state != ABSENT:
            return False
        entry.slot = NO_SLOT
        for _i in range(times):
            entry.slot = memory_of(wasted_before(entry.slot), True)
            note_remote_use(&entry.slot)
        return True

    def enter_setup(self, inside):
        """Begin or end the initialization phase."""
        self.protocol.enter_setup(inside)

    def take(self, int destination):
        """The next packet for a rank, as bytes; None if nothing is queued."""
        cdef block_t* block = take_block(&self.protocol.c.rank.outboxes[destination])
        if block == NULL:
            return None
        data = (<char*>block_data(block))[:block.used]
        give_block_back(&self.protocol.c.rank.outboxes[destination], block)
        return data

    def deliver(self, int source, bytes packet):
        """Handle all messages of a packet. One thread of a rank at a time.

        Raises
        ------
        AssertionError
            For what the protocol excludes.
        """
        cdef char* data = packet
        cdef int64_t left = len(packet)
        cdef frame_t* frame
        cdef int status
        while left > 0:
            if not is_whole(data, left):
                raise AssertionError(f"message from rank {source}: {left} bytes, which are no whole frame")
            frame = <frame_t*>data
            with nogil:
                status = check_frame(&self.protocol.c, source, frame)
                if status == OK:
                    status = handle_frame(&self.protocol.c, source, frame)
            if status == NO_MEMORY:
                raise MemoryError("no memory for a message of the protocol")
            if status != OK:
                raise AssertionError((<bytes>self.protocol.c.rank.error).decode())
            data += frame.bytes
            left -= frame.bytes

    def kinds_in(self, bytes packet):
        """The kinds of messages in a packet, as [(kind, count), ...]."""
        cdef char* data = packet
        cdef int64_t left = len(packet)
        cdef frame_t* frame
        kinds = []
        while left > 0:
            frame = <frame_t*>data
            kinds.append((MESSAGE_KINDS[frame.kind].name, frame.count))
            data += frame.bytes
            left -= frame.bytes
        return kinds

    def state(self, int64_t key):
        """What this rank knows of a key: "absent", "owned", "arriving", "replicated", or "lent"."""
        if is_owned(&self.store.c.entries[key]):
            return "owned"
        return STATES.get(self.store.c.entries[key].state, "lent")

    def route(self, int64_t key):
        """At the key's home the last rank that asked for it, elsewhere the home."""
        return self.store.c.entries[key].route

    def value(self, int64_t key):
        """A copy of the value of a key that is owned or replicated here."""
        value = np.empty(int(self.store.value_length(key)), dtype=self.store.dtype)
        cdef char* out = <char*><size_t>value.ctypes.data
        assert read_reachable(&self.store.c, key, out), f"key {key} is {self.state(key)} at rank {self.rank}"
        return value

    def base(self, int64_t key):
        """A copy of what all ranks have agreed on about a replicated key."""
        assert self.state(key) == "replicated"
        cdef replica_t* replica = &self.store.c.replicas.all[self.store.c.entries[key].slot]
        return np.frombuffer((<char*>base_of(replica))[:replica.bytes], dtype=self.store.dtype)

    @property
    def replica_counters(self):
        """Rounds with changes, and values sent about replicas."""
        return self.protocol.replica_counters

    @property
    def at_rest(self):
        """Whether nothing is arriving, queued or in flight."""
        return self.protocol.at_rest

    @property
    def relocations(self):
        """The counters of relocation, by name."""
        return self.protocol.relocations
