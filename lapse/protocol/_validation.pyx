"""Floor 2. Whether a message is what it says, looked at before anything in it is used."""

from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdio cimport snprintf

from lapse.messaging._messages cimport (ACK, APPLIED, BYE, CONTENDED, DELTA, FAILURE, GRADIENT_DELTA, HAND_OVER,
                                        HEARTBEAT, LEAVING, LOCATE_REPLY, MAIL, PULL_REPLY, REPLACE, ROUND_END,
                                        ROUND_NEWS, SUM, SUMS_END, TRANSFER, TRANSFER_ZERO, address_in, credits_of,
                                        frame_t, is_name_of_address, name_of_kind, positions_of, record_t,
                                        size_of_text, sum_head_t)
from lapse.protocol._pending_acks cimport find_pending_acks, pending_acks_t
from lapse.protocol._rank cimport ERROR_SIZE, rank_t
from lapse.protocol._replication cimport replication_t
from lapse.protocol._rounds cimport delta_bytes, replica_at, sum_bytes
from lapse.storage._replicas cimport replica_t
from lapse._store cimport REPLICATED, change_bytes, entry_t, slab_for, store_t
from lapse.storage._slabs cimport slab_t
from lapse.base._sync cimport load
from lapse.base._types cimport FAILED, GRADIENT, LOCALIZE, LOCATE, OK, PULL, PUSH, SET, operation_t

cdef const char* RIGHT = NULL
cdef const char* CUT_OFF = "its records are cut off"
cdef const char* NO_SUCH_KEY = "it names a key or a position that does not exist, or not in this way"
cdef const char* NOT_AWAITED = "it names an operation that does not wait for it"
cdef int64_t ANY_POSITION = <int64_t>1 << 32

cdef enum:
    NO_SIZE = -1    # what lies behind a record cannot be known, because the record is not right


cdef int check_frame(protocol_t* protocol, int32_t source, const frame_t* frame) noexcept nogil:
    """Whether a frame, all of whose bytes are here, holds what its header says.

    Afterwards ranks and keys exist, records and values end within the frame, the operation that is answered is one of
    this rank's and has that many positions left. FAILED: the reason is in `rank.error`.
    """
    cdef rank_t* state = &protocol.rank
    cdef const char* wrong = NULL
    if frame.origin >= state.size or frame.credited_to >= state.size:
        wrong = "it names a rank that does not exist"
    elif frame.kind == PULL or frame.kind == PUSH or frame.kind == SET or frame.kind == GRADIENT:
        wrong = request_error(protocol, frame)
    elif frame.kind == PULL_REPLY or frame.kind == LOCATE_REPLY:
        wrong = reply_error(protocol, frame)
    elif frame.kind == ACK:
        wrong = ack_error(state, frame)
    elif frame.kind == APPLIED:
        wrong = applied_error(&protocol.replication, frame)
    elif frame.kind == LOCALIZE or frame.kind == HAND_OVER or frame.kind == LOCATE or frame.kind == CONTENDED:
        wrong = records_error(protocol, frame, ANY_POSITION)
        if wrong == NULL and frame.origin == state.rank:
            wrong = "it names the rank itself as the one that asks"
    elif frame.kind == TRANSFER or frame.kind == TRANSFER_ZERO:
        wrong = records_error(protocol, frame, ANY_POSITION)
    elif is_about_replicas(frame.kind):
        wrong = records_error(protocol, frame, ANY_POSITION)
    elif frame.kind == ROUND_END or frame.kind == SUMS_END or frame.kind == ROUND_NEWS:
        wrong = round_error(&protocol.replication, frame)
    elif frame.kind == MAIL or frame.kind == FAILURE or frame.kind == BYE:
        wrong = text_error(frame)
    elif frame.kind != LEAVING and frame.kind != HEARTBEAT:
        wrong = "there is no such kind"
    if wrong == NULL:
        return OK
    snprintf(state.error, ERROR_SIZE, "protocol error at rank %d, message from rank %d: %s (%s, kind %u, of %u records "
             "and %u bytes)", state.rank, source, wrong, name_of_kind(frame.kind), frame.kind, frame.count, frame.bytes)
    return FAILED


