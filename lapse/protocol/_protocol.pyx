"""Floor 2. The relocation protocol: what a rank does on each local request and on each message."""

cimport cython
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from lapse.messaging._flow cimport acquire_credits, release_credits
from lapse.messaging._messages cimport (ACK, DELTA, HAND_OVER, PULL_REPLY, TRANSFER, TRANSFER_ZERO, LOCATE_REPLY, frame_t, loose_u64,
                              record_t)
from lapse.messaging._operations cimport complete
from lapse.messaging._outbox cimport append_ack, append_record, close_frame, free_blocks, open_frame, outbox_t
from lapse.storage._replicas cimport push_replica, read_replica
from lapse.protocol._replication cimport (close_pending_acks, free_replication, pending_acks_t, handle_replication, open_pending_acks,
                                 prepare_replication, protocol_error, replace)
from lapse._store cimport (ABSENT, ARRIVING, NO_SLOT, OWNED, REPLICATED, change_value, entry_t, give_row_back, home_of,
                           is_here, lock_entry, note_owner, read_value, row_at, slab_for, slab_t, take_row,
                           unlock_entry, value_bytes)
from lapse.base._sync cimport drop_latch, store32, take_latch
from lapse.base._types cimport FAILED, LOCALIZE, NO_MEMORY, OK, PULL, PUSH, SET, LOCATE
from lapse.base._values cimport prefetch

cdef enum:
    ARRIVALS_PER_CHUNK = 1024
    SERVED_PER_STEP = 64        # parked operations served under one latch
    COPIED_UNDER_LATCH = 16384  # bytes; a longer value is queued after the latch is released
    NONE = 0xFFFFFFFF
    # Records ahead of the one at hand whose value, and twice as many whose entry, are prefetched:
    VALUES_AHEAD = 8
    ENTRIES_AHEAD = 16
    MAX_PREFETCHED = 1024      # bytes of a value; the processor itself goes on from there


# Bytes in flight ---------------------------------------------------------------------------------------

cdef inline int64_t amount_of(const rank_t* rank, key_t key) noexcept nogil:
    # The larger of request and reply: one of them carries the value.
    return <int64_t>(sizeof(record_t) + value_bytes(rank.store, key))


# Arrival records ---------------------------------------------------------------------------------------

