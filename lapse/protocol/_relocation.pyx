"""Floor 2. Relocation: what a rank does with a key that may be elsewhere, on each local request and on each message."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from lapse.messaging._flow cimport acquire_credits, release_credits
from lapse.messaging._messages cimport (ACK, CONTENDED, HAND_OVER, LOCATE_REPLY, PULL_REPLY, TRANSFER, TRANSFER_ZERO,
                                        address_in, credits_of, frame_t, header_t, name_of_address, positions_of,
                                        record_t, with_kind)
from lapse.messaging._operations cimport complete
from lapse.messaging._outbox cimport close_frame, open_frame, outbox_t
from lapse.messaging._senders cimport (send_ack, send_contended, send_hand_over, send_localize, send_locate,
                                       send_locate_reply, send_own, send_pull_reply, send_request, send_transfer,
                                       send_transfer_zero)
from lapse.protocol._arrivals cimport (NO_ARRIVAL, add_waiter, arrival_at, arrival_t, close_arrival, forget_arrival,
                                       free_arrivals, open_arrival, park, park_own, parked_t, prepare_arrivals,
                                       waiter_t, wake)
from lapse.protocol._contention cimport (decline, is_contended, memory_of, memory_on_departure, note_remote_use,
                                         state_on_arrival, wasted_before)
from lapse.protocol._payload cimport carry_out
from lapse.protocol._prefetch cimport ENTRIES_AHEAD, entry_named, look_ahead, look_at_first
from lapse.protocol._rank cimport KEY_BYTES, amount_of, header_of, output_of, protocol_error, rank_t
from lapse._store cimport (ABSENT, ARRIVING, OWNED, REPLICATED, change_bytes, change_value, entry_t, home_of, is_here,
                           is_lent, is_owned, lent_to, lock_entry, note_owner, note_use, read_value, set_slot,
                           set_state, slab_for, store_t, unlock_entry, value_bytes)
from lapse.storage._slabs cimport NO_SLOT, give_row_back, row_at, slab_t, take_row
from lapse.base._counting cimport add_to
from lapse.base._sync cimport fetch_add
from lapse.base._types cimport FAILED, GRADIENT, LOCALIZE, LOCATE, NO_MEMORY, OK, PULL, PUSH, SET, key_t, operation_t
from lapse.base._values cimport prefetch

cdef enum:
    SERVED_PER_STEP = 64        # parked operations served under one latch
    COPIED_UNDER_LATCH = 16384  # bytes; a longer value is queued after the latch is released


# Answers -----------------------------------------------------------------------------------------------

cdef int answer_pull(rank_t* state, header_t request, key_t key, uint32_t position, uint32_t slot) noexcept nogil:
    # Under the key's latch. One of this rank's own counts as answered when the caller completes it.
    cdef slab_t* slab
    cdef operation_t* mine
    if request.origin == state.rank:
        mine = <operation_t*>address_in(request.operation)
        if mine.out != NULL:
            read_value(state.store, key, slot, output_of(state, mine, position))
        release_credits(&state.flow, request.credited_to, amount_of(state, key))
        return OK
    slab = slab_for(state.store, key)
    return send_pull_reply(&state.outboxes[request.origin], request, key, position,
                           NULL if slot == NO_SLOT else row_at(slab, slot), slab.row_bytes)


cdef int send_value(rank_t* state, key_t key, uint32_t slot, int32_t to) noexcept nogil:
    # The directory does not name the slot any more: nobody else can reach the value, no latch is needed.
    cdef slab_t* slab = slab_for(state.store, key)
    cdef int status
    if slot == NO_SLOT:
        return send_transfer_zero(&state.outboxes[to], to, key)
    status = send_transfer(&state.outboxes[to], to, key, row_at(slab, slot), slab.held_bytes)
    give_row_back(slab, slot, state.store.holder, state.store.watch)
    return status


# Lent keys -----------------------------------------------------------------------------------------------

cdef inline bint is_readable(const relocation_t* relocation, const entry_t* entry, uint32_t* slot) noexcept nogil:
    """Under the key's latch: whether a pull can be answered now, and from where.

    Of a lent key it reads what the workers have changed so far. It never waits for their return: a worker that has
    lent keys itself may be the one that waits.
    """
    cdef arrival_t* arrival
    slot[0] = entry.slot
    if entry.state == ARRIVING:
        arrival = arrival_at(&relocation.arrivals, entry.slot)
        slot[0] = arrival.slot
        return arrival.lent_to > 0
    return is_owned(entry) or is_lent(entry)


cdef int await_return(relocation_t* relocation, key_t key, entry_t* entry) noexcept nogil:
    """Under the key's latch: from now on a lent key is arriving, from the workers that have it."""
    cdef rank_t* state = relocation.state
    cdef uint32_t number
    cdef arrival_t* arrival
    if not is_lent(entry):
        return OK
    number = open_arrival(&relocation.arrivals)
    if number == NO_ARRIVAL:
        return NO_MEMORY
    arrival = arrival_at(&relocation.arrivals, number)
    arrival.slot = entry.slot
    arrival.lent_to = <uint8_t>lent_to(entry)
    arrival.credited_to = <uint16_t>state.rank
    acquire_credits(&state.flow, state.rank, amount_of(state, key))
    set_slot(entry, number)
    set_state(entry, ARRIVING)
    return OK


