"""Floor 8. Loops for the benchmarks of messages: calls of a worker through the C-level door, with their times.

The loops run without the GIL. A batch is a row of `keys`; rows are used in turn.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

cimport lapse
from lapse.base._sync cimport now

cdef enum:
    MAX_OUTSTANDING = 1024

PULL, PUSH, LOCALIZE, LOCALIZE_AND_PULL = range(4)

cdef enum:
    _PULL = 0
    _PUSH = 1
    _LOCALIZE = 2
    _LOCALIZE_AND_PULL = 3


cdef struct stage_t:
    # The data of the calls.
    const lapse.key_t* keys     # batches one after another
    Py_ssize_t batches
    Py_ssize_t count            # keys of a batch
    float* values               # room for a batch of each outstanding call
    Py_ssize_t floats           # of a batch


cdef int start(lapse.Worker kv, const stage_t* stage, int kind, int64_t batch, int64_t place,
               lapse.operation_t** operation) except -1 nogil:
    cdef const lapse.key_t* keys = stage.keys + (batch % stage.batches) * stage.count
    cdef float* values = stage.values + place * stage.floats
    if kind == _PULL:
        return kv.pull_keys(keys, stage.count, values, operation)
    if kind == _PUSH:
        return kv.push_keys(keys, stage.count, values, operation)
    return kv.localize_keys(keys, stage.count, operation)


cdef int one_by_one(lapse.Worker kv, const stage_t* stage, int kind, int64_t end, int64_t[::1] times,
                    int64_t* count) except -1 nogil:
    cdef lapse.operation_t* operation = NULL
    cdef int64_t before = now(), after
    while count[0] < times.shape[0] and before < end:
        start(kv, stage, _LOCALIZE if kind == _LOCALIZE_AND_PULL else kind, count[0], 0, &operation)
        kv.wait_for(operation)
        if kind == _LOCALIZE_AND_PULL:
            start(kv, stage, _PULL, count[0], 0, &operation)
            kv.wait_for(operation)
        after = now()
        times[count[0]] = after - before
        before = after
        count[0] += 1
    return 0


cdef int several(lapse.Worker kv, const stage_t* stage, int kind, int64_t outstanding, int64_t end, int64_t most,
                 lapse.operation_t** operations, int64_t* count) except -1 nogil:
    cdef int64_t place
    while count[0] < most and (count[0] % 16 or now() < end):
        place = count[0] % outstanding
        kv.wait_for(operations[place])
        operations[place] = NULL
        start(kv, stage, kind, count[0], place, &operations[place])
        count[0] += 1
    for place in range(outstanding):
        kv.wait_for(operations[place])
        operations[place] = NULL
    return 0


cdef int detached(lapse.Worker kv, const stage_t* stage, int kind, int64_t end, int64_t most,
                  int64_t* count) except -1 nogil:
    while count[0] < most and (count[0] % 16 or now() < end):
        start(kv, stage, kind, count[0], 0, NULL)
        count[0] += 1
    kv.wait_everything()
    return 0


def call(lapse.Worker kv, int kind, lapse.key_t[:, ::1] keys, float[:, ::1] values, int outstanding, double seconds,
         int64_t[::1] times):
    """Make the same kind of call for a while.

    Parameters
    ----------
    kv : lapse.Worker
    kind : PULL, PUSH, LOCALIZE or LOCALIZE_AND_PULL
    keys : numpy.ndarray of int64, shape (batches, count)
    values : numpy.ndarray of float32, shape (max(outstanding, 1), count * length)
        The values that are pushed, and the destination of pulls.
    outstanding : int
        Number of calls in flight at a time; 0: calls are not waited for, except for all at the end.
    seconds : float
    times : numpy.ndarray of int64
        With one outstanding call: receives the nanoseconds of each call. Its length limits the number of calls.

    Returns
    -------
    (int, float)
        The number of calls, and the seconds that they took together.
    """
    cdef stage_t stage
    cdef int64_t began = now(), end = began + <int64_t>(seconds * 1e9), count = 0
    cdef lapse.operation_t** operations = NULL
    stage.keys = &keys[0, 0]
    stage.batches = keys.shape[0]
    stage.count = keys.shape[1]
    stage.values = &values[0, 0]
    stage.floats = values.shape[1]
    if outstanding > MAX_OUTSTANDING or values.shape[0] < outstanding:
        raise ValueError(f"outstanding is {outstanding}, but must be at most {MAX_OUTSTANDING} and the number of "
                         f"rows of values, {values.shape[0]}")
    operations = <lapse.operation_t**>calloc(max(outstanding, 1), sizeof(lapse.operation_t*))
    if operations == NULL:
        raise MemoryError("no memory for operations")
    try:
        with nogil:
            if outstanding == 0:
                detached(kv, &stage, kind, end, times.shape[0], &count)
            elif outstanding == 1:
                one_by_one(kv, &stage, kind, end, times, &count)
            else:
                several(kv, &stage, kind, outstanding, end, times.shape[0], operations, &count)
    finally:
        free(operations)
    return count, (now() - began) / 1e9


cdef double churn(int64_t steps) noexcept nogil:
    # Dependent multiplications, in registers alone.
    cdef double x = 1.0
    cdef int64_t _
    for _ in range(steps):
        x = x * 1.0000001 + 1e-9
    return x


def compute(int64_t steps):
    """Run a fixed computation without the GIL; return the seconds that it took, and its result."""
    cdef int64_t began = now()
    cdef double x
    with nogil:
        x = churn(steps)
    return (now() - began) / 1e9, x


def compute_for(double seconds):
    """Compute without the GIL for so many seconds."""
    cdef int64_t end = now() + <int64_t>(seconds * 1e9)
    cdef double x = 0
    with nogil:
        while now() < end:
            x += churn(10000)
    return x
