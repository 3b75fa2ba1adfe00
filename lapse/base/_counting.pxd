"""Floor 0. Counters that one thread writes, and others may read meanwhile. Declarations only."""

from libc.stdint cimport int64_t

from lapse.base._sync cimport peek, put


cdef inline void add_to(int64_t* counter, int64_t amount) noexcept nogil:
    # For the thread that owns the counter: cheaper than an atomic addition, and whole for those who look, or clear it.
    put(counter, peek(counter) + amount)


cdef inline void copy_counters(int64_t* copies, const int64_t* counters, size_t size) noexcept nogil:
    # A struct of counters, of so many bytes.
    cdef size_t i
    for i in range(size // sizeof(int64_t)):
        copies[i] = peek(&counters[i])


cdef inline void clear_counters(int64_t* counters, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size // sizeof(int64_t)):
        put(&counters[i], 0)