# The records of a frame -------------------------------------------------------------------------------------------

cdef inline int64_t room_in(const frame_t* frame) noexcept nogil:
    return <int64_t>frame.bytes - <int64_t>sizeof(frame_t)


cdef inline const record_t* first_record(const frame_t* frame) noexcept nogil:
    return <const record_t*>(frame + 1)


cdef inline bint is_about_replicas(uint32_t kind) noexcept nogil:
    return kind == DELTA or kind == GRADIENT_DELTA or kind == SUM or kind == REPLACE


cdef inline int64_t bytes_behind(protocol_t* protocol, uint32_t kind, int64_t key) noexcept nogil:
    """What follows the record of a key that exists."""
    cdef const store_t* store = protocol.rank.store
    cdef const slab_t* slab = slab_for(store, key)
    if kind == PUSH or kind == SET or kind == PULL_REPLY:
        return <int64_t>slab.row_bytes
    if kind == GRADIENT:
        return <int64_t>change_bytes(store, GRADIENT, key) if slab.optimizer != NULL else NO_SIZE
    if kind == TRANSFER:
        return <int64_t>slab.held_bytes
    if kind == LOCATE_REPLY:
        return sizeof(int32_t)
    if is_about_replicas(kind):
        return bytes_of_replica(&protocol.replication, kind, key)
    return 0


cdef int64_t bytes_of_replica(const replication_t* replication, uint32_t kind, int64_t key) noexcept nogil:
    cdef const store_t* store = replication.rounds.state.store
    cdef const entry_t* entry = &store.entries[key]
    cdef const replica_t* replica
    if entry.state != REPLICATED or not replication.rounds.is_leader:
        return NO_SIZE
    replica = replica_at(store, entry.slot)
    if kind == DELTA:
        return <int64_t>delta_bytes(&replication.rounds, replica)
    if kind == GRADIENT_DELTA:
        return <int64_t>(sizeof(sum_head_t) + replica.bytes) if slab_for(store, key).optimizer != NULL else NO_SIZE
    return <int64_t>(sum_bytes(&replication.rounds, replica) if kind == SUM else replica.bytes)


cdef const char* records_error(protocol_t* protocol, const frame_t* frame, int64_t positions) noexcept nogil:
    """Whether keys exist, positions are below a number, and all records and values end within the frame."""
    cdef const store_t* store = protocol.rank.store
    cdef const char* at = <const char*>first_record(frame)
    cdef const char* end
    cdef int64_t left = room_in(frame), num_keys = store.num_keys, stride, size, key
    cdef uint32_t _i, count = frame.count
    cdef bint are_wrong = False
    if count == 0:
        return NULL
    if store.slab_of == NULL:  # each has as much behind it as the first
        if left < <int64_t>sizeof(record_t):
            return CUT_OFF
        key = (<const record_t*>at).key
        size = bytes_behind(protocol, frame.kind, key) if key < num_keys else NO_SIZE
        if size < 0:
            return NO_SUCH_KEY
        stride = <int64_t>sizeof(record_t) + size
        if stride * count > left:
            return CUT_OFF
        end = at + stride * count
        while at < end:
            are_wrong |= (<const record_t*>at).key >= num_keys or (<const record_t*>at).position >= positions
            at += stride
        return NO_SUCH_KEY if are_wrong else RIGHT
    for _i in range(count):
        if left < <int64_t>sizeof(record_t):
            return CUT_OFF
        key = (<const record_t*>at).key
        size = bytes_behind(protocol, frame.kind, key) if key < store.num_keys else NO_SIZE
        if size < 0 or (<const record_t*>at).position >= positions:
            return NO_SUCH_KEY
        stride = <int64_t>sizeof(record_t) + size
        if stride > left:
            return CUT_OFF
        at += stride
        left -= stride
    return NULL


# Operations of this rank ------------------------------------------------------------------------------------------

cdef inline const operation_t* operation_of(const frame_t* frame) noexcept nogil:
    """The operation that a frame names; NULL if that is none."""
    return <const operation_t*>address_in(frame.operation) if is_name_of_address(frame.operation) else NULL


