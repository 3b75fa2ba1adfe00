"""Memory of the kernels."""

from libc.stdlib cimport calloc


cdef inline void* allocate(size_t count, size_t size) except NULL:
    """`count` elements of `size` bytes, all zero; to be freed by `free`."""
    cdef void* memory = calloc(max(count, <size_t>1), size)
    if memory == NULL:
        raise MemoryError(f"cannot allocate {count} elements of {size} bytes")
    return memory