cdef inline arrival_t* arrival_at(const rank_t* rank, uint32_t number) noexcept nogil:
    return &rank.arrivals[number // ARRIVALS_PER_CHUNK][number % ARRIVALS_PER_CHUNK]


cdef bint add_arrivals(rank_t* rank) noexcept nogil:
    # under the arrivals' latch
    cdef uint32_t i, first = rank.arrival_chunks * ARRIVALS_PER_CHUNK
    cdef arrival_t* chunk = <arrival_t*>malloc(ARRIVALS_PER_CHUNK * sizeof(arrival_t))
    if chunk == NULL:
        return False
    rank.arrivals[rank.arrival_chunks] = chunk
    rank.arrival_chunks += 1
    for i in range(ARRIVALS_PER_CHUNK):
        chunk[i].slot = first + i + 1 if i + 1 < ARRIVALS_PER_CHUNK else <uint32_t>NONE
    rank.free_arrival = first
    return True


cdef uint32_t open_arrival(rank_t* rank) noexcept nogil:
    cdef uint32_t number
    cdef arrival_t* arrival
    take_latch(&rank.arrivals_latch)
    if rank.free_arrival == NONE and not add_arrivals(rank):
        drop_latch(&rank.arrivals_latch)
        return <uint32_t>NONE
    number = rank.free_arrival
    arrival = arrival_at(rank, number)
    rank.free_arrival = arrival.slot
    rank.open_arrivals += 1
    drop_latch(&rank.arrivals_latch)
    arrival.first = arrival.last = NULL
    arrival.waiters = NULL
    arrival.successor = -1
    arrival.slot = NO_SLOT
    return number


cdef void close_arrival(rank_t* rank, uint32_t number) noexcept nogil:
    take_latch(&rank.arrivals_latch)
    arrival_at(rank, number).slot = rank.free_arrival
    rank.free_arrival = number
    rank.open_arrivals -= 1
    drop_latch(&rank.arrivals_latch)


cdef bint add_waiter(arrival_t* arrival, operation_t* operation) noexcept nogil:
    cdef waiter_t* waiter = <waiter_t*>malloc(sizeof(waiter_t))
    if waiter == NULL:
        return False
    waiter.operation = operation
    waiter.next = arrival.waiters
    arrival.waiters = waiter
    return True


cdef bint park(arrival_t* arrival, uint8_t kind, uint16_t origin, uint16_t credited_to, uint64_t operation,
               uint32_t position, const char* given, size_t size) noexcept nogil:
    # under the key's latch
    cdef parked_t* parked = <parked_t*>malloc(sizeof(parked_t) + (0 if kind == PULL else size))
    if parked == NULL:
        return False
    parked.next = NULL
    parked.operation = operation
    parked.position = position
    parked.origin = origin
    parked.credited_to = credited_to
    parked.kind = kind
    if kind != PULL:
        memcpy(parked + 1, given, size)
    if arrival.last == NULL:
        arrival.first = parked
    else:
        arrival.last.next = parked
    arrival.last = parked
    return True


# Answers -----------------------------------------------------------------------------------------------

cdef inline char* place_in(const rank_t* rank, const operation_t* operation, uint32_t position) noexcept nogil:
    if operation.offsets != NULL:
        return operation.out + operation.offsets[position]
    if operation.kind == LOCATE:
        return operation.out + position * sizeof(int32_t)
    return operation.out + position * rank.store.slabs[0].row_bytes


cdef int answer_pull(rank_t* rank, uint16_t origin, uint16_t credited_to, uint64_t operation, key_t key,
                     uint32_t position, uint32_t slot) noexcept nogil:
    # Under the key's latch. One of this rank's own counts as answered when the caller completes it.
    cdef slab_t* slab
    cdef operation_t* mine
    if origin == rank.rank:
        mine = <operation_t*>operation
        if mine.out != NULL:
            read_value(rank.store, key, slot, place_in(rank, mine, position))
        release_credits(&rank.flow, credited_to, amount_of(rank, key))
        return OK
    slab = slab_for(rank.store, key)
    return append_record(&rank.outboxes[origin], PULL_REPLY, origin, credited_to, operation, <uint32_t>key, position,
                         NULL if slot == NO_SLOT else row_at(slab, slot), slab.row_bytes)


cdef int send_value(rank_t* rank, key_t key, uint32_t slot, int32_t to) noexcept nogil:
    # The directory does not name the slot any more: nobody else can reach the value, no latch is needed.
    cdef slab_t* slab = slab_for(rank.store, key)
    cdef int status
    if slot == NO_SLOT:
        return append_record(&rank.outboxes[to], TRANSFER_ZERO, <uint16_t>to, 0, 0, <uint32_t>key, 0, NULL, 0)
    status = append_record(&rank.outboxes[to], TRANSFER, <uint16_t>to, 0, 0, <uint32_t>key, 0,
                           row_at(slab, slot), slab.row_bytes)
    give_row_back(rank.store, slab, slot)
    return status


# Requests of this rank's own workers, one key a step ----------------------------------------------------

cdef int ask(rank_t* rank, operation_t* operation, key_t key, uint32_t position,
             const char* given, int64_t* done, int64_t* parked) noexcept nogil:
    """Carry out, park, or send to the home one key of a pull, push or set.

    `done` grows by one where it is carried out at once, `parked` where it waits for an arrival.
    NO_MEMORY leaves nothing behind.
    """
    cdef store_t* store = rank.store
    cdef entry_t* entry = &store.entries[key]
    cdef size_t size = value_bytes(store, key)
    cdef int32_t destination
    cdef int status = OK
    cdef bint latched = True
    lock_entry(rank.store, entry)
    if entry.state == OWNED:
        if operation.kind == PULL:
            read_value(store, key, entry.slot, place_in(rank, operation, position))
        else:
            change_value(store, key, &entry.slot, operation.kind, given)
        done[0] += 1
    elif entry.state == ARRIVING:
        acquire_credits(&rank.flow, rank.rank, amount_of(rank, key))
        if park(arrival_at(rank, entry.slot), operation.kind, <uint16_t>rank.rank, <uint16_t>rank.rank,
                <uint64_t>operation, position, given, size):
            parked[0] += 1
        else:
            release_credits(&rank.flow, rank.rank, amount_of(rank, key))
            status = NO_MEMORY
    elif entry.state == REPLICATED and (operation.kind != SET or entry.route == rank.rank):
        status = ask_replica(rank, operation, entry, position, given, done)
    else:
        destination = entry.route
        if size > COPIED_UNDER_LATCH:
            unlock_entry(entry)
            latched = False
        acquire_credits(&rank.flow, destination, amount_of(rank, key))
        status = append_record(&rank.outboxes[destination], operation.kind, <uint16_t>rank.rank,
                               <uint16_t>destination, <uint64_t>operation, <uint32_t>key, position,
                               given, 0 if operation.kind == PULL else size)
        if status != OK:
            release_credits(&rank.flow, destination, amount_of(rank, key))
    if latched:
        unlock_entry(entry)
    return status


cdef int ask_replica(rank_t* rank, operation_t* operation, entry_t* entry, uint32_t position,
                     const char* given, int64_t* done) noexcept nogil:
    # Under the key's latch. A set is its home's to order; all ranks have to apply it before it is done.
    cdef pending_acks_t* pending_acks
    cdef int64_t amount
    cdef int status
    if operation.kind == PULL:
        read_replica(&rank.store.replicas.all[entry.slot], place_in(rank, operation, position))
    elif operation.kind == PUSH:
        push_replica(&rank.store.replicas, entry.slot, given)
    else:
        pending_acks = open_pending_acks(&rank.replication, <uint16_t>rank.rank, <uint16_t>rank.rank, <uint64_t>operation)
        if pending_acks == NULL:
            return NO_MEMORY
        amount = (rank.size - 1) * <int64_t>(sizeof(record_t) + rank.store.replicas.all[entry.slot].bytes)
        acquire_credits(&rank.flow, rank.rank, amount)
        status = replace(&rank.replication, pending_acks, entry, given, amount)
        return status if status != OK else close_pending_acks(&rank.replication, pending_acks)
    done[0] += 1
    return OK


cdef int ask_for_key(rank_t* rank, key_t key, entry_t* entry) noexcept nogil:
    # Under the key's latch: tell the home, or be the home and redirect the last requester.
    cdef int32_t home = home_of(rank.store, key)
    cdef int32_t old
    if home != rank.rank:
        return append_record(&rank.outboxes[home], LOCALIZE, <uint16_t>rank.rank, 0, 0, <uint32_t>key, 0, NULL, 0)
    old = entry.route
    entry.route = <uint16_t>rank.rank
    return append_record(&rank.outboxes[old], HAND_OVER, <uint16_t>rank.rank, 0, 0, <uint32_t>key, 0, NULL, 0)


cdef int begin_arrival(rank_t* rank, operation_t* operation, key_t key, entry_t* entry) noexcept nogil:
    # under the key's latch
    cdef uint32_t number = open_arrival(rank)
    cdef arrival_t* arrival
    cdef uint32_t old_route = entry.route
    if number == NONE:
        return NO_MEMORY
    arrival = arrival_at(rank, number)
    if not add_waiter(arrival, operation):
        close_arrival(rank, number)
        return NO_MEMORY
    arrival.credited_to = entry.route
    acquire_credits(&rank.flow, arrival.credited_to, amount_of(rank, key))
    entry.slot = number
    entry.state = ARRIVING
    if ask_for_key(rank, key, entry) == OK:
        return OK
    release_credits(&rank.flow, arrival.credited_to, amount_of(rank, key))
    free(arrival.waiters)
    entry.slot = NO_SLOT
    entry.state = ABSENT
    entry.route = <uint16_t>old_route
    close_arrival(rank, number)
    return NO_MEMORY


cdef int localize(rank_t* rank, operation_t* operation, key_t key, int64_t* done) noexcept nogil:
    """Ask for one key, or wait for it with those who asked before, or find it here (`done` grows by one)."""
    cdef entry_t* entry = &rank.store.entries[key]
    cdef int status = OK
    lock_entry(rank.store, entry)
    if is_here(entry):
        done[0] += 1
    elif entry.state == ARRIVING:
        if not add_waiter(arrival_at(rank, entry.slot), operation):
            status = NO_MEMORY
    else:
        status = begin_arrival(rank, operation, key, entry)
    unlock_entry(entry)
    return status


cdef int ask_location(rank_t* rank, operation_t* operation, key_t key, uint32_t position, int64_t* done) noexcept nogil:
    """Ask the home of one key who owns it; the answer is an int32."""
    cdef int32_t home = home_of(rank.store, key)
    if home != rank.rank:
        return append_record(&rank.outboxes[home], LOCATE, <uint16_t>rank.rank, 0, <uint64_t>operation,
                             <uint32_t>key, position, NULL, 0)
    (<int32_t*>place_in(rank, operation, position))[0] = recorded_owner(rank, key)
    done[0] += 1
    return OK


cdef int32_t recorded_owner(rank_t* rank, key_t key) noexcept nogil:
    # at the key's home
    cdef entry_t* entry = &rank.store.entries[key]
    cdef int32_t owner
    lock_entry(rank.store, entry)
    owner = entry.route
    unlock_entry(entry)
    return owner


# Messages ------------------------------------------------------------------------------------------------

cdef inline const entry_t* entry_named(rank_t* rank, const char* record) noexcept nogil:
    return &rank.store.entries[(<const record_t*>record).key]


cdef inline void prefetch_value(rank_t* rank, const char* record) noexcept nogil:
    # Reads the entry without its latch: an old one costs a useless prefetch, nothing more.
    cdef const entry_t* entry = entry_named(rank, record)
    cdef slab_t* slab = slab_for(rank.store, (<const record_t*>record).key)
    cdef uint32_t slot = entry.slot
    cdef size_t at = 0
    if entry.state == OWNED and slot != NO_SLOT:
        while at < slab.row_bytes and at < MAX_PREFETCHED:
            prefetch(row_at(slab, slot) + at)
            at += 64


cdef inline void look_ahead(rank_t* rank, const char* record, size_t stride, uint32_t left) noexcept nogil:
    if left > ENTRIES_AHEAD:
        prefetch(entry_named(rank, record + ENTRIES_AHEAD * stride))
    if left > VALUES_AHEAD:
        prefetch_value(rank, record + VALUES_AHEAD * stride)


cdef void look_at_first(rank_t* rank, const char* record, size_t stride, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(min(count, <uint32_t>ENTRIES_AHEAD)):
        prefetch(entry_named(rank, record + i * stride))
    for i in range(min(count, <uint32_t>VALUES_AHEAD)):
        prefetch_value(rank, record + i * stride)


cdef int64_t bytes_of_answer(const rank_t* rank, const frame_t* frame) noexcept nogil:
    cdef const record_t* record = <const record_t*>(frame + 1)
    cdef int64_t size = 0
    cdef uint32_t i
    if rank.store.slab_of == NULL:
        return frame.count * <int64_t>(sizeof(record_t) + rank.store.slabs[0].row_bytes)
    for i in range(<uint32_t>frame.count):
        size += <int64_t>(sizeof(record_t) + value_bytes(rank.store, record[i].key))
    return size


cdef int on_pull(rank_t* rank, frame_t* frame) noexcept nogil:
    cdef record_t* record = <record_t*>(frame + 1)
    cdef outbox_t* outbox = &rank.outboxes[frame.origin]
    cdef frame_t* answer = NULL
    cdef char* at = NULL
    cdef int64_t done = 0
    cdef uint32_t i
    cdef int status = OK
    if frame.origin != rank.rank:
        answer = open_frame(outbox, PULL_REPLY, frame.origin, frame.credited_to, frame.operation, bytes_of_answer(rank, frame))
        at = <char*>(answer + 1)
    look_at_first(rank, <char*>record, sizeof(record_t), frame.count)
    for i in range(<uint32_t>frame.count):
        look_ahead(rank, <char*>record, sizeof(record_t), frame.count - i)
        status = pull_one(rank, frame, record, &at if answer != NULL else NULL, &done)
        if status != OK:
            break
        record += 1
    if answer != NULL:
        close_frame(outbox, answer, <uint32_t>done, at)
    elif frame.origin == rank.rank:
        complete(<operation_t*>frame.operation, done)
    return status


cdef inline int pull_one(rank_t* rank, frame_t* frame, record_t* record, char** answer, int64_t* done) noexcept nogil:
    """Answer, park or send on a pull of one key; `answer` is where in an open frame the next record goes."""
    cdef entry_t* entry = &rank.store.entries[record.key]
    cdef int status = OK
    lock_entry(rank.store, entry)
    if entry.state == OWNED:
        if answer != NULL:
            answer[0] = write_answer(rank, record, entry.slot, answer[0])
        else:
            status = answer_pull(rank, frame.origin, frame.credited_to, frame.operation, record.key, record.position,
                                 entry.slot)
        done[0] += 1
    elif entry.state == ARRIVING:
        if not park(arrival_at(rank, entry.slot), PULL, frame.origin, frame.credited_to, frame.operation,
                    record.position, NULL, 0):
            status = NO_MEMORY
    else:
        # From the home to the last requester; from anybody else back to the home. Queued under the
        # latch, before a later HAND_OVER, so that it bounces at most once.
        status = append_record(&rank.outboxes[entry.route], PULL, frame.origin, frame.credited_to, frame.operation,
                               record.key, record.position, NULL, 0)
    unlock_entry(entry)
    return status


cdef inline char* write_answer(rank_t* rank, const record_t* asked, uint32_t slot, char* at) noexcept nogil:
    (<record_t*>at)[0] = asked[0]
    at += sizeof(record_t)
    read_value(rank.store, asked.key, slot, at)
    return at + value_bytes(rank.store, asked.key)


cdef int on_change(rank_t* rank, int32_t source, frame_t* frame) noexcept nogil:
    cdef char* at = <char*>(frame + 1)
    cdef record_t* record
    cdef size_t size
    cdef int64_t done = 0, amount = 0
    cdef pending_acks_t* pending_acks = NULL
    cdef uint32_t i
    cdef int status = OK
    for i in range(<uint32_t>frame.count):
        record = <record_t*>at
        size = value_bytes(rank.store, record.key)
        if rank.store.slab_of == NULL:
            look_ahead(rank, at, sizeof(record_t) + size, frame.count - i)
        if rank.store.entries[record.key].state == REPLICATED:
            status = set_replica(rank, source, frame, record, &pending_acks)
        else:
            status = change_one(rank, frame, record, size, &done, &amount)
        if status != OK:
            return status
        at += sizeof(record_t) + size
    if pending_acks != NULL:
        status = close_pending_acks(&rank.replication, pending_acks)
    if not done or status != OK:
        return status
    if frame.origin == rank.rank:
        release_credits(&rank.flow, frame.credited_to, amount)
        complete(<operation_t*>frame.operation, done)
        return OK
    return append_ack(&rank.outboxes[frame.origin], ACK, frame.origin, frame.credited_to, frame.operation,
                      <uint32_t>done, <uint64_t>amount)


cdef int set_replica(rank_t* rank, int32_t source, frame_t* frame, record_t* record, pending_acks_t** pending_acks) noexcept nogil:
    """The home's step of a set of a replicated key; one pending_acks for all such keys of a frame."""
    cdef entry_t* entry = &rank.store.entries[record.key]
    cdef int status
    if frame.kind != SET or entry.route != rank.rank:
        return protocol_error(&rank.replication, source, "a push of, or a wrong rank asked to set, a replicated key", record.key)
    if pending_acks[0] == NULL:
        pending_acks[0] = open_pending_acks(&rank.replication, frame.origin, frame.credited_to, frame.operation)
        if pending_acks[0] == NULL:
            return NO_MEMORY
    lock_entry(rank.store, entry)
    status = replace(&rank.replication, pending_acks[0], entry, <char*>(record + 1), amount_of(rank, record.key))
    unlock_entry(entry)
    return status


cdef inline int change_one(rank_t* rank, frame_t* frame, record_t* record, size_t size,
                           int64_t* done, int64_t* amount) noexcept nogil:
    cdef entry_t* entry = &rank.store.entries[record.key]
    cdef const char* given = <const char*>(record + 1)
    cdef int status = OK
    cdef int32_t to
    lock_entry(rank.store, entry)
    if entry.state == OWNED:
        change_value(rank.store, record.key, &entry.slot, frame.kind, given)
        done[0] += 1
        amount[0] += amount_of(rank, record.key)
    elif entry.state == ARRIVING:
        if not park(arrival_at(rank, entry.slot), <uint8_t>frame.kind, frame.origin, frame.credited_to, frame.operation,
                    record.position, given, size):
            status = NO_MEMORY
    elif size <= COPIED_UNDER_LATCH:
        status = append_record(&rank.outboxes[entry.route], frame.kind, frame.origin, frame.credited_to, frame.operation,
                               record.key, record.position, given, size)
    else:
        to = entry.route
        unlock_entry(entry)
        return append_record(&rank.outboxes[to], frame.kind, frame.origin, frame.credited_to, frame.operation,
                             record.key, record.position, given, size)
    unlock_entry(entry)
    return status


cdef int on_reply(rank_t* rank, frame_t* frame) noexcept nogil:
    cdef operation_t* operation = <operation_t*>frame.operation
    cdef char* at = <char*>(frame + 1)
    cdef record_t* record
    cdef size_t size
    cdef int64_t amount = 0
    cdef uint32_t i
    if frame.count == 0:  # all of it was parked or sent on: the operation may be done by now
        return OK
    for i in range(<uint32_t>frame.count):
        record = <record_t*>at
        size = sizeof(int32_t) if frame.kind == LOCATE_REPLY else value_bytes(rank.store, record.key)
        if operation.out != NULL:
            memcpy(place_in(rank, operation, record.position), record + 1, size)
        at += sizeof(record_t) + size
        amount += <int64_t>(sizeof(record_t) + size)
    if frame.kind == PULL_REPLY:
        release_credits(&rank.flow, frame.credited_to, amount)
    complete(operation, frame.count)
    return OK


cdef int on_ack(rank_t* rank, frame_t* frame) noexcept nogil:
    release_credits(&rank.flow, frame.credited_to, <int64_t>(<loose_u64*>(frame + 1))[0])
    complete(<operation_t*>frame.operation, frame.count)
    return OK


cdef int on_locate(rank_t* rank, frame_t* frame) noexcept nogil:
    cdef record_t* record = <record_t*>(frame + 1)
    cdef uint32_t i
    cdef int32_t owner
    cdef int status
    for i in range(<uint32_t>frame.count):
        owner = recorded_owner(rank, record.key)
        status = append_record(&rank.outboxes[frame.origin], LOCATE_REPLY, frame.origin, 0, frame.operation,
                               record.key, record.position, <char*>&owner, sizeof(owner))
        if status != OK:
            return status
        record += 1
    return OK


cdef int on_localize(rank_t* rank, int32_t source, frame_t* frame) noexcept nogil:
    cdef record_t* record = <record_t*>(frame + 1)
    cdef uint32_t i
    cdef int status
    for i in range(<uint32_t>frame.count):
        look_ahead(rank, <char*>record, sizeof(record_t), frame.count - i)
        status = redirect(rank, source, record.key, frame.origin)
        if status != OK:
            return status
        record += 1
    return OK


cdef int redirect(rank_t* rank, int32_t source, key_t key, int32_t requester) noexcept nogil:
    """The home's step: the requester is the newest owner, and who was it before hands the key over."""
    cdef entry_t* entry = &rank.store.entries[key]
    cdef int32_t old
    cdef int status
    lock_entry(rank.store, entry)
    old = entry.route
    entry.route = <uint16_t>requester
    if old == requester:
        unlock_entry(entry)
        return protocol_error(&rank.replication, source, "a localize by the recorded owner", key)
    if old == rank.rank:
        return hand_over(rank, source, key, entry, requester)
    status = append_record(&rank.outboxes[old], HAND_OVER, <uint16_t>requester, 0, 0, <uint32_t>key, 0, NULL, 0)
    unlock_entry(entry)
    return status


cdef int hand_over(rank_t* rank, int32_t source, key_t key, entry_t* entry, int32_t requester) noexcept nogil:
    """The old owner's step. Takes over the key's latch and releases it."""
    cdef arrival_t* arrival
    cdef uint32_t slot
    if entry.state == OWNED:
        slot = entry.slot
        entry.slot = NO_SLOT
        entry.state = ABSENT
        note_owner(rank.store, key, False)
        unlock_entry(entry)
        rank.relocations.given_away += 1
        return send_value(rank, key, slot, requester)
    if entry.state == ARRIVING:
        arrival = arrival_at(rank, entry.slot)
        if arrival.successor < 0:
            arrival.successor = requester
            unlock_entry(entry)
            return OK
        unlock_entry(entry)
        return protocol_error(&rank.replication, source, "a second successor", key)
    unlock_entry(entry)
    return protocol_error(&rank.replication, source, "asked to hand over a key that is not here", key)


cdef int on_hand_over(rank_t* rank, int32_t source, frame_t* frame) noexcept nogil:
    cdef record_t* record = <record_t*>(frame + 1)
    cdef entry_t* entry
    cdef uint32_t i
    cdef int status
    for i in range(<uint32_t>frame.count):
        look_ahead(rank, <char*>record, sizeof(record_t), frame.count - i)
        entry = &rank.store.entries[record.key]
        lock_entry(rank.store, entry)
        status = hand_over(rank, source, record.key, entry, frame.origin)
        if status != OK:
            return status
        record += 1
    return OK


cdef int on_transfer(rank_t* rank, int32_t source, frame_t* frame) noexcept nogil:
    cdef char* at = <char*>(frame + 1)
    cdef record_t* record
    cdef size_t size
    cdef uint32_t i, slot
    cdef slab_t* slab
    cdef int status
    for i in range(<uint32_t>frame.count):
        record = <record_t*>at
        size = 0
        slot = NO_SLOT
        if frame.kind == TRANSFER:
            slab = slab_for(rank.store, record.key)
            size = slab.row_bytes
            if rank.store.slab_of == NULL and frame.count - i > ENTRIES_AHEAD:
                prefetch(entry_named(rank, at + ENTRIES_AHEAD * (sizeof(record_t) + size)))
            slot = take_row(rank.store, slab, False)
            memcpy(row_at(slab, slot), record + 1, size)
        status = land(rank, source, record.key, slot)
        if status != OK:
            return status
        at += sizeof(record_t) + size
    return OK


cdef int land(rank_t* rank, int32_t source, key_t key, uint32_t slot) noexcept nogil:
    """A key arrives: serve what is parked in order, wake the localizes, keep the key or pass it on."""
    cdef entry_t* entry = &rank.store.entries[key]
    cdef arrival_t* arrival
    cdef waiter_t* waiters
    cdef uint32_t number
    cdef int32_t successor
    cdef int status = OK
    lock_entry(rank.store, entry)
    if entry.state != ARRIVING:
        unlock_entry(entry)
        return protocol_error(&rank.replication, source, "the transfer of a key that nobody here asked for", key)
    number = entry.slot
    arrival = arrival_at(rank, number)
    arrival.slot = slot
    while arrival.first != NULL and status == OK:
        status = serve_parked(rank, key, entry, arrival)
    waiters = arrival.waiters
    successor = arrival.successor
    slot = arrival.slot
    if successor < 0:
        entry.state = OWNED
        entry.slot = slot
        note_owner(rank.store, key, True)
    else:
        entry.state = ABSENT
        entry.slot = NO_SLOT
    unlock_entry(entry)
    rank.relocations.arrived += 1
    release_credits(&rank.flow, arrival.credited_to, amount_of(rank, key))
    close_arrival(rank, number)
    wake(waiters)
    if successor >= 0 and status == OK:
        rank.relocations.passed_on += 1
        rank.relocations.given_away += 1
        status = send_value(rank, key, slot, successor)
    return status


cdef void wake(waiter_t* waiter) noexcept nogil:
    cdef waiter_t* next_one
    while waiter != NULL:
        next_one = waiter.next
        complete(waiter.operation, 1)
        free(waiter)
        waiter = next_one


cdef int serve_parked(rank_t* rank, key_t key, entry_t* entry, arrival_t* arrival) noexcept nogil:
    """Serve up to SERVED_PER_STEP parked operations under the latch, then let others have it for a moment.

    The key stays *arriving* until the queue is empty, so that what comes meanwhile waits its turn.
    """
    cdef operation_t* mine[SERVED_PER_STEP]
    cdef int i, served = 0, finished = 0
    cdef int status = OK
    cdef parked_t* parked
    while arrival.first != NULL and served < SERVED_PER_STEP and status == OK:
        parked = arrival.first
        arrival.first = parked.next
        if arrival.first == NULL:
            arrival.last = NULL
        status = serve(rank, key, arrival, parked)
        if parked.origin == rank.rank:
            mine[finished] = <operation_t*>parked.operation
            finished += 1
        served += 1
        free(parked)
    unlock_entry(entry)
    for i in range(finished):
        complete(mine[i], 1)
    lock_entry(rank.store, entry)
    return status


cdef int serve(rank_t* rank, key_t key, arrival_t* arrival, parked_t* parked) noexcept nogil:
    # Under the key's latch. The caller completes one of this rank's own.
    if parked.kind == PULL:
        return answer_pull(rank, parked.origin, parked.credited_to, parked.operation, key, parked.position, arrival.slot)
    change_value(rank.store, key, &arrival.slot, parked.kind, <char*>(parked + 1))
    if parked.origin == rank.rank:
        release_credits(&rank.flow, parked.credited_to, amount_of(rank, key))
        return OK
    return append_ack(&rank.outboxes[parked.origin], ACK, parked.origin, parked.credited_to, parked.operation,
                      1, <uint64_t>amount_of(rank, key))


cdef int handle_frame(rank_t* rank, int32_t source, frame_t* frame) noexcept nogil:
    """Do what one message of the key protocol asks for.

    FAILED (with the reason in `rank.error`) and NO_MEMORY end the server.
    """
    if frame.kind == PULL:
        return on_pull(rank, frame)
    if frame.kind == PULL_REPLY or frame.kind == LOCATE_REPLY:
        return on_reply(rank, frame)
    if frame.kind == PUSH or frame.kind == SET:
        return on_change(rank, source, frame)
    if frame.kind == ACK:
        return on_ack(rank, frame)
    if frame.kind == LOCALIZE:
        return on_localize(rank, source, frame)
    if frame.kind == HAND_OVER:
        return on_hand_over(rank, source, frame)
    if frame.kind == TRANSFER or frame.kind == TRANSFER_ZERO:
        return on_transfer(rank, source, frame)
    if frame.kind == LOCATE:
        return on_locate(rank, frame)
    if frame.kind >= DELTA:
        return handle_replication(&rank.replication, source, frame)
    return protocol_error(&rank.replication, source, "a message of unknown kind", frame.kind)


# The protocol's memory -----------------------------------------------------------------------------------

cdef void forget_arrival(arrival_t* arrival) noexcept:
    # of a server that ended by a failure: what waits is never answered
    cdef parked_t* parked
    cdef waiter_t* waiter
    while arrival.first != NULL:
        parked = arrival.first
        arrival.first = parked.next
        free(parked)
    while arrival.waiters != NULL:
        waiter = arrival.waiters
        arrival.waiters = waiter.next
        free(waiter)


@cython.no_gc_clear  # the store must outlive what refers to its entries
cdef class Protocol:
    """The state of one rank: its store, what is arriving, what is to be sent.

    Parameters
    ----------
    store : Store
    max_in_flight : int
        Bytes of this rank's own unanswered operations per destination, above which new ones wait.
    """

    def __cinit__(self, Store store, int64_t max_in_flight=64 << 20):
        cdef int i
        self.store = store
        self.c.store = &store.c
        self.c.rank = store.c.rank
        self.c.size = store.c.size
        self.c.flow.limit = max_in_flight
        self.c.free_arrival = NONE
        # A key arrives at most once at a time: room for the addresses of all chunks there can be.
        chunks = store.c.num_keys // ARRIVALS_PER_CHUNK + 1
        self.c.arrivals = <arrival_t**>calloc(chunks, sizeof(arrival_t*))
        self.c.outboxes = <outbox_t*>calloc(self.c.size, sizeof(outbox_t))
        self.c.flow.in_flight = <int64_t*>calloc(self.c.size, sizeof(int64_t))
        if self.c.arrivals == NULL or self.c.outboxes == NULL or self.c.flow.in_flight == NULL:
            raise MemoryError(f"no memory for the queues to {self.c.size} ranks")
        for i in range(self.c.size):
            self.c.outboxes[i].waiting = &self.c.outboxes_waiting
        self.c.replication.store = &store.c
        self.c.replication.outboxes = self.c.outboxes
        self.c.replication.flow = &self.c.flow
        self.c.replication.rank = self.c.rank
        self.c.replication.size = self.c.size
        self.c.replication.error = self.c.error
        if prepare_replication(&self.c.replication) != OK:
            raise MemoryError(f"no memory for the replication over {self.c.size} ranks")

    def __dealloc__(self):
        cdef uint32_t i
        cdef int32_t j
        cdef key_t key
        if self.c.open_arrivals:
            for key in range(self.store.c.num_keys):
                if self.store.c.entries[key].state == ARRIVING:
                    forget_arrival(arrival_at(&self.c, self.store.c.entries[key].slot))
        free_replication(&self.c.replication)
        if self.c.outboxes != NULL:
            for j in range(self.c.size):
                free_blocks(&self.c.outboxes[j])
        for i in range(self.c.arrival_chunks):
            free(self.c.arrivals[i])
        free(self.c.arrivals)
        free(self.c.outboxes)
        free(self.c.flow.in_flight)

    @property
    def relocations(self):
        """Keys that arrived here, were given away, and of these passed on at once."""
        return self.c.relocations.arrived, self.c.relocations.given_away, self.c.relocations.passed_on

    def manage_replicas(self, *, double interval=0.0, int64_t max_pending=0, double threshold=0.0, bint average=False,
                        double clip=0.0):
        """Choose how replicas are synchronised; see `lapse.Replication`. `interval` is in seconds, 0 means never."""
        self.c.replication.interval = <int64_t>min(max(interval * 1e9, 1.0), 2.0**62) if interval else 0
        self.c.replication.max_pending = max_pending
        self.c.replication.threshold = threshold
        self.c.replication.average = average
        self.c.replication.clip = clip

    @property
    def replica_counters(self):
        """Rounds in which this rank sent changes of replicas, and how many values it sent about them."""
        return self.c.replication.rounds, self.c.replication.keys_sent

    def enter_setup(self, bint inside):
        """Whether deltas go unscaled and whatever their size."""
        store32(&self.c.replication.in_setup, inside)

    @property
    def at_rest(self):
        """Whether nothing is arriving, nothing is to be sent and no byte is in flight."""
        return (self.c.open_arrivals == 0 and self.c.outboxes_waiting == 0 and self.c.flow.over_limit == 0
                and self.c.replication.awaited == 0 and self.c.replication.pending_acks_list == NULL
                and all(self.c.flow.in_flight[i] == 0 for i in range(self.c.size)))