cdef inline bint is_awaited(const operation_t* operation, int64_t positions) noexcept nogil:
    return operation != NULL and 0 < positions <= load(&(<operation_t*>operation).pending)


cdef inline bint has_room(const operation_t* operation, const record_t* record, int64_t size) noexcept nogil:
    """Whether a value fits at a position that exists."""
    return (operation.offsets == NULL or not operation.offsets_have_ends or operation.kind != PULL
            or size <= operation.offsets[record.position + 1] - operation.offsets[record.position])


cdef const char* positions_error(protocol_t* protocol, const frame_t* frame,
                                 const operation_t* operation) noexcept nogil:
    """Whether records are right, name positions of an operation of this rank, and their values have room there."""
    cdef const char* wrong = records_error(protocol, frame, operation.count)
    cdef const store_t* store = protocol.rank.store
    cdef const char* at = <const char*>first_record(frame)
    cdef const record_t* record
    cdef uint32_t _i
    if wrong != NULL or store.slab_of == NULL:
        return wrong
    for _i in range(<uint32_t>frame.count):
        record = <const record_t*>at
        if not has_room(operation, record, slab_for(store, record.key).row_bytes):
            return "its values are longer than those that were asked for"
        at += <int64_t>sizeof(record_t) + bytes_behind(protocol, frame.kind, record.key)
    return NULL


cdef const char* request_error(protocol_t* protocol, const frame_t* frame) noexcept nogil:
    cdef const operation_t* operation
    if frame.origin != protocol.rank.rank or frame.count == 0:
        return records_error(protocol, frame, ANY_POSITION)
    operation = operation_of(frame)  # one that comes back to the rank that asked, because the key does
    if not is_awaited(operation, frame.count) or operation.kind != frame.kind:
        return NOT_AWAITED
    return positions_error(protocol, frame, operation)


cdef const char* reply_error(protocol_t* protocol, const frame_t* frame) noexcept nogil:
    cdef const operation_t* operation
    if frame.count == 0:
        return NULL
    operation = operation_of(frame)
    if (frame.origin != protocol.rank.rank or not is_awaited(operation, frame.count)
            or operation.kind != (PULL if frame.kind == PULL_REPLY else LOCATE)):
        return NOT_AWAITED
    return positions_error(protocol, frame, operation)


cdef const char* ack_error(const rank_t* state, const frame_t* frame) noexcept nogil:
    cdef int64_t credits
    if room_in(frame) < 8:
        return "its credits are cut off"
    if frame.origin != state.rank or not is_awaited(operation_of(frame), positions_of(frame)):
        return NOT_AWAITED
    credits = credits_of(<frame_t*>frame)
    if credits < 0 or credits > load(&state.flow.in_flight[frame.credited_to]):
        return "it gives back more bytes than are in flight"
    return NULL


cdef const char* applied_error(replication_t* replication, const frame_t* frame) noexcept nogil:
    cdef pending_acks_t* pending_acks = find_pending_acks(&replication.unacknowledged, frame.operation)
    if pending_acks == NULL or not 0 < positions_of(frame) <= load(&pending_acks.remaining):
        return "it names a set that does not wait for it"
    return NULL


# Frames without keys ----------------------------------------------------------------------------------------------

cdef const char* round_error(replication_t* replication, const frame_t* frame) noexcept nogil:
    if room_in(frame) < <int64_t>sizeof(record_t):
        return "its record is cut off"
    if replication.rounds.state.store.replicas.count == 0:
        return "nothing is replicated here"
    if frame.kind == ROUND_NEWS:
        return NULL
    if not replication.rounds.is_leader:
        return "this rank takes no part in rounds"
    if frame.kind == SUMS_END and load(&replication.rounds.common.unreturned) <= 0:
        return "no round is under way"
    return NULL


cdef const char* text_error(const frame_t* frame) noexcept nogil:
    cdef int64_t room = room_in(frame) - <int64_t>sizeof(record_t)
    if room < 0 or size_of_text(first_record(frame)) > room:
        return "its text is cut off"
    return NULL
