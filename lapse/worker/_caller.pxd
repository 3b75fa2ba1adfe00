"""Floor 4. How the calls of a worker start, without the GIL.

What can be done here is done; other ranks are asked for the rest.
Every call is described by one `call_t`, on the stack of the function that makes it.
"""

from libc.stdint cimport int64_t

from lapse.sampling._sampler cimport Sampler, sample_t
from lapse._store cimport Store, store_t, tally_t
from lapse.worker._call_threads cimport CallThreads
from lapse.worker._sums cimport sums_t
from lapse.worker._waiter cimport Waiter
from lapse.base._types cimport counters_t, key_t, operation_t, terms_t


cdef struct call_t:
    int kind
    key_t* keys             # written only if a sampler chooses them
    Py_ssize_t count
    const char* given       # the values of a push or set
    const float* weights    # of the updates of a push, for replicas; NULL: each counts once
    terms_t terms           # of gradients
    char* out               # of a pull or locate
    counters_t* counters    # where the call counts
    bint is_sample          # the sampler reads what is here
    bint is_scattered       # `offsets` are in no order
    # Filled while the call starts.
    int64_t* offsets        # of the values, in bytes; NULL if all have one length
    operation_t* operation  # NULL until something is elsewhere


cdef inline size_t max_value_bytes(const store_t* store) noexcept nogil:
    return store.slabs[store.num_slabs - 1].row_bytes  # slabs are ordered by length


cdef class Caller(Waiter):
    cdef Store store_object
    cdef store_t* store
    cdef Sampler sampler            # the worker slot's; None without sampling
    cdef int64_t length             # elements per value; -1 if it varies
    cdef CallThreads threads        # of this rank, which its workers share
    cdef bint holds_messages
    cdef sums_t sums                # of gradients

    # These start a call. `handle` receives the operation, or NULL if the call is done already.
    cdef int start_pull(self, const key_t* keys, Py_ssize_t count, char* out, operation_t** handle) noexcept nogil
    cdef int start_change(self, int kind, const key_t* keys, Py_ssize_t count, const char* given,
                          const float* weights, operation_t** handle) noexcept nogil
    cdef int start_gradients(self, const key_t* keys, Py_ssize_t count, const char* gradients, terms_t terms,
                             bint are_distinct, operation_t** handle) noexcept nogil
    cdef int start_localize(self, const key_t* keys, Py_ssize_t count, operation_t** handle) noexcept nogil
    cdef int start_locate(self, const key_t* keys, Py_ssize_t count, char* out, operation_t** handle) noexcept nogil
    cdef int start_sampled_pull(self, sample_t* sample, key_t* keys, Py_ssize_t count, char* out,
                                operation_t** handle) noexcept nogil
    cdef void choose_keys(self, sample_t* sample, key_t* keys, Py_ssize_t count) noexcept nogil
    cdef int64_t open_sample(self, Py_ssize_t count) except -1 nogil
    cdef int fill_sample(self, sample_t* sample) noexcept nogil
    cdef int sync_all_replicas(self) except -1 nogil
    cdef int64_t read_if_here(self, const key_t* keys, Py_ssize_t count, char* out) except -1 nogil
    cdef int first_bad_key(self, const key_t* keys, Py_ssize_t count) except -1 nogil
    cdef int first_without_optimizer(self, const key_t* keys, Py_ssize_t count) except -1 nogil
    cdef void nudge(self, int64_t keys) noexcept nogil

    cdef int may_start(self, operation_t** handle) noexcept nogil
    cdef int issue(self, call_t* call, operation_t** handle) noexcept nogil
    cdef int issue_chunk(self, call_t* call, Py_ssize_t first, Py_ssize_t end) noexcept nogil
    cdef int64_t access_here(self, call_t* call, Py_ssize_t first, Py_ssize_t size, tally_t* tally) noexcept nogil
    cdef int ask_elsewhere(self, call_t* call, Py_ssize_t first, int64_t misses) noexcept nogil
    cdef int issue_localize(self, call_t* call, operation_t** handle) noexcept nogil
    cdef int localize_chunk(self, call_t* call, Py_ssize_t first, Py_ssize_t size) noexcept nogil
    cdef bint chooses_keys(self, const call_t* call) noexcept nogil
    cdef bint has_ends(self, const call_t* call) noexcept nogil
    cdef int64_t chunk_bytes(self) noexcept nogil
    cdef Py_ssize_t chunk_step(self, const call_t* call) noexcept nogil
    cdef Py_ssize_t chunk_end(self, const call_t* call, Py_ssize_t first, Py_ssize_t step) noexcept nogil
    cdef int make_offsets(self, call_t* call) noexcept nogil
    cdef int begin_operation(self, call_t* call) noexcept nogil
