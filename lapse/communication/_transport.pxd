"""Floor 3. Packets over MPI: receives that are posted, sends that are under way, large frames that come in parts.

The only part of the runtime that talks to MPI. It calls nothing above itself: the engine asks it to send, and takes
packets and their frames from it. Errors of MPI and missing memory go to the failure of the server.

MPI's types stay in `_transport.pyx`, so that modules above compile without mpi.h.

Who enters: the thread that holds the engine. What others look at (`sends`, `traffic`, and of a peer the counts and
`has_ended`) is written whole.
"""

from libc.stdint cimport int32_t, int64_t

from lapse.communication._failure cimport Failure
from lapse.messaging._messages cimport frame_t, is_whole
from lapse.messaging._outbox cimport block_t, outbox_t

cdef enum:
    SENDS_PER_RANK = 8          # under way at a time


cdef struct traffic_t:
    int64_t messages_sent
    int64_t bytes_sent
    int64_t messages_received
    int64_t bytes_received


cdef struct assembly_t:
    # A frame that comes in several packets.
    char* data
    int64_t size        # 0: none is coming
    int64_t filled


cdef struct peer_t:
    block_t* block              # sent in part
    int64_t sent                # bytes of it
    int64_t packet_bytes        # how large a packet of several frames gets
    int32_t under_way           # sends that MPI has not finished
    int64_t packets_sent        # heartbeats among them; read by the watchdog
    int64_t packets_received
    int64_t bytes_sent
    int32_t has_ended           # its last message was received
    assembly_t assembly


cdef struct packet_t:
    # A packet that was received, without the frames that were taken from it.
    char* data
    int64_t size
    int32_t source


cdef struct requests_t          # MPI's requests and buffers; defined in _transport.pyx


cdef class Transport:
    cdef requests_t* requests
    cdef object communicator        # keeps MPI's handle
    cdef Failure failure
    cdef outbox_t* outboxes         # by destination; the failure keeps their memory
    cdef peer_t* peers              # by rank
    cdef int32_t rank
    cdef int32_t size
    cdef int32_t sends              # under way, to all ranks
    cdef int32_t max_sends
    cdef int32_t ended_peers
    cdef bint has_failed            # MPI has reported an error,
    cdef bint receives_are_lost     # when it should receive or test a receive,
    cdef bint sends_are_lost        # or test sends
    cdef traffic_t traffic

    cdef bint send_packet(self, int32_t destination) noexcept nogil
    cdef void send_heartbeat(self, int32_t destination) noexcept nogil
    cdef void collect_sent(self) noexcept nogil
    cdef bint next_packet(self, packet_t* packet) noexcept nogil
    cdef void count_received(self, int64_t messages, int64_t size) noexcept nogil
    cdef frame_t* assemble(self, packet_t* packet) noexcept nogil
    cdef bint is_next_part(self, packet_t* packet) noexcept nogil
    cdef void finish_packet(self, packet_t* packet) noexcept nogil
    cdef void note_end(self, int32_t source) noexcept nogil
    cdef void post_receives(self) noexcept nogil
    cdef void withdraw_receives(self) noexcept nogil
    cdef void abort_job(self) noexcept nogil
    cdef int check(self, int code) noexcept nogil


cdef inline bint can_send(Transport transport, int32_t destination) noexcept nogil:
    return transport.sends < transport.max_sends and transport.peers[destination].under_way < SENDS_PER_RANK


cdef inline bint has_parts(Transport transport) noexcept nogil:
    """Whether a block was sent in part."""
    cdef int32_t i
    for i in range(transport.size):
        if transport.peers[i].block != NULL:
            return True
    return False


cdef inline frame_t* next_frame(Transport transport, packet_t* packet) noexcept nogil:
    """Take the next whole frame from a packet; NULL if there is none. It is valid until the packet is finished."""
    cdef frame_t* frame = <frame_t*>packet.data
    if packet.size <= 0:
        return NULL
    if transport.peers[packet.source].assembly.size or not is_whole(packet.data, packet.size):
        return transport.assemble(packet)
    packet.data += frame.bytes
    packet.size -= frame.bytes
    return frame


cdef void abort_with(void* transport, const char* text) noexcept nogil