cdef int take_back(relocation_t* relocation, key_t key) noexcept nogil:
    """A worker returns a key for which somebody waits."""
    cdef rank_t* state = relocation.state
    cdef entry_t* entry = &state.store.entries[key]
    cdef arrival_t* arrival
    lock_entry(state.store, entry)
    if entry.state != ARRIVING:
        unlock_entry(entry)
        return FAILED
    arrival = arrival_at(&relocation.arrivals, entry.slot)
    if not arrival.lent_to:
        unlock_entry(entry)
        return FAILED
    arrival.lent_to -= 1
    if arrival.lent_to:
        unlock_entry(entry)
        return OK
    return end_arrival(relocation, state, key, entry, False)


# Requests of this rank's own workers, one key a step ----------------------------------------------------

cdef int ask_owner(relocation_t* relocation, operation_t* operation, key_t key, uint32_t position,
                   const char* given, int64_t* done, int64_t* parked) noexcept nogil:
    """Carry out, park, or send to the home one key, not a replicated one, of a pull, push, set or gradient.

    `done` grows by one if it is carried out at once, `parked` if it waits for an arrival.
    NO_MEMORY leaves nothing behind.
    """
    cdef rank_t* state = relocation.state
    cdef store_t* store = state.store
    cdef entry_t* entry = &store.entries[key]
    cdef size_t size = value_bytes(store, key)
    cdef int32_t destination
    cdef uint32_t slot
    cdef int status = OK
    cdef bint latched = True
    lock_entry(state.store, entry)
    note_use(entry)
    if operation.kind != PULL:
        status = await_return(relocation, key, entry)
    if status != OK:
        pass
    elif operation.kind == PULL and is_readable(relocation, entry, &slot):
        read_value(store, key, slot, output_of(state, operation, position))
        done[0] += 1
    elif entry.state == OWNED:
        change_value(store, key, &entry.slot, operation.kind, given, operation.terms)
        done[0] += 1
    elif entry.state == ARRIVING:
        acquire_credits(&state.flow, state.rank, amount_of(state, key))
        if park_own(arrival_at(&relocation.arrivals, entry.slot), header_of(state, operation, state.rank), operation,
                    position, given, size):
            parked[0] += 1
        else:
            release_credits(&state.flow, state.rank, amount_of(state, key))
            status = NO_MEMORY
    else:
        destination = entry.route
        note_remote_use(&entry.slot)
        if size > COPIED_UNDER_LATCH:
            unlock_entry(entry)
            latched = False
        acquire_credits(&state.flow, destination, amount_of(state, key))
        status = send_own(&state.outboxes[destination], header_of(state, operation, destination), operation, key,
                          position, given, size)
        if status != OK:
            release_credits(&state.flow, destination, amount_of(state, key))
    if latched:
        unlock_entry(entry)
    return status


cdef int ask_for_key(rank_t* state, key_t key, entry_t* entry) noexcept nogil:
    # Under the key's latch: tell the home, or be the home and redirect the last requester.
    cdef int32_t home = home_of(state.store, key)
    cdef int32_t old
    if home != state.rank:
        return send_localize(&state.outboxes[home], state.rank, key)
    old = entry.route
    entry.route = <uint16_t>state.rank
    return send_hand_over(&state.outboxes[old], state.rank, key)


