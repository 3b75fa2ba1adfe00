"""Floor 4. How the calls of a worker start, without the GIL.

What can be done here is done; other ranks are asked for the rest.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from lapse.worker._arrays import outside

from lapse.communication._failure cimport is_broken
from lapse.messaging._operations cimport complete
from lapse.protocol._protocol cimport ask, ask_location, localize
from lapse.protocol._rounds cimport note_pushes, request_sync, runs_ahead
from lapse.sampling._sampler cimport batch_t
from lapse._store cimport access_batch, find_unreachable, slab_for, value_bytes
from lapse.worker._shared_access cimport access_shared
from lapse.worker._slot_operations cimport new_operation, reuse_detached, settle
from lapse.worker._sums cimport free_sums, sum_repeated
from lapse.worker._waiter cimport has_room
from lapse.base._counting cimport add_to
from lapse.base._sync cimport fetch_add, load, load32, store32
from lapse.base._types cimport (CLOSED, FAILED, GRADIENT, LOCALIZE, LOCATE, NO_MEMORY, OK, PULL, PUSH, terms_of,
                                terms_t, worker_slot_t)

cdef int64_t CHUNK_BYTES = 1 << 20          # of values in one part of a call; between parts flow control is tested
cdef Py_ssize_t MAX_KEYS_OF_CALL = 0xFFFFFFFF  # positions are 32 bits in messages
cdef int64_t MOST_SHARES = 16               # of a chunk
cdef Py_ssize_t KEYS_LOOKED_AT = 1 << 16    # of a localize in one go


cdef inline call_t new_call(int kind, const key_t* keys, Py_ssize_t count, counters_t* counters) noexcept nogil:
    cdef call_t call
    call.kind = kind
    call.keys = <key_t*>keys
    call.count = count
    call.given = NULL
    call.weights = NULL
    call.terms = terms_of(1)
    call.out = NULL
    call.counters = counters
    call.is_sample = call.is_scattered = False
    call.offsets = NULL
    call.operation = NULL
    return call


cdef class Caller(Waiter):
    """One thread that makes calls. Nothing of it is for users."""

    def __dealloc__(self):
        free_sums(&self.sums)

    # The kinds of calls -----------------------------------------------------------------------------------------------

    cdef int start_pull(self, const key_t* keys, Py_ssize_t count, char* out, operation_t** handle) noexcept nogil:
        cdef call_t call = new_call(PULL, keys, count, &self.worker_slot.counters)
        call.out = out
        return self.issue(&call, handle)

    cdef int start_change(self, int kind, const key_t* keys, Py_ssize_t count, const char* given,
                          const float* weights, operation_t** handle) noexcept nogil:
        cdef call_t call = new_call(kind, keys, count, &self.worker_slot.counters)
        call.given = given
        call.weights = weights
        return self.issue(&call, handle)

    cdef int start_gradients(self, const key_t* keys, Py_ssize_t count, const char* gradients, terms_t terms,
                             bint are_distinct, operation_t** handle) noexcept nogil:
        """Take a step with each distinct key's gradient; those of repeated keys are summed first."""
        cdef call_t call = new_call(GRADIENT, keys, count, &self.worker_slot.counters)
        cdef int64_t distinct
        cdef int status = self.make_offsets(&call)
        if handle != NULL:
            handle[0] = NULL
        if status != OK:
            return status
        distinct = count
        if not are_distinct:
            distinct = sum_repeated(&self.sums, self.store, keys, count, gradients, &call.offsets)
        if distinct < 0:
            free(call.offsets)
            return NO_MEMORY
        if distinct < count:
            call.keys = self.sums.keys
            call.count = distinct
            call.is_scattered = True
        call.given = gradients
        call.terms = terms
        return self.issue(&call, handle)

    cdef int start_localize(self, const key_t* keys, Py_ssize_t count, operation_t** handle) noexcept nogil:
        cdef call_t call = new_call(LOCALIZE, keys, count, &self.worker_slot.counters)
        return self.issue_localize(&call, handle)

    cdef int start_locate(self, const key_t* keys, Py_ssize_t count, char* out, operation_t** handle) noexcept nogil:
        """Ask homes for the owners of keys; `out` receives one int32 for each."""
        cdef operation_t* operation = new_operation(self.worker_slot, LOCATE, count, out)
        cdef Py_ssize_t i
        cdef int64_t done = 0
        cdef int status = OK
        handle[0] = NULL
        if operation == NULL:
            return NO_MEMORY
        fetch_add(&operation.pending, count)
        for i in range(count):
            status = ask_location(self.protocol, operation, keys[i], <uint32_t>i, &done)
            if status != OK:
                complete(operation, count - i)
                break
        complete(operation, done)
        settle(operation, handle if status == OK else NULL)
        return status

    cdef int start_sampled_pull(self, sample_t* sample, key_t* keys, Py_ssize_t count, char* out,
                                operation_t** handle) noexcept nogil:
        """Pull the next keys of a sample. They count as sampled, not as pulled."""
        cdef counters_t counted
        cdef call_t call = new_call(PULL, keys, count, &counted)
        cdef int status
        memset(&counted, 0, sizeof(counters_t))
        call.out = out
        call.is_sample = True
        self.sampler.hand_out(sample, self.store, keys, count)
        status = self.issue(&call, handle)
        add_to(&self.worker_slot.counters.sampled_keys, counted.pulled_keys)
        add_to(&self.worker_slot.counters.sampled_local, counted.pulled_local)
        return status

    cdef void choose_keys(self, sample_t* sample, key_t* keys, Py_ssize_t count) noexcept nogil:
        """Take the next keys of a sample without their values."""
        self.sampler.hand_out(sample, self.store, keys, count)
        add_to(&self.worker_slot.counters.sampled_local, self.sampler.count_here(self.store, keys, count))
        add_to(&self.worker_slot.counters.sampled_keys, count)

    cdef int64_t open_sample(self, Py_ssize_t count) except -1 nogil:
        """The handle of a new sample of `count` keys, which its scheme may draw ahead."""
        cdef int64_t number = self.sampler.open(count)
        cdef int status
        if number < 0:
            self.check(NO_MEMORY)
        status = self.fill_sample(self.sampler.find(number))
        if status != OK:
            self.sampler.close(self.sampler.find(number))
        self.check(status)
        return number

    cdef int fill_sample(self, sample_t* sample) noexcept nogil:
        """Let the scheme draw ahead, and localize what it draws.

        That is not counted: a sampled key counts when it is pulled.
        """
        cdef counters_t aside
        cdef batch_t batch
        cdef call_t call
        cdef int status = OK
        while status == OK and self.sampler.draw_ahead(sample, &batch):
            call = new_call(LOCALIZE, batch.keys, batch.count, &aside)
            status = self.issue_localize(&call, NULL)
        return status

    cdef int sync_all_replicas(self) except -1 nogil:
        cdef int64_t last_round = 0
        if self.store.replicas.count == 0:
            return 0
        self.check(request_sync(&self.protocol.replication.rounds, &last_round))
        return self.block_on_round(last_round)

    cdef int64_t read_if_here(self, const key_t* keys, Py_ssize_t count, char* out) except -1 nogil:
        """Read what is here without asking anybody; how many keys are not."""
        cdef call_t call = new_call(PULL, keys, count, NULL)
        cdef tally_t tally
        cdef int64_t misses
        call.out = out
        self.check(make_scratch(self.worker_slot, count))
        self.check(self.make_offsets(&call))
        misses = access_batch(self.store, PULL, keys, count, call.offsets, out, NULL, call.terms,
                              self.worker_slot.missed, &tally)
        free(call.offsets)
        return misses

    # Pulls and changes ------------------------------------------------------------------------------------------------

    cdef int may_start(self, operation_t** handle) noexcept nogil:
        """Why a call cannot be made now; OK if it can. It has no handle yet."""
        if handle != NULL:
            handle[0] = NULL
        if is_broken(self.comm.failure):
            return FAILED
        if load32(&self.comm.ending):
            return CLOSED
        reuse_detached(self.worker_slot)
        return OK

    cdef int issue(self, call_t* call, operation_t** handle) noexcept nogil:
        """Carry out what can be done here, and ask other ranks for the rest, in chunks."""
        cdef Py_ssize_t first = 0, end, step
        cdef int status = self.may_start(handle)
        if status == OK:
            status = self.make_offsets(call)
        if status != OK:
            free(call.offsets)
            return status
        step = self.chunk_step(call)
        while first < call.count and status == OK:
            end = self.chunk_end(call, first, step)
            status = self.issue_chunk(call, first, end)
            first = end
        if call.operation != NULL:
            if call.kind == PULL:
                call.offsets = NULL  # they belong to the operation now
                if status != OK:
                    self.comm.cancel(call.operation)  # the caller raises, and lets go of `out`
            settle(call.operation, handle if status == OK else NULL)
        self.nudge(call.count)
        free(call.offsets)
        return status

    cdef int issue_chunk(self, call_t* call, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
        cdef tally_t tally
        cdef Py_ssize_t size = end - first
        cdef int64_t misses
        cdef int status
        if not has_room(self.protocol):
            status = self.wait_for_room()
            if status != OK:
                return status
        if changes_replicas(call) and runs_ahead(&self.protocol.replication.rounds):
            status = self.wait_for_round()
            if status != OK:
                return status
        if make_scratch(self.worker_slot, size) != OK:
            return NO_MEMORY
        tally.shared = tally.replicated = 0
        misses = self.access_here(call, first, size, &tally)
        if tally.replicated:
            status = note_pushes(&self.protocol.replication.rounds, tally.replicated)
            if status != OK:
                return status
        count_chunk(call, size, misses, tally.shared)
        if misses == 0:
            return OK
        if call.operation == NULL and self.begin_operation(call) != OK:
            return NO_MEMORY
        return self.ask_elsewhere(call, first, misses)

    cdef inline int64_t access_here(self, call_t* call, Py_ssize_t first, Py_ssize_t size,
                                    tally_t* tally) noexcept nogil:
        """Carry out what can be done here; how many keys are elsewhere, their positions in the slot's `missed`."""
        cdef int64_t* offsets = NULL if call.offsets == NULL else call.offsets + first
        cdef size_t shift = 0 if call.offsets != NULL else first * self.store.slabs[0].row_bytes
        cdef const float* weights = NULL
        if call.weights != NULL:
            weights = call.weights + first
        if call.is_sample:
            return self.sampler.read_here(self.store, call.keys + first, size, offsets, call.out + shift,
                                          self.worker_slot.missed, tally)
        return access_shared(self.threads, self.store, call.kind, call.keys + first, size, offsets,
                             (call.out if call.kind == PULL else <char*>call.given) + shift,
                             weights, call.terms, self.worker_slot.missed, tally)

    cdef int begin_operation(self, call_t* call) noexcept nogil:
        call.operation = new_operation(self.worker_slot, call.kind, call.count, call.out)
        if call.operation == NULL:
            return NO_MEMORY
        call.operation.terms = call.terms
        if call.kind == PULL:
            call.operation.offsets = call.offsets
            call.operation.offsets_have_ends = not call.is_scattered
        return OK

    cdef int ask_elsewhere(self, call_t* call, Py_ssize_t first, int64_t misses) noexcept nogil:
        """Ask other ranks for the keys that the chunk from `first` on has missed."""
        cdef operation_t* operation = call.operation
        cdef int64_t i, position, done = 0, parked = 0
        cdef const char* value = NULL
        cdef size_t row_bytes = self.store.slabs[0].row_bytes
        cdef int status = OK
        fetch_add(&operation.pending, misses)
        if misses:
            operation.asked_key = call.keys[first + self.worker_slot.missed[0]]
        for i in range(misses):
            position = first + self.worker_slot.missed[i]
            if call.given != NULL:
                value = call.given + (position * row_bytes if call.offsets == NULL else call.offsets[position])
            status = ask(self.protocol, operation, call.keys[position], <uint32_t>position, value, &done, &parked)
            if status != OK:
                complete(operation, misses - i)
                break
        complete(operation, done)
        count_asked(call, done, parked)
        return status

    # Localizes --------------------------------------------------------------------------------------------------------

    cdef int issue_localize(self, call_t* call, operation_t** handle) noexcept nogil:
        cdef Py_ssize_t first = 0
        cdef int status = self.may_start(handle)
        if status != OK:
            return status
        add_to(&call.counters.localize_keys, call.count)
        while first < call.count and status == OK:
            status = self.localize_chunk(call, first, min(call.count - first, KEYS_LOOKED_AT))
            first += KEYS_LOOKED_AT
        if call.operation != NULL:
            settle(call.operation, handle if status == OK else NULL)
            self.nudge(call.count)
        return status

    cdef int localize_chunk(self, call_t* call, Py_ssize_t first, Py_ssize_t size) noexcept nogil:
        cdef const key_t* keys = call.keys + first
        cdef int64_t misses, i, done = 0, declined = 0
        cdef int status = OK
        if make_scratch(self.worker_slot, size) != OK:
            return NO_MEMORY
        # A look without the latch: a key may leave at any moment anyway.
        misses = find_unreachable(self.store, keys, size, self.worker_slot.missed)
        add_to(&call.counters.localize_local, size - misses)
        if misses == 0:
            return OK
        if call.operation == NULL and self.begin_operation(call) != OK:
            return NO_MEMORY
        call.operation.asked_key = keys[self.worker_slot.missed[0]]
        for i in range(misses):
            if not has_room(self.protocol):
                status = self.wait_for_room()
                if status != OK:
                    break
            fetch_add(&call.operation.pending, 1)
            status = localize(self.protocol, call.operation, keys[self.worker_slot.missed[i]], &done, &declined)
            if status != OK:
                complete(call.operation, 1)
                break
        complete(call.operation, done + declined)
        add_to(&call.counters.localize_local, done)
        return status

    # Chunks and offsets -----------------------------------------------------------------------------------------------

    cdef inline bint chooses_keys(self, const call_t* call) noexcept nogil:
        return call.is_sample and self.sampler.chooses_among_local

    cdef inline bint has_ends(self, const call_t* call) noexcept nogil:
        """Whether the values lie one after another, and the offsets are known."""
        return call.offsets != NULL and not call.is_scattered and not self.chooses_keys(call)

    cdef inline int64_t chunk_bytes(self) noexcept nogil:
        """Of values in one chunk: more if threads are to share it."""
        return CHUNK_BYTES * min(self.threads.helpers + 1, MOST_SHARES)

    cdef inline Py_ssize_t chunk_step(self, const call_t* call) noexcept nogil:
        """How many keys a chunk has at most."""
        cdef Py_ssize_t step
        cdef int64_t most = load(&self.protocol.replication.rounds.common.max_pending)  # it may change
        if self.has_ends(call):
            step = self.chunk_bytes()  # `chunk_end` adds lengths up
        else:
            step = max(1, self.chunk_bytes() // <int64_t>max_value_bytes(self.store))
        if changes_replicas(call) and self.store.replicas.count and most:
            step = min(step, most)  # whether to wait is tested before each chunk
        return step

    cdef inline Py_ssize_t chunk_end(self, const call_t* call, Py_ssize_t first, Py_ssize_t step) noexcept nogil:
        cdef Py_ssize_t end
        cdef int64_t most = self.chunk_bytes()
        if not self.has_ends(call):
            return min(first + step, call.count)
        end = first + 1
        while end < call.count and end - first < step and call.offsets[end + 1] - call.offsets[first] <= most:
            end += 1
        return end

    cdef inline int make_offsets(self, call_t* call) noexcept nogil:
        """If lengths vary: where each value begins, in bytes, and the end of the last.

        Of keys that a sampler chooses only the first offset is known; the others follow as it chooses.
        """
        cdef Py_ssize_t i
        if self.length >= 0 or call.offsets != NULL:
            return OK
        call.offsets = <int64_t*>malloc((call.count + 1) * sizeof(int64_t))
        if call.offsets == NULL:
            return NO_MEMORY
        call.offsets[0] = 0
        if not self.chooses_keys(call):
            for i in range(call.count):
                call.offsets[i + 1] = call.offsets[i] + <int64_t>value_bytes(self.store, call.keys[i])
        return OK

    # Helpers ----------------------------------------------------------------------------------------------------------

    cdef int first_bad_key(self, const key_t* keys, Py_ssize_t count) except -1 nogil:
        """Raise for the first key that is outside the range, or for more keys than a call may have."""
        cdef Py_ssize_t i
        if count > MAX_KEYS_OF_CALL:
            with gil:
                raise ValueError(f"a call with {count} keys, but it may have at most {MAX_KEYS_OF_CALL}: "
                                 "divide it into several")
        for i in range(count):
            if <unsigned long long>keys[i] >= <unsigned long long>self.store.num_keys:
                with gil:
                    raise IndexError(outside(keys[i], self.store.num_keys))
        return 0

    cdef int first_without_optimizer(self, const key_t* keys, Py_ssize_t count) except -1 nogil:
        """Raise for the first key whose gradients cannot be applied."""
        cdef Py_ssize_t i
        if self.store.takes_gradients:
            return 0
        for i in range(count):
            if slab_for(self.store, keys[i]).optimizer == NULL:
                with gil:
                    raise ValueError(f"gradients cannot be applied to key {keys[i]}, which has no optimizer: create "
                                     "the server with Server(..., optimizer=lapse.optim.Adagrad()), or its table with "
                                     "lapse.Table(..., optimizer=...); push adds to a value")
        return 0

    cdef inline void nudge(self, int64_t keys) noexcept nogil:
        cdef uint32_t* has_news = &self.protocol.replication.rounds.has_news
        cdef bint is_urgent = load32(has_news)
        if self.holds_messages:
            return
        if is_urgent:
            store32(has_news, 0)
        self.comm.nudge(self.worker_slot, keys, is_urgent)


cdef inline bint changes_replicas(const call_t* call) noexcept nogil:
    """Whether the call may change replicas here, to be sent in the next round."""
    return call.kind == PUSH or call.kind == GRADIENT


cdef inline void count_chunk(call_t* call, int64_t size, int64_t misses, int64_t shared) noexcept nogil:
    if call.kind == PULL:
        add_to(&call.counters.pulled_keys, size)
        add_to(&call.counters.pulled_local, size - misses)
        add_to(&call.counters.pulled_shared, shared)
    else:
        add_to(&call.counters.pushed_keys, size)
        add_to(&call.counters.pushed_local, size - misses)
        add_to(&call.counters.pushed_shared, shared)


cdef inline void count_asked(call_t* call, int64_t done, int64_t parked) noexcept nogil:
    if call.kind == PULL:
        add_to(&call.counters.pulled_local, done)
        add_to(&call.counters.pulled_in_transit, parked)
    else:
        add_to(&call.counters.pushed_local, done)
        add_to(&call.counters.pushed_in_transit, parked)


cdef int make_scratch(worker_slot_t* worker_slot, int64_t count) noexcept nogil:
    """Let `missed` have room for `count` positions."""
    if worker_slot.missed_capacity >= count:
        return OK
    free(worker_slot.missed)
    worker_slot.missed_capacity = 0
    worker_slot.missed = <uint32_t*>malloc(count * sizeof(uint32_t))
    if worker_slot.missed == NULL:
        return NO_MEMORY
    worker_slot.missed_capacity = count
    return OK
