# cython: language_level=3
"""A kernel outside the package: it reaches the worker through ``cimport lapse`` alone."""

cimport lapse


def push_twice_and_pull(
    lapse.Worker kv, lapse.key_t[::1] keys, float[:, ::1] updates, float[:, ::1] out
):
    """Add `updates` twice to `keys`, localize them and read them into `out`, without the GIL."""
    cdef Py_ssize_t n = keys.shape[0]
    cdef lapse.operation_t* pushed = NULL
    cdef lapse.operation_t* pulled = NULL
    with nogil:
        kv.push_keys(&keys[0], n, &updates[0, 0], &pushed)
        kv.wait_for(pushed)
        kv.push_keys(&keys[0], n, &updates[0, 0], NULL)  # nobody waits for this one
        kv.localize_keys(&keys[0], n, NULL)
        kv.wait_everything()
        kv.pull_keys(&keys[0], n, &out[0, 0], &pulled)
        kv.wait_for(pulled)


def put(lapse.Worker kv, lapse.key_t[::1] keys, float[:, ::1] values):
    """Replace the values of `keys`, without the GIL."""
    cdef lapse.operation_t* op = NULL
    with nogil:
        kv.set_keys(&keys[0], keys.shape[0], &values[0, 0], &op)
        kv.wait_for(op)


def pull_and_cancel(lapse.Worker kv, lapse.key_t[::1] keys, float[:, ::1] out, int times):
    """Pull and change one's mind: what `out` holds after the last cancel must stay."""
    cdef lapse.operation_t* op = NULL
    cdef int _i
    cdef Py_ssize_t row
    with nogil:
        for _i in range(times):
            kv.pull_keys(&keys[0], keys.shape[0], &out[0, 0], &op)
            kv.cancel(op)
            for row in range(out.shape[0]):
                out[row, 0] = -1
        kv.wait_everything()


def sample(lapse.Worker kv, lapse.key_t[::1] keys, float[:, ::1] out, int times):
    """Pull a sample of twice as many keys as there is room for, in two parts; `out` gets the second."""
    cdef lapse.operation_t* op = NULL
    cdef Py_ssize_t n = keys.shape[0]
    cdef long long handle
    cdef int _i
    with nogil:
        for _i in range(times):
            handle = kv.prepare_sample_of(2 * n)
            kv.pull_sample_of(handle, n, &keys[0], &out[0, 0], NULL)
            kv.wait_everything()
            kv.pull_sample_of(handle, n, &keys[0], &out[0, 0], &op)
            kv.wait_for(op)
            kv.finish_sample_of(handle)


def pull_too_many(lapse.Worker kv, lapse.key_t[::1] keys, float[:, ::1] out):
    """Ask a sample for more than it has, which raises."""
    cdef long long handle = kv.prepare_sample_of(keys.shape[0] - 1)
    with nogil:
        kv.pull_sample_of(handle, keys.shape[0], &keys[0], &out[0, 0], NULL)


def use_finished(lapse.Worker kv):
    """Finish a sample twice, which raises."""
    cdef long long handle = kv.prepare_sample_of(3)
    with nogil:
        kv.finish_sample_of(handle)
        kv.finish_sample_of(handle)