cdef int begin_arrival(relocation_t* relocation, operation_t* operation, key_t key, entry_t* entry) noexcept nogil:
    # Under the key's latch. Nobody waits for a key that its home brings back by itself: `operation` is NULL.
    cdef rank_t* state = relocation.state
    cdef uint32_t memory = entry.slot
    cdef uint32_t number = open_arrival(&relocation.arrivals)
    cdef arrival_t* arrival
    cdef uint32_t old_route = entry.route
    if number == NO_ARRIVAL:
        return NO_MEMORY
    arrival = arrival_at(&relocation.arrivals, number)
    if operation != NULL and not add_waiter(arrival, operation):
        close_arrival(&relocation.arrivals, number)
        return NO_MEMORY
    arrival.wasted = wasted_before(memory)
    arrival.credited_to = entry.route
    acquire_credits(&state.flow, arrival.credited_to, amount_of(state, key))
    set_slot(entry, number)
    set_state(entry, ARRIVING)
    if ask_for_key(state, key, entry) == OK:
        return OK
    release_credits(&state.flow, arrival.credited_to, amount_of(state, key))
    free(arrival.waiters)
    set_slot(entry, memory)
    set_state(entry, ABSENT)
    entry.route = <uint16_t>old_route
    close_arrival(&relocation.arrivals, number)
    return NO_MEMORY


cdef int localize_key(relocation_t* relocation, operation_t* operation, key_t key, int64_t* done,
                      int64_t* declined) noexcept nogil:
    """Ask for one key, or wait for it if it was asked for already.

    `done` grows by one if it is here, `declined` if it is contended and stays where it is.
    """
    cdef rank_t* state = relocation.state
    cdef entry_t* entry = &state.store.entries[key]
    cdef int status = OK
    lock_entry(state.store, entry)
    if is_here(entry):
        done[0] += 1
    elif entry.state == ARRIVING and arrival_at(&relocation.arrivals, entry.slot).lent_to:
        done[0] += 1
    elif entry.state == ARRIVING:
        if not add_waiter(arrival_at(&relocation.arrivals, entry.slot), operation):
            status = NO_MEMORY
    elif is_contended(entry.slot) and home_of(state.store, key) != state.rank:
        status = leave_contended(state, operation, key, entry, declined)
    else:
        status = begin_arrival(relocation, operation, key, entry)
    unlock_entry(entry)
    return status


cdef int leave_contended(rank_t* state, operation_t* operation, key_t key, entry_t* entry,
                         int64_t* declined) noexcept nogil:
    """Under the key's latch, not at its home: decline a localize, or let the first of several bring the key home."""
    if not decline(&entry.slot):
        return send_contended(&state.outboxes[entry.route], state.rank, name_of_address(operation), key)
    declined[0] += 1
    return OK


cdef int locate_key(rank_t* state, operation_t* operation, key_t key, uint32_t position, int64_t* done) noexcept nogil:
    """Ask the home of one key which rank owns it; the answer is an int32."""
    cdef int32_t home = home_of(state.store, key)
    if home != state.rank:
        return send_locate(&state.outboxes[home], state.rank, name_of_address(operation), key, position)
    (<int32_t*>output_of(state, operation, position))[0] = recorded_owner(state, key)
    done[0] += 1
    return OK


cdef int32_t recorded_owner(rank_t* state, key_t key) noexcept nogil:
    # at the key's home
    cdef entry_t* entry = &state.store.entries[key]
    cdef int32_t owner
    lock_entry(state.store, entry)
    owner = entry.route
    unlock_entry(entry)
    return owner


# Messages ------------------------------------------------------------------------------------------------

cdef int64_t bytes_of_answer(const rank_t* state, const frame_t* frame) noexcept nogil:
    cdef const record_t* record = <const record_t*>(frame + 1)
    cdef int64_t size = 0
    cdef uint32_t i
    if state.store.slab_of == NULL:
        return frame.count * <int64_t>(sizeof(record_t) + state.store.slabs[0].row_bytes)
    for i in range(<uint32_t>frame.count):
        size += <int64_t>(sizeof(record_t) + value_bytes(state.store, record[i].key))
    return size


