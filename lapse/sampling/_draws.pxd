"""Floor 2. Keys drawn at random, each in constant time, without the GIL.

Generators are NumPy's bit generators, used through their C structure; here they are `void*`, so
that modules which cimport this need no NumPy headers.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from lapse.base._types cimport key_t


cdef struct column_t:
    # One of the columns of an alias table. All columns are equally likely, and 2**32 parts high.
    uint32_t share      # the parts that belong to the column's own key
    uint32_t other      # the key of the remaining parts; the column's own number if there are none


cdef struct table_t:
    key_t low
    uint64_t span       # keys are low .. low + span - 1
    column_t* columns   # NULL if they are equally likely


cdef void draw_keys(const table_t* table, void* generator, key_t* keys, int64_t count) noexcept nogil
cdef void shuffle(void* generator, key_t* keys, int64_t count) noexcept nogil


cdef class Table:
    cdef table_t c


cdef class Generator:
    cdef void* c
    cdef object source
