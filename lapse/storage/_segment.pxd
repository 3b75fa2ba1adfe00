"""Floor 1. An address range: private to this process, or one that other processes of the host can map."""

from libc.stdint cimport uint64_t


cdef enum:
    SEGMENT_HEAD = 64   # bytes at the start that the segment itself uses


cdef class Segment:
    cdef char* address
    cdef readonly size_t size       # bytes, the head included
    cdef readonly int descriptor    # by which other processes map it; -1 if they cannot
    cdef readonly object reason     # why they cannot; None if they can
    cdef void adopt(self, void* address, size_t size) noexcept
    cdef uint64_t* token(self) noexcept
