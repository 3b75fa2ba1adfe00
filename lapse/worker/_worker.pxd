"""Floor 4. What one worker thread may ask for: from Python, and from kernels by the C-level door declared here."""

from libc.stdint cimport int64_t

from lapse.worker._caller cimport Caller
from lapse.worker._operation cimport Operation
from lapse.base._types cimport key_t, operation_t


cdef class Worker(Caller):
    cdef object __weakref__
    cdef object group               # a WorkerGroup
    cdef Operation nothing          # a finished operation without a result
    cdef object dtype
    cdef object generator
    cdef readonly int num_workers

    # The C-level door. Every function raises as its Python twin does, and may be called without the
    # GIL. `operation` receives a handle for `wait_for`, or NULL if the call is done already;
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

    # What the Python calls share.
    cdef int enter(self) except -1
    cdef object begin(self, keys)
    cdef object change(self, int kind, keys, given, name)
    cdef object shape_for(self, keys)
    cdef object elements_for(self, keys)
    cdef int check_sampling(self) except -1 nogil
