"""Floor 4. The counters of a rank."""

from lapse._comm cimport Comm
from lapse.protocol._protocol cimport Protocol


cdef class Counters:
    cdef Comm comm
    cdef Protocol protocol
    cdef object zero, zero_bytes
