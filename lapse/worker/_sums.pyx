"""Floor 4. Gradients of repeated keys, summed before they are applied."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lapse._store cimport value_bytes
from lapse.base._values cimport add_values


cdef int64_t sum_repeated(sums_t* self, const store_t* store, const key_t* keys, int64_t count, const char* given,
                          int64_t** offsets) noexcept nogil:
    """Let each key of a call occur once; return how many keys there are then, -1 if there is no memory.

    If none is repeated nothing changes. Else `self.keys` has the distinct ones, and `offsets` says where the gradient
    of each begins, in bytes from `given`: where it was, or at a sum, which is added up in the order of the call. The
    caller frees `offsets`; if lengths vary, it says where each gradient of the call begins and the last one ends.
    """
    cdef int64_t i, number, distinct = 0
    if not make_table(self, count):
        return -1
    for i in range(count):
        if number_of(self, keys[i], distinct) < distinct:
            break
        distinct += 1
    else:
        return count
    if not make_offsets(offsets, count, store.slabs[0].row_bytes) or not make_sums(self, offsets[0][count]):
        return -1
    for i in range(distinct, count):
        number = number_of(self, keys[i], distinct)
        if number < distinct:
            add_to_sum(self, given, &offsets[0][number], offsets[0][i], store.itemsize, value_bytes(store, keys[i]))
        else:
            offsets[0][distinct] = offsets[0][i]
            distinct += 1
    return distinct


cdef inline int64_t number_of(sums_t* self, key_t key, int64_t distinct) noexcept nogil:
    """The number of a key among the distinct ones; a new one gets the number `distinct`."""
    cdef uint64_t mask = <uint64_t>self.slots - 1
    cdef uint64_t at = (<uint64_t>key * <uint64_t>0x9E3779B97F4A7C15) >> 32 & mask
    while self.table[at]:
        if self.keys[self.table[at] - 1] == key:
            return self.table[at] - 1
        at = (at + 1) & mask
    self.table[at] = <uint32_t>(distinct + 1)
    self.keys[distinct] = key
    return distinct


cdef inline void add_to_sum(sums_t* self, const char* given, int64_t* total, int64_t offset, int32_t itemsize,
                            size_t size) noexcept nogil:
    """Add a gradient to that of a key, which becomes a sum of its own before the first addition."""
    cdef int64_t base = <int64_t>(<size_t>self.sums - <size_t>given)
    if not base <= total[0] < base + self.used:
        memcpy(self.sums + self.used, given + total[0], size)
        total[0] = base + self.used
        self.used += <int64_t>size
    add_values(itemsize, <char*>given + total[0], given + offset, size)


cdef bint make_table(sums_t* self, int64_t count) noexcept nogil:
    """An empty table, and room for so many keys."""
    cdef int64_t slots = 64
    while slots < 2 * count:
        slots *= 2
    if slots > self.capacity:
        free(self.keys)
        free(self.table)
        self.capacity = 0
        self.keys = <key_t*>malloc(slots // 2 * sizeof(key_t))
        self.table = <uint32_t*>malloc(slots * sizeof(uint32_t))
        if self.keys == NULL or self.table == NULL:
            return False
        self.capacity = slots
    self.slots = slots
    memset(self.table, 0, slots * sizeof(uint32_t))
    return True


cdef bint make_offsets(int64_t** offsets, int64_t count, int64_t size) noexcept nogil:
    """Say where gradients of one length begin."""
    cdef int64_t i
    if offsets[0] == NULL:
        offsets[0] = <int64_t*>malloc((count + 1) * sizeof(int64_t))
        if offsets[0] == NULL:
            return False
        for i in range(count + 1):
            offsets[0][i] = i * size
    return True


cdef bint make_sums(sums_t* self, int64_t total) noexcept nogil:
    """Room for all sums of gradients of so many bytes: each has two of them at least. Untouched, it takes no memory."""
    self.used = 0
    if total // 2 > self.room:
        free(self.sums)
        self.room = 0
        self.sums = <char*>malloc(total // 2)
        if self.sums == NULL:
            return False
        self.room = total // 2
    return True


cdef void free_sums(sums_t* self) noexcept:
    free(self.keys)
    free(self.table)
    free(self.sums)
    memset(self, 0, sizeof(sums_t))