cdef int on_pull(relocation_t* relocation, int32_t source, frame_t* frame) noexcept nogil:
    cdef rank_t* state = relocation.state
    cdef record_t* record = <record_t*>(frame + 1)
    cdef outbox_t* outbox = &state.outboxes[frame.origin]
    cdef frame_t* answer = NULL
    cdef char* at = NULL
    cdef int64_t done = 0
    cdef uint32_t i
    cdef int status = OK
    if frame.origin != state.rank:
        answer = open_frame(outbox, with_kind(frame.header, PULL_REPLY), bytes_of_answer(state, frame))
        at = <char*>(answer + 1)
    look_at_first(state, <char*>record, sizeof(record_t), frame.count)
    for i in range(<uint32_t>frame.count):
        look_ahead(state, <char*>record, sizeof(record_t), frame.count - i)
        status = pull_one(relocation, state, source, frame, record, &at if answer != NULL else NULL, &done)
        if status != OK:
            break
        record += 1
    if answer != NULL:
        close_frame(outbox, answer, <uint32_t>done, at)
    elif frame.origin == state.rank:
        complete(<operation_t*>address_in(frame.operation), done)
    return status


cdef inline int pull_one(relocation_t* relocation, rank_t* state, int32_t source, frame_t* frame, record_t* record,
                         char** answer, int64_t* done) noexcept nogil:
    """Answer, park or send on a pull of one key; `answer` is the place of the next record in an open frame."""
    cdef entry_t* entry = &state.store.entries[record.key]
    cdef uint32_t slot
    cdef int status = OK
    lock_entry(state.store, entry)
    if is_readable(relocation, entry, &slot):
        if answer != NULL:
            answer[0] = write_answer(state, record, slot, answer[0])
        else:
            status = answer_pull(state, frame.header, record.key, record.position, slot)
        done[0] += 1
    elif entry.state == ARRIVING:
        if not park(arrival_at(&relocation.arrivals, entry.slot), frame.header, record.position, NULL, 0):
            status = NO_MEMORY
    elif entry.state == REPLICATED:
        status = protocol_error(state, source, "a pull of a replicated key", record.key)
    else:
        # To the last requester, or back to the home. Under the latch, before a HAND_OVER: so it bounces at most once.
        status = send_request(&state.outboxes[entry.route], frame.header, record.key, record.position, NULL, 0)
    unlock_entry(entry)
    return status


cdef inline char* write_answer(rank_t* state, const record_t* asked, uint32_t slot, char* at) noexcept nogil:
    (<record_t*>at)[0] = asked[0]
    at += sizeof(record_t)
    read_value(state.store, asked.key, slot, at)
    return at + value_bytes(state.store, asked.key)


cdef int change_keys(relocation_t* relocation, int32_t source, frame_t* frame, char* at, uint32_t count) noexcept nogil:
    """Carry out, park or send on so many pushes, sets or gradients of a frame, whose records begin at `at`."""
    cdef rank_t* state = relocation.state
    cdef record_t* record
    cdef size_t size
    cdef int64_t done = 0, amount = 0
    cdef uint32_t i
    cdef int status
    for i in range(count):
        record = <record_t*>at
        size = change_bytes(state.store, frame.kind, record.key)
        if state.store.slab_of == NULL:
            look_ahead(state, at, sizeof(record_t) + size, count - i)
        status = change_one(relocation, state, source, frame, record, size, &done, &amount)
        if status != OK:
            return status
        at += sizeof(record_t) + size
    if not done:
        return OK
    if frame.origin == state.rank:
        release_credits(&state.flow, frame.credited_to, amount)
        complete(<operation_t*>address_in(frame.operation), done)
        return OK
    return send_ack(&state.outboxes[frame.origin], frame.header, done, amount)


