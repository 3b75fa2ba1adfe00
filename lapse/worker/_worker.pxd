"""Floor 4. What one worker thread may ask for: from Python, and from kernels by the C-level door, its base class."""

from libc.stdint cimport int64_t

from lapse.worker._door cimport Door
from lapse.worker._operation cimport Operation
from lapse.base._types cimport key_t, operation_t


cdef class Worker(Door):
    cdef object __weakref__
    cdef object group               # a WorkerGroup
    cdef Operation nothing          # a finished operation without a result
    cdef object dtype
    cdef object generator
    cdef readonly int num_workers

    # What the Python calls share.
    cdef int enter(self) except -1
    cdef object begin(self, keys)
    cdef object apply(self, keys, gradients, lr, step, bint are_distinct)
    cdef object change(self, int kind, keys, given, name, weights=*)
    cdef object shape_for(self, keys)
    cdef object elements_for(self, keys)
