"""Floor 4. The C-level door: the calls of a worker as kernels make them, without the GIL."""

from libc.stdint cimport int64_t, uint32_t

from lapse.worker._borrower cimport Borrower
from lapse.base._types cimport key_t, operation_t


cdef class Door(Borrower):
    # What may be borrowed is in `Borrower`. Every function raises as its Python twin does, and may be called without
    # the GIL. `operation` receives a handle for `wait_for`, or NULL if the call is done already;
    # without a place for it nobody waits for this one (`wait_everything` and the end of `run` do).
    # `keys`, `updates`, `gradients` and `values` may be reused on return; `out` is written until the operation
    # is waited for or cancelled, so that memory must live until then, on error paths too.
    # A call by another thread than the worker's, in a forked child, or after the worker's run raises; those that cannot
    # raise do nothing then, and `test_for` says that `wait_for` would not wait.
    # The keys of one `set_keys` must differ (from Python the last occurrence is chosen).
    cdef int pull_keys(self, const key_t* keys, Py_ssize_t count, void* out,
                       operation_t** operation) except -1 nogil
    cdef int push_keys(self, const key_t* keys, Py_ssize_t count, const void* updates,
                       operation_t** operation) except -1 nogil
    # `weights` has one number for each key; see `push`.
    cdef int push_weighted_keys(self, const key_t* keys, Py_ssize_t count, const void* updates, const float* weights,
                                operation_t** operation) except -1 nogil
    cdef int set_keys(self, const key_t* keys, Py_ssize_t count, const void* values,
                      operation_t** operation) except -1 nogil
    # `rate` is the learning rate, at least 0; NaN: that of each key's optimizer. `step` is the number of the caller's
    # step; 0: each value counts its own, as in `apply_gradients_to`. See `apply_gradients`.
    cdef int apply_gradients_to(self, const key_t* keys, Py_ssize_t count, const void* gradients, double rate,
                                operation_t** operation) except -1 nogil
    cdef int apply_gradients_of_step(self, const key_t* keys, Py_ssize_t count, const void* gradients, double rate,
                                     uint32_t step, operation_t** operation) except -1 nogil
    cdef int localize_keys(self, const key_t* keys, Py_ssize_t count, operation_t** operation) except -1 nogil
    cdef int wait_for(self, operation_t* operation) except -1 nogil
    cdef bint test_for(self, operation_t* operation) noexcept nogil
    cdef int sync_replicas(self) except -1 nogil
    cdef int wait_everything(self) except -1 nogil
    cdef void cancel(self, operation_t* operation) noexcept nogil
    # Between these two calls nothing is sent on purpose (a waiting thread still sends what is queued): the requests of
    # several calls for the same rank go in one message.
    cdef void hold_messages(self) noexcept nogil
    cdef void release_messages(self) noexcept nogil

    # Samples. `prepare_sample_of` gives a handle, never negative, and localizes what its scheme draws
    # ahead. `pull_sample_of` takes the next `count` of them: `keys` are filled when it returns, `out`
    # receives their values in the same order, one after another, and `operation` is as above. If
    # lengths vary, `out` needs room for `count` of the longest. A handle is finished by
    # `finish_sample_of`, or with the worker.
    cdef int64_t prepare_sample_of(self, Py_ssize_t count) except -1 nogil
    cdef int pull_sample_of(self, int64_t sample, Py_ssize_t count, key_t* keys, void* out,
                            operation_t** operation) except -1 nogil
    # `choose_sample_of` takes the next ones without their values, for kernels that pull each key once, together with
    # others: the keys count as sampled here, and as local if they are here now; pulling them counts as any pull.
    cdef int choose_sample_of(self, int64_t sample, Py_ssize_t count, key_t* keys) except -1 nogil
    cdef int finish_sample_of(self, int64_t sample) except -1 nogil

    # For the Python calls.
    cdef int check_sampling(self) except -1 nogil
    cdef Py_ssize_t check_sample_size(self, object size, str name) except -1
