"""Floor 3. The doorbells of a host: waking the ranks that were sent something, if they sleep.

A wake-up is expensive, and a rank that polls needs none. So the engine only notes to whom it sent something, and the
bells are rung later, when the sender has nothing else to do.

Who enters: the thread that holds the engine notes what was sent and received; any thread rings.
"""

from libc.stdint cimport int32_t, uint32_t

from lapse.base._sync cimport doorbell_t, load32, put32, ring_doorbell, store32
from lapse.communication._transport cimport peer_t
from lapse.storage._host_peers cimport HostPeers


cdef struct sleeper_t:
    doorbell_t* doorbell    # NULL for a rank of another host: it cannot be woken
    uint32_t is_unrung      # something was sent since it was last heard of
    uint32_t looks          # its looks for messages when that was sent


cdef class Doorbells:
    cdef HostPeers host_peers       # keeps the doorbells' memory
    cdef doorbell_t* own
    cdef doorbell_t unshared        # the own one, if no memory is shared
    cdef sleeper_t* ranks
    cdef int32_t size
    cdef bint has_far_ranks         # ranks of other hosts
    cdef uint32_t are_unrung        # something was sent to a rank that may sleep
    cdef uint32_t own_looks         # see doorbell_t

    cdef void ring_peers(self, const peer_t* peers) noexcept nogil


cdef inline bint is_near(Doorbells bells, int32_t rank) noexcept nogil:
    """Whether a rank is on this host and can be woken."""
    return bells.ranks[rank].doorbell != NULL


cdef inline void note_sent(Doorbells bells, int32_t destination) noexcept nogil:
    cdef sleeper_t* sleeper = &bells.ranks[destination]
    if sleeper.doorbell == NULL:
        return
    put32(&sleeper.looks, load32(&sleeper.doorbell.looks))
    store32(&sleeper.is_unrung, 1)
    store32(&bells.are_unrung, 1)


cdef inline void note_received(Doorbells bells, int32_t source) noexcept nogil:
    store32(&bells.ranks[source].is_unrung, 0)


cdef inline void note_empty_look(Doorbells bells) noexcept nogil:
    """This rank looked for messages and found none."""
    bells.own_looks += 1
    store32(&bells.own.looks, bells.own_looks)


cdef inline void ring_own(Doorbells bells) noexcept nogil:
    """Wake the communication thread of this rank, or a worker that waits at its doorbell."""
    ring_doorbell(bells.own)
