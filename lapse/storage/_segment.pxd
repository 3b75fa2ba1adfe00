"""Floor 1. An address range: of this process alone, or one that other processes of the host can map too."""

from libc.stdint cimport uint64_t


cdef enum:
    SEGMENT_HEAD = 64   # bytes at its beginning that are the segment's own


cdef class Segment:
    cdef char* address
    cdef readonly size_t size       # bytes, the head included
    cdef readonly int descriptor    # for others to map it by; -1 where they cannot
    cdef readonly object reason     # why they cannot
    cdef void adopt(self, void* address, size_t size) noexcept
    cdef uint64_t* token(self) noexcept
