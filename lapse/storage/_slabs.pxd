"""Floor 1. Slabs: the rows in which values lie, those of one length and with one optimizer together."""

from libc.math cimport isnan
from libc.stdint cimport uint8_t, uint32_t

from lapse.base._sync cimport watch_t
from lapse.base._types cimport terms_t

cdef enum:
    NO_SLOT = 0xFFFFFFFF


cdef struct pool_t:
    # The mutable part of a slab; ranks that share the slab share it.
    uint32_t next_row   # rows from here on were never used
    uint32_t free_row   # the row that was freed last; each free row holds the number of the previous one
    uint8_t latch       # held briefly, possibly inside a key's latch; a key's latch is never taken inside it
    char padding[55]


cdef struct slab_t:
    # All values of one length, and with one optimizer, on a rank. Addresses are reserved for every such key, because
    # any rank may come to own all of them; memory is allocated when a row is first written.
    char* rows
    pool_t* pool
    size_t row_bytes    # of a value
    size_t held_bytes   # of a value and the state of its optimizer, which lies behind it and moves with it
    size_t stride       # from one row to the next
    size_t num_rows
    size_t length       # elements of a value
    void* optimizer     # its parameters, see `base/_optimizers`; NULL: gradients cannot be applied
    double rate         # of gradients that come without one


cdef inline char* row_at(const slab_t* slab, uint32_t slot) noexcept nogil:
    return slab.rows + slot * slab.stride


cdef inline double rate_for(const slab_t* slab, terms_t given) noexcept nogil:
    """The learning rate of a gradient."""
    return slab.rate if isnan(given.weight) else given.weight


cdef void take_step(const slab_t* slab, char* value, char* state, const char* gradient, double rate,
                    uint32_t step) noexcept nogil
cdef uint32_t take_row(slab_t* slab, size_t written, uint8_t holder, watch_t* watch) noexcept nogil
cdef void give_row_back(slab_t* slab, uint32_t slot, uint8_t holder, watch_t* watch) noexcept nogil
cdef int make_slab(slab_t* slab, int length, int itemsize, size_t count, dict parameters) except -1
cdef void free_slab(slab_t* slab) noexcept