cdef inline int change_one(relocation_t* relocation, rank_t* state, int32_t source, frame_t* frame, record_t* record,
                           size_t size, int64_t* done, int64_t* amount) noexcept nogil:
    cdef entry_t* entry = &state.store.entries[record.key]
    cdef const char* given = <const char*>(record + 1)
    cdef int status = OK
    cdef int32_t to
    lock_entry(state.store, entry)
    if is_lent(entry):
        status = await_return(relocation, record.key, entry)
    if status != OK:
        pass
    elif is_owned(entry):
        carry_out(state.store, record.key, &entry.slot, frame.kind, given)
        done[0] += 1
        amount[0] += amount_of(state, record.key)
    elif entry.state == ARRIVING:
        if not park(arrival_at(&relocation.arrivals, entry.slot), frame.header, record.position, given, size):
            status = NO_MEMORY
    elif entry.state == REPLICATED:
        status = protocol_error(state, source, "a push of a replicated key", record.key)
    elif size <= COPIED_UNDER_LATCH:
        status = send_request(&state.outboxes[entry.route], frame.header, record.key, record.position, given, size)
    else:
        to = entry.route
        unlock_entry(entry)
        return send_request(&state.outboxes[to], frame.header, record.key, record.position, given, size)
    unlock_entry(entry)
    return status


cdef int on_reply(rank_t* state, frame_t* frame) noexcept nogil:
    cdef operation_t* operation = <operation_t*>address_in(frame.operation)
    cdef char* at = <char*>(frame + 1)
    cdef record_t* record
    cdef size_t size
    cdef int64_t amount = 0
    cdef uint32_t _i
    if frame.count == 0:  # all of it was parked or sent on: the operation may be done by now
        return OK
    for _i in range(<uint32_t>frame.count):
        record = <record_t*>at
        size = sizeof(int32_t) if frame.kind == LOCATE_REPLY else value_bytes(state.store, record.key)
        if operation.out != NULL:
            memcpy(output_of(state, operation, record.position), record + 1, size)
        at += sizeof(record_t) + size
        amount += <int64_t>(KEY_BYTES + size)
    if frame.kind == PULL_REPLY:
        release_credits(&state.flow, frame.credited_to, amount)
    complete(operation, frame.count)
    return OK


cdef int on_ack(rank_t* state, frame_t* frame) noexcept nogil:
    release_credits(&state.flow, frame.credited_to, credits_of(frame))
    complete(<operation_t*>address_in(frame.operation), positions_of(frame))
    return OK


cdef int on_locate(rank_t* state, frame_t* frame) noexcept nogil:
    cdef record_t* record = <record_t*>(frame + 1)
    cdef uint32_t _i
    cdef int32_t owner
    cdef int status
    for _i in range(<uint32_t>frame.count):
        owner = recorded_owner(state, record.key)
        status = send_locate_reply(&state.outboxes[frame.origin], frame.header, record, owner)
        if status != OK:
            return status
        record += 1
    return OK


cdef int on_localize(relocation_t* relocation, int32_t source, frame_t* frame) noexcept nogil:
    cdef record_t* record = <record_t*>(frame + 1)
    cdef int status = OK
    cdef uint32_t i
    for i in range(<uint32_t>frame.count):
        look_ahead(relocation.state, <char*>record, sizeof(record_t), frame.count - i)
        status = redirect(relocation, relocation.state, source, record.key, frame.origin)
        if status != OK:
            break
        record += 1
    return status


cdef int redirect(relocation_t* relocation, rank_t* state, int32_t source, key_t key, int32_t requester) noexcept nogil:
    """The home's step: the requester is the newest owner, and the one before it hands the key over."""
    cdef entry_t* entry = &state.store.entries[key]
    cdef int old, status
    lock_entry(state.store, entry)
    old = entry.route
    if entry.state == REPLICATED or old == requester:
        unlock_entry(entry)
        return protocol_error(state, source, "a localize of a replicated key, or by the recorded owner", key)
    entry.route = <uint16_t>requester
    if old == state.rank:
        return hand_over(relocation, state, source, key, entry, requester)
    status = send_hand_over(&state.outboxes[old], requester, key)
    unlock_entry(entry)
    return status


cdef int hand_over(relocation_t* relocation, rank_t* state, int32_t source, key_t key, entry_t* entry,
                   int32_t requester) noexcept nogil:
    """The old owner's step. Takes over the key's latch and releases it."""
    cdef arrival_t* arrival
    cdef uint32_t slot
    if await_return(relocation, key, entry) != OK:
        unlock_entry(entry)
        return NO_MEMORY
    if is_owned(entry):
        slot = entry.slot
        set_slot(entry, memory_on_departure(entry.state))
        set_state(entry, ABSENT)
        note_owner(state.store, key, False)
        unlock_entry(entry)
        add_to(&relocation.counters.given_away, 1)
        return send_value(state, key, slot, requester)
    if entry.state == ARRIVING:
        arrival = arrival_at(&relocation.arrivals, entry.slot)
        if arrival.successor < 0:
            arrival.successor = requester
            unlock_entry(entry)
            return OK
        unlock_entry(entry)
        return protocol_error(state, source, "a second successor", key)
    unlock_entry(entry)
    return protocol_error(state, source, "asked to hand over a key that is not here", key)


