"""Floor 2. The protocols of keys: what a rank does on each local request and on each message.

Relocation (`_relocation`) moves keys, replication (`_replication`) keeps hot ones on every rank. They are peers over
one state of a rank (`_rank`), and meet only here: a request or message is handed to the one that its key belongs to.
Which that is never changes while a server lives.

No MPI, no threads of its own, no clock: floor 3 drives it over MPI, the simulated network of the tests drives many
ranks in one process.

Worker threads call `ask`, `localize` and `ask_location`, one key per step; the thread that drives the communication
calls `handle_frame`, one thread of a rank at a time (the engine latch of floor 3). Lock order: engine, then the
latch of rounds, then one key's latch, then an outbox's latch or the latch of a slab, of the arrivals or of a list.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t

from lapse.messaging._messages cimport frame_t
from lapse.protocol._rank cimport rank_t
from lapse.protocol._relocation cimport ask_owner, localize_key, locate_key, relocation_t
from lapse.protocol._replication cimport ask_replica, replication_t
from lapse._store cimport Store, is_replicated
from lapse.base._types cimport key_t, operation_t


cdef struct protocol_t:
    rank_t rank
    relocation_t relocation
    replication_t replication


cdef inline int ask(protocol_t* protocol, operation_t* operation, key_t key, uint32_t position,
                    const char* given, int64_t* done, int64_t* parked) noexcept nogil:
    """Carry out, park, or send to the home one key of a pull, push or set.

    `done` grows by one if it is carried out at once, `parked` if it waits for an arrival. NO_MEMORY leaves nothing
    behind.
    """
    if is_replicated(&protocol.rank.store.entries[key]):
        return ask_replica(&protocol.replication, operation, key, position, given, done)
    return ask_owner(&protocol.relocation, operation, key, position, given, done, parked)


cdef inline int localize(protocol_t* protocol, operation_t* operation, key_t key, int64_t* done,
                         int64_t* declined) noexcept nogil:
    """Ask for one key, or wait for it if it was asked for already.

    `done` grows by one if it is here, `declined` if it is contended and stays where it is.
    """
    return localize_key(&protocol.relocation, operation, key, done, declined)


cdef inline int ask_location(protocol_t* protocol, operation_t* operation, key_t key, uint32_t position,
                             int64_t* done) noexcept nogil:
    """Ask the home of one key which rank owns it; the answer is an int32."""
    return locate_key(&protocol.rank, operation, key, position, done)


cdef int handle_frame(protocol_t* protocol, int32_t source, frame_t* frame) noexcept nogil


cdef class Protocol:
    cdef protocol_t c
    cdef Store store
