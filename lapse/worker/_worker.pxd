"""Floor 4. What one worker thread may ask for, from Python and, as the C-level door, from kernels."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from lapse._comm cimport Comm, ready_t
from lapse.protocol._protocol cimport protocol_t
from lapse.sampling._sampling cimport Sampler, sample_t
from lapse._store cimport Store, store_t
from lapse.base._types cimport counters_t, key_t, operation_t, worker_slot_t


cdef class Operation:
    cdef Worker worker
    cdef operation_t* c     # NULL once it is done
    cdef object result
    cdef object kept        # arrays whose memory the operation reads or writes

    cdef bint is_done(self) noexcept


cdef class Worker:
    cdef object __weakref__
    cdef object server
    cdef Comm comm
    cdef Store store_object
    cdef store_t* store
    cdef protocol_t* protocol
    cdef worker_slot_t* worker_slot
    cdef counters_t* counters       # where calls count: the worker slot's, or aside while a sample is at work
    cdef Sampler sampler            # the worker slot's; None without sampling
    cdef object open_operations     # deque of operations that may not be done
    cdef Operation nothing          # a finished operation without a result
    cdef object dtype
    cdef object generator
    cdef object interrupt           # what a signal handler raised while a call held no GIL
    cdef int64_t length             # elements per value; -1 where it varies
    cdef unsigned long thread
    cdef bint any_thread
    cdef bint holds_messages
    cdef bint retired
    cdef readonly int id
    cdef readonly int rank
    cdef readonly int num_workers

    # The C-level door. Every function raises as its Python twin does, and may be called without the
    # GIL. `operation` receives a handle for `wait_for`, or NULL where the call is done already;
    # without a place for it nobody waits for this one (`wait_everything` and the end of `run` do).
    # `keys`, `updates` and `values` may be reused on return; `out` is written until the operation
    # is waited for or cancelled, so that memory must live until then, on error paths too.
    # The keys of one `set_keys` must differ (from Python the last occurrence is chosen).
    cdef int pull_keys(self, const key_t* keys, Py_ssize_t count, void* out,
                       operation_t** operation) except -1 nogil
    cdef int push_keys(self, const key_t* keys, Py_ssize_t count, const void* updates,
                       operation_t** operation) except -1 nogil
    cdef int set_keys(self, const key_t* keys, Py_ssize_t count, const void* values,
                      operation_t** operation) except -1 nogil
    cdef int localize_keys(self, const key_t* keys, Py_ssize_t count, operation_t** operation) except -1 nogil
    cdef int wait_for(self, operation_t* operation) except -1 nogil
    cdef bint test_for(self, operation_t* operation) noexcept nogil
    cdef int sync_replicas(self) except -1 nogil
    cdef int wait_everything(self) except -1 nogil
    cdef void cancel(self, operation_t* operation) noexcept nogil
    # Between these two calls nothing is sent on purpose (whoever waits still sends what is queued): the requests of
    # several calls for the same rank go in one message.
    cdef void hold_messages(self) noexcept nogil
    cdef void release_messages(self) noexcept nogil

    # Samples. `prepare_sample_of` gives a handle, never negative, and localizes what its scheme draws
    # ahead. `pull_sample_of` takes the next `count` of them: `keys` are filled when it returns, `out`
    # receives their values in the same order, one after another, and `operation` is as above. Where
    # lengths vary, `out` needs room for `count` of the longest. A handle is finished by
    # `finish_sample_of`, or with the worker.
    cdef int64_t prepare_sample_of(self, Py_ssize_t count) except -1 nogil
    cdef int pull_sample_of(self, int64_t sample, Py_ssize_t count, key_t* keys, void* out,
                            operation_t** operation) except -1 nogil
    # `choose_sample_of` takes the next ones without their values, for those who pull each key once, together with
    # others: the keys count as sampled here, and as local if they are here now; pulling them counts as any pull.
    cdef int choose_sample_of(self, int64_t sample, Py_ssize_t count, key_t* keys) except -1 nogil
    cdef int finish_sample_of(self, int64_t sample) except -1 nogil

    cdef void nudge(self, int64_t keys) noexcept nogil
    cdef int enter(self) except -1
    cdef object begin(self, keys)
    cdef int sweep(self) except -1
    cdef int may_start(self, operation_t** operation) noexcept nogil
    cdef int start(self, int kind, const key_t* keys, Py_ssize_t count, char* out, const char* given,
                   operation_t** operation) noexcept nogil
    cdef int start_chunk(self, operation_t** operation, int kind, const key_t* keys, Py_ssize_t first,
                         Py_ssize_t end, int64_t* offsets, char* out, const char* given,
                         Py_ssize_t count) noexcept nogil
    cdef int ask_elsewhere(self, operation_t* operation, const key_t* keys, Py_ssize_t first, int64_t misses,
                           const int64_t* offsets, const char* given) noexcept nogil
    cdef int start_localize(self, const key_t* keys, Py_ssize_t count, operation_t** operation) noexcept nogil
    cdef int localize_chunk(self, operation_t** operation, const key_t* keys, Py_ssize_t size,
                            Py_ssize_t count) noexcept nogil
    cdef sample_t* find_sample(self, int64_t sample, Py_ssize_t count) except NULL nogil
    cdef int fill_sample(self, sample_t* sample) noexcept nogil
    cdef int localize_ahead(self, const key_t* keys, int64_t count) noexcept nogil
    cdef int start_local(self, key_t* keys, Py_ssize_t count, char* out, operation_t** operation) noexcept nogil
    cdef int start_local_chunk(self, operation_t** operation, key_t* keys, Py_ssize_t first, Py_ssize_t end,
                               int64_t* offsets, char* out, Py_ssize_t count) noexcept nogil
    cdef int start_locate(self, const key_t* keys, Py_ssize_t count, char* out, operation_t** operation) noexcept nogil
    cdef operation_t* new_operation(self, int kind, int64_t count, char* out) noexcept nogil
    cdef void give_back(self, operation_t* operation) noexcept nogil
    cdef void detach(self, operation_t* operation) noexcept nogil
    cdef void let_go(self, operation_t* operation, operation_t** handle) noexcept nogil
    cdef void settle(self, operation_t* operation, operation_t** handle) noexcept nogil
    cdef void reuse_detached(self) noexcept nogil
    cdef int64_t* new_offsets(self, const key_t* keys, Py_ssize_t count) noexcept nogil
    cdef int make_room(self) noexcept nogil
    cdef int wait_for_round(self) noexcept nogil
    cdef bint is_interrupted(self) noexcept with gil
    cdef int first_bad_key(self, const key_t* keys, Py_ssize_t count) except -1 nogil
    cdef int block(self, ready_t ready, void* what, int64_t deadline) except -1 nogil
    cdef int check(self, int status) except -1 nogil
    cdef int check_sampling(self) except -1 nogil
    cdef int raise_status(self, int status) except -1