cdef int on_contended(relocation_t* relocation, int32_t source, frame_t* frame) noexcept nogil:
    cdef rank_t* state = relocation.state
    cdef record_t* record = <record_t*>(frame + 1)
    cdef entry_t* entry
    cdef uint32_t _i
    cdef int64_t done = 0
    cdef int status = OK
    for _i in range(<uint32_t>frame.count):
        if home_of(state.store, record.key) != state.rank:
            return protocol_error(state, source, "a contended key of another home", record.key)
        entry = &state.store.entries[record.key]
        lock_entry(state.store, entry)
        if is_here(entry):
            done += 1
        else:
            if entry.state == ABSENT:
                status = begin_arrival(relocation, NULL, record.key, entry)
            if status == OK and not park(arrival_at(&relocation.arrivals, entry.slot), frame.header, 0, NULL, 0):
                status = NO_MEMORY
        unlock_entry(entry)
        if status != OK:
            return status
        record += 1
    return send_ack(&state.outboxes[frame.origin], frame.header, done, 0) if done else OK


cdef int on_hand_over(relocation_t* relocation, int32_t source, frame_t* frame) noexcept nogil:
    cdef rank_t* state = relocation.state
    cdef record_t* record = <record_t*>(frame + 1)
    cdef entry_t* entry
    cdef uint32_t i
    cdef int status
    for i in range(<uint32_t>frame.count):
        look_ahead(state, <char*>record, sizeof(record_t), frame.count - i)
        entry = &state.store.entries[record.key]
        lock_entry(state.store, entry)
        status = hand_over(relocation, state, source, record.key, entry, frame.origin)
        if status != OK:
            return status
        record += 1
    return OK


cdef int on_transfer(relocation_t* relocation, int32_t source, frame_t* frame) noexcept nogil:
    cdef rank_t* state = relocation.state
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
            slab = slab_for(state.store, record.key)
            size = slab.held_bytes
            if state.store.slab_of == NULL and frame.count - i > ENTRIES_AHEAD:
                prefetch(entry_named(state, at + ENTRIES_AHEAD * (sizeof(record_t) + size)))
            slot = take_row(slab, size, state.store.holder, state.store.watch)
            memcpy(row_at(slab, slot), record + 1, size)
        status = land(relocation, state, source, record.key, slot)
        if status != OK:
            return status
        at += sizeof(record_t) + size
    return OK


cdef int land(relocation_t* relocation, rank_t* state, int32_t source, key_t key, uint32_t slot) noexcept nogil:
    """A key arrives from another rank."""
    cdef entry_t* entry = &state.store.entries[key]
    lock_entry(state.store, entry)
    if entry.state != ARRIVING or arrival_at(&relocation.arrivals, entry.slot).lent_to:
        unlock_entry(entry)
        return protocol_error(state, source, "the transfer of a key that nobody here asked for", key)
    arrival_at(&relocation.arrivals, entry.slot).slot = slot
    return end_arrival(relocation, state, key, entry, True)


