"""Floor 1. What is to be sent to one rank, in order: an unbounded queue of blocks of frames.

Appending never waits, so that it may be done while a key's latch is held. Records of one kind for
one operation join the last frame, frames join the last block: that is all the grouping there is.
A block that holds several frames is at most one packet.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from lapse.messaging._messages cimport frame_t, header_t

cdef enum:
    PACKET_BYTES = 262144   # at most, and between hosts, where each message is expensive
    # Of a frame with several records, and of a packet within a host: while one is under way the next is written and
    # the one before read. From 8 KB on MPICH takes more than twice the time for a byte.
    FRAME_BYTES = 7168
    MAX_SPARE_BLOCKS = 4


cdef struct block_t:
    block_t* next
    int64_t used
    int64_t capacity
    int64_t last_frame      # its offset, -1 before the first
    int64_t unsent          # packets of it that MPI has not finished sending


cdef inline char* block_data(block_t* block) noexcept nogil:
    return <char*>(block + 1)


cdef struct outbox_t:
    uint8_t latch
    bint closed             # after the last frame of the channel: what is appended is dropped
    block_t* head
    block_t* tail
    block_t* filling        # holds a frame that is not complete: it is not given out
    block_t* spare
    int32_t spares
    uint32_t* waiting       # how many outboxes of this rank hold something
    char padding[64]


cdef int append_record(outbox_t* outbox, header_t header, uint32_t key, uint32_t position, const char* value,
                       int64_t size) noexcept nogil
cdef int append_in_two(outbox_t* outbox, header_t header, uint32_t key, uint32_t position, const char* head,
                       int64_t head_size, const char* value, int64_t size) noexcept nogil
cdef int append_count(outbox_t* outbox, header_t header, uint32_t count, uint64_t amount) noexcept nogil
cdef frame_t* open_frame(outbox_t* outbox, header_t header, int64_t size) noexcept nogil
cdef void close_frame(outbox_t* outbox, frame_t* frame, uint32_t count, const char* end) noexcept nogil
cdef int append_last(outbox_t* outbox, header_t header, const char* text, int64_t size) noexcept nogil
cdef int64_t packet_size(block_t* block, int64_t sent, int64_t most) noexcept nogil
cdef block_t* take_block(outbox_t* outbox) noexcept nogil
cdef void give_block_back(outbox_t* outbox, block_t* block) noexcept nogil
cdef int64_t queued_bytes(outbox_t* outbox) noexcept nogil
cdef void free_blocks(outbox_t* outbox) noexcept nogil
