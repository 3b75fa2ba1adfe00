"""Floor 1. What is to be sent to one rank, in order: an unbounded queue of blocks of frames."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lapse.messaging._messages cimport frame_t, goes_in_bulk, header_t, loose_u64, record_t, set_header
from lapse.base._sync cimport drop_latch, fetch_add32, peek_int, put_int, take_latch
from lapse.base._types cimport NO_MEMORY, OK

cdef enum:
    BLOCK_BYTES = PACKET_BYTES
    MAX_LAST_BYTES = 16384     # of an error's text


cdef block_t* new_block(int64_t capacity) noexcept nogil:
    cdef block_t* block = <block_t*>malloc(sizeof(block_t) + capacity)
    if block != NULL:
        block.capacity = capacity
        empty_block(block)
    return block


cdef inline void empty_block(block_t* block) noexcept nogil:
    block.next = NULL
    block.used = 0
    block.last_frame = -1
    block.unsent = 0


cdef void link_block(outbox_t* outbox, block_t* block) noexcept nogil:
    # under the outbox's latch
    if outbox.head == NULL:
        outbox.head = block
        fetch_add32(outbox.waiting, 1)
    else:
        outbox.tail.next = block
    outbox.tail = block


cdef block_t* block_with_room(outbox_t* outbox, int64_t size) noexcept nogil:
    # under the outbox's latch; size is at most BLOCK_BYTES
    cdef block_t* block = outbox.tail
    if outbox.head != NULL and block.used + size <= block.capacity and block.capacity == BLOCK_BYTES:
        return block
    if outbox.spare != NULL:
        block = outbox.spare
        outbox.spare = block.next
        put_int(&outbox.spares, outbox.spares - 1)
        empty_block(block)
    else:
        block = new_block(BLOCK_BYTES)
    if block != NULL:
        link_block(outbox, block)
    return block


cdef frame_t* start_frame(block_t* block, header_t header) noexcept nogil:
    cdef frame_t* frame = <frame_t*>(block_data(block) + block.used)
    frame.bytes = sizeof(frame_t)
    frame.count = 0
    set_header(frame, header)
    block.last_frame = block.used
    block.used += sizeof(frame_t)
    return frame


cdef frame_t* frame_to_join(outbox_t* outbox, header_t header, int64_t size) noexcept nogil:
    # under the outbox's latch; NULL if a new frame is needed
    cdef block_t* block = outbox.tail
    cdef frame_t* frame
    if outbox.head == NULL or block.last_frame < 0 or block.used + size > block.capacity:
        return NULL
    frame = <frame_t*>(block_data(block) + block.last_frame)
    if frame.word == header.word and frame.operation == header.operation and frame.bytes + size <= FRAME_BYTES:
        return frame
    return NULL


cdef inline int64_t padded(int64_t size) noexcept nogil:
    # Only text and mail have sizes that are no multiple of 4; they note their size in `key`.
    return (size + 3) & ~<int64_t>3


cdef void add_record(block_t* block, frame_t* frame, uint32_t key, uint32_t position, const char* head,
                     int64_t head_size, const char* value, int64_t size) noexcept nogil:
    cdef record_t* record = <record_t*>(block_data(block) + block.used)
    cdef char* at = <char*>(record + 1)
    record.key = key
    record.position = position
    if head_size:
        memcpy(at, head, head_size)
        at += head_size
    if value != NULL:
        memcpy(at, value, size)
    else:  # a value that was never written
        memset(at, 0, size)
    size += head_size
    block.used += sizeof(record_t) + padded(size)
    frame.bytes += <uint32_t>(sizeof(record_t) + padded(size))
    frame.count += 1


cdef int append_large(outbox_t* outbox, header_t header, uint32_t key, uint32_t position, const char* head,
                      int64_t head_size, const char* value, int64_t size) noexcept nogil:
    # A frame above the packet size has a block of its own, filled before the latch is taken.
    cdef block_t* block = new_block(sizeof(frame_t) + sizeof(record_t) + padded(head_size + size))
    if block == NULL:
        return NO_MEMORY
    add_record(block, start_frame(block, header), key, position, head, head_size, value, size)
    take_latch(&outbox.latch)
    if outbox.closed:
        free(block)
    else:
        link_block(outbox, block)
    drop_latch(&outbox.latch)
    return OK


cdef int append_latched(outbox_t* outbox, header_t header, uint32_t key, uint32_t position, const char* head,
                        int64_t head_size, const char* value, int64_t size) noexcept nogil:
    cdef int64_t needed = sizeof(record_t) + padded(head_size + size)
    cdef block_t* block = outbox.tail
    cdef frame_t* frame
    if outbox.closed:
        return OK
    frame = frame_to_join(outbox, header, needed)
    if frame == NULL:
        block = block_with_room(outbox, needed + sizeof(frame_t))
        if block == NULL:
            return NO_MEMORY
        frame = start_frame(block, header)
    add_record(block, frame, key, position, head, head_size, value, size)
    return OK


cdef int append_record(outbox_t* outbox, header_t header, uint32_t key, uint32_t position, const char* value,
                       int64_t size) noexcept nogil:
    return append_in_two(outbox, header, key, position, NULL, 0, value, size)


cdef int append_in_two(outbox_t* outbox, header_t header, uint32_t key, uint32_t position, const char* head,
                       int64_t head_size, const char* value, int64_t size) noexcept nogil:
    """A record whose value comes from two places."""
    cdef int status
    if <int64_t>(sizeof(frame_t) + sizeof(record_t)) + padded(head_size + size) > BLOCK_BYTES:
        return append_large(outbox, header, key, position, head, head_size, value, size)
    take_latch(&outbox.latch)
    status = append_latched(outbox, header, key, position, head, head_size, value, size)
    drop_latch(&outbox.latch)
    return status


cdef int append_count(outbox_t* outbox, header_t header, uint32_t count, uint64_t amount) noexcept nogil:
    cdef block_t* block
    cdef frame_t* frame
    cdef loose_u64* total
    cdef int status = OK
    take_latch(&outbox.latch)
    if not outbox.closed:
        frame = frame_to_join(outbox, header, 0)
        if frame == NULL:
            block = block_with_room(outbox, sizeof(frame_t) + sizeof(uint64_t))
            if block == NULL:
                status = NO_MEMORY
            else:
                frame = start_frame(block, header)
                frame.bytes += sizeof(uint64_t)
                block.used += sizeof(uint64_t)
                total = <loose_u64*>(frame + 1)
                total[0] = 0
        if frame != NULL:
            total = <loose_u64*>(frame + 1)
            total[0] += amount
            frame.count += count
    drop_latch(&outbox.latch)
    return status


cdef frame_t* open_frame(outbox_t* outbox, header_t header, int64_t size) noexcept nogil:
    """Begin a frame with room for `size` bytes of records, to be written without the latch; NULL if there is no room.

    One at a time for an outbox. Others may append meanwhile, behind it.
    """
    cdef block_t* block
    cdef frame_t* frame = NULL
    if <int64_t>sizeof(frame_t) + size > BLOCK_BYTES:
        return NULL
    take_latch(&outbox.latch)
    block = NULL if outbox.closed else block_with_room(outbox, sizeof(frame_t) + size)
    if block != NULL:
        frame = start_frame(block, header)
        frame.bytes += <uint32_t>size
        block.used += size
        outbox.filling = block
    drop_latch(&outbox.latch)
    return frame


cdef void close_frame(outbox_t* outbox, frame_t* frame, uint32_t count, const char* end) noexcept nogil:
    """The frame holds so many records, up to `end`; what is behind is given back, or else skipped by the receiver."""
    cdef block_t* block = outbox.filling
    cdef int64_t size = end - <char*>frame
    take_latch(&outbox.latch)
    frame.count = count
    if <frame_t*>(block_data(block) + block.last_frame) == frame:
        block.used -= frame.bytes - size
        frame.bytes = <uint32_t>size
    outbox.filling = NULL
    drop_latch(&outbox.latch)


cdef int append_last(outbox_t* outbox, header_t header, const char* text, int64_t size) noexcept nogil:
    cdef int status
    size = min(size, <int64_t>MAX_LAST_BYTES)
    take_latch(&outbox.latch)
    status = append_latched(outbox, header, <uint32_t>size, 0, NULL, 0, text, size)
    outbox.closed = True
    drop_latch(&outbox.latch)
    return status


cdef int64_t packet_size(block_t* block, int64_t sent, int64_t most) noexcept nogil:
    """How many bytes go in the next packet: whole frames up to `most`, or one, or a part of a large one."""
    cdef int64_t end = sent
    cdef frame_t* frame
    if block.used > PACKET_BYTES:
        return min(block.used - sent, <int64_t>PACKET_BYTES)
    while end < block.used:
        frame = <frame_t*>(block_data(block) + end)
        if end > sent and end + frame.bytes - sent > (PACKET_BYTES if goes_in_bulk(frame.kind) else most):
            break
        end += frame.bytes
    return end - sent


cdef block_t* take_block(outbox_t* outbox) noexcept nogil:
    cdef block_t* block
    take_latch(&outbox.latch)
    block = NULL if outbox.head == outbox.filling else outbox.head
    if block != NULL:
        outbox.head = block.next
        block.next = NULL
        if outbox.head == NULL:
            outbox.tail = NULL
            fetch_add32(outbox.waiting, <uint32_t>-1)
    drop_latch(&outbox.latch)
    return block


cdef void give_block_back(outbox_t* outbox, block_t* block) noexcept nogil:
    if block.capacity != BLOCK_BYTES or peek_int(&outbox.spares) >= MAX_SPARE_BLOCKS:
        free(block)
        return
    take_latch(&outbox.latch)
    block.next = outbox.spare
    outbox.spare = block
    put_int(&outbox.spares, outbox.spares + 1)
    drop_latch(&outbox.latch)


cdef int64_t queued_bytes(outbox_t* outbox) noexcept nogil:
    cdef block_t* block
    cdef int64_t total = 0
    take_latch(&outbox.latch)
    block = outbox.head
    while block != NULL:
        total += block.used
        block = block.next
    drop_latch(&outbox.latch)
    return total


cdef void free_blocks(outbox_t* outbox) noexcept nogil:
    cdef block_t* block = take_block(outbox)
    while block != NULL:
        free(block)
        block = take_block(outbox)
    while outbox.spare != NULL:
        block = outbox.spare
        outbox.spare = block.next
        free(block)
