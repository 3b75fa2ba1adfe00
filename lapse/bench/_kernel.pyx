"""Loops of the benchmarks in C, without the GIL: calls of the worker as in a kernel, and the references.

Every loop returns its start and its end, in nanoseconds of the monotonic clock, so that loops of several threads can be
compared.
"""

from libc.math cimport NAN
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from lapse cimport Worker, key_t, operation_t
from lapse.base._sync cimport now


PULL, PUSH, SET, GRADIENT = range(4)


def access(Worker kv, int kind, const key_t[::1] keys, Py_ssize_t batch, float[:, ::1] values):
    """Pull, push, set or apply gradients to all keys, a batch per call, each call waited for.

    Parameters
    ----------
    kind
        `PULL`, `PUSH`, `SET` or `GRADIENT`.
    keys
        `batch` must divide their number; with `SET` the keys of a batch must differ.
    values
        Shape (batch, length): the destination of every pull, or the values that every call writes.
    """
    cdef operation_t* operation = NULL
    cdef Py_ssize_t first = 0
    cdef int64_t begin
    with nogil:
        begin = now()
        while first < keys.shape[0]:
            if kind == 0:
                kv.pull_keys(&keys[first], batch, &values[0, 0], &operation)
            elif kind == 1:
                kv.push_keys(&keys[first], batch, &values[0, 0], &operation)
            elif kind == 2:
                kv.set_keys(&keys[first], batch, &values[0, 0], &operation)
            else:
                kv.apply_gradients_to(&keys[first], batch, &values[0, 0], NAN, &operation)
            kv.wait_for(operation)
            first += batch
    return begin, now()


def sample(Worker kv, Py_ssize_t count, Py_ssize_t prepared, key_t[::1] keys, float[:, ::1] values):
    """Draw `count` keys and read their values: samples of `prepared` keys, each prepared before the last one is pulled.

    Parameters
    ----------
    count
        A multiple of `prepared`, which is a multiple of the batch.
    keys, values
        The destination of every batch: shapes (batch,) and (batch, length).
    """
    cdef operation_t* operation = NULL
    cdef Py_ssize_t batch = keys.shape[0], _first, _i
    cdef int64_t begin, current, following
    with nogil:
        begin = now()
        following = kv.prepare_sample_of(prepared)
        for _first in range(count // prepared):
            current = following
            following = kv.prepare_sample_of(prepared)
            for _i in range(prepared // batch):
                kv.pull_sample_of(current, batch, &keys[0], &values[0, 0], &operation)
                kv.wait_for(operation)
            kv.finish_sample_of(current)
        kv.finish_sample_of(following)
    return begin, now()


def copy_rows(const float[:, ::1] table, Py_ssize_t first, Py_ssize_t count, float[:, ::1] out):
    """Copy `count` rows, starting at `first` and wrapping around at the end of the table, repeatedly into `out`."""
    cdef Py_ssize_t i, rows = table.shape[0], batch = out.shape[0]
    cdef size_t size = table.shape[1] * sizeof(float)
    cdef int64_t begin
    with nogil:
        begin = now()
        for i in range(count):
            memcpy(&out[i % batch, 0], &table[(first + i) % rows, 0], size)
    return begin, now()