cdef int end_arrival(relocation_t* relocation, rank_t* state, key_t key, entry_t* entry,
                     bint from_elsewhere) noexcept nogil:
    """The value is here: serve what is parked in order, wake the localizes, keep the key or pass it on.

    Takes over the key's latch and releases it. Called by the thread that drives the communication for what comes from
    elsewhere, and by any worker for what was lent.
    """
    cdef uint32_t slot, number = entry.slot
    cdef arrival_t* arrival = arrival_at(&relocation.arrivals, number)
    cdef waiter_t* waiters
    cdef int32_t successor
    cdef int status = OK
    while arrival.first != NULL and status == OK:
        status = serve_parked(state, key, entry, arrival)
    waiters = arrival.waiters
    successor = arrival.successor
    slot = arrival.slot
    if successor < 0:
        set_state(entry, OWNED if arrival.is_used or waiters == NULL else state_on_arrival(arrival.wasted))
        set_slot(entry, slot)
        note_owner(state.store, key, True)
    else:
        set_state(entry, ABSENT)
        set_slot(entry, memory_of(arrival.wasted, waiters != NULL))
        if arrival.is_used:  # it came too late: the operation had to wait, and the key is gone again
            note_remote_use(&entry.slot)
        if not from_elsewhere:
            note_owner(state.store, key, False)
    unlock_entry(entry)
    release_credits(&state.flow, arrival.credited_to, amount_of(state, key))
    close_arrival(&relocation.arrivals, number)
    if from_elsewhere:  # counted before those who waited for it go on, and may ask for the counters
        add_to(&relocation.counters.arrived, 1)
        add_to(&relocation.counters.passed_on, successor >= 0)
        add_to(&relocation.counters.given_away, successor >= 0)
    elif successor >= 0:
        fetch_add(&relocation.given_away_by_workers, 1)
    wake(waiters)
    if successor >= 0 and status == OK:
        status = send_value(state, key, slot, successor)
    return status


cdef int serve_parked(rank_t* state, key_t key, entry_t* entry, arrival_t* arrival) noexcept nogil:
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
        status = serve(state, key, arrival, parked)
        if parked.request.origin == state.rank:
            arrival.is_used = True
            mine[finished] = <operation_t*>address_in(parked.request.operation)
            finished += 1
        served += 1
        free(parked)
    unlock_entry(entry)
    for i in range(finished):
        complete(mine[i], 1)
    lock_entry(state.store, entry)
    return status


cdef int serve(rank_t* state, key_t key, arrival_t* arrival, parked_t* parked) noexcept nogil:
    # Under the key's latch. The caller completes one of this rank's own.
    cdef header_t request = parked.request
    if request.kind == PULL:
        return answer_pull(state, request, key, parked.position, arrival.slot)
    if request.kind == CONTENDED:
        return send_ack(&state.outboxes[request.origin], request, 1, 0)
    carry_out(state.store, key, &arrival.slot, request.kind, <char*>(parked + 1))
    if request.origin == state.rank:
        release_credits(&state.flow, request.credited_to, amount_of(state, key))
        return OK
    return send_ack(&state.outboxes[request.origin], request, 1, amount_of(state, key))


cdef int handle_relocation(relocation_t* relocation, int32_t source, frame_t* frame) noexcept nogil:
    """Do what one message about keys that are not replicated asks for; errors as in `handle_frame`."""
    cdef rank_t* state = relocation.state
    if frame.kind == PULL:
        return on_pull(relocation, source, frame)
    if frame.kind == PULL_REPLY or frame.kind == LOCATE_REPLY:
        return on_reply(state, frame)
    if frame.kind == PUSH or frame.kind == SET or frame.kind == GRADIENT:
        return change_keys(relocation, source, frame, <char*>(frame + 1), frame.count)
    if frame.kind == ACK:
        return on_ack(state, frame)
    if frame.kind == LOCALIZE:
        return on_localize(relocation, source, frame)
    if frame.kind == CONTENDED:
        return on_contended(relocation, source, frame)
    if frame.kind == HAND_OVER:
        return on_hand_over(relocation, source, frame)
    if frame.kind == TRANSFER or frame.kind == TRANSFER_ZERO:
        return on_transfer(relocation, source, frame)
    if frame.kind == LOCATE:
        return on_locate(state, frame)
    return protocol_error(state, source, "a message of unknown kind", frame.kind)


# Memory ----------------------------------------------------------------------------------------------------

cdef int prepare_relocation(relocation_t* relocation, rank_t* state) noexcept:
    """Allocate what a zeroed one needs; `free_relocation` also frees one that was prepared in part."""
    relocation.state = state
    return prepare_arrivals(&relocation.arrivals, state.store.num_keys)


cdef void free_relocation(relocation_t* relocation) noexcept:
    cdef key_t key
    if relocation.arrivals.open:  # of a server that failed: what waits is never answered
        for key in range(relocation.state.store.num_keys):
            if relocation.state.store.entries[key].state == ARRIVING:
                forget_arrival(arrival_at(&relocation.arrivals, relocation.state.store.entries[key].slot))
    free_arrivals(&relocation.arrivals)
