"""Floor 1. Slabs: the rows in which values lie, those of one length and with one optimizer together."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from lapse.base._optimizers cimport optimizer_t, prepare_optimizer, state_length
from lapse.base._sync cimport drop_latch, take_latch_as

cdef enum:
    ALIGNED_FROM = 256      # bytes; rows with a state begin at cache lines from this size on, shorter ones are packed


cdef void take_step(const slab_t* slab, char* value, char* state, const char* gradient, double rate,
                    uint32_t step) noexcept nogil:
    """Change a value as its optimizer says. Under the key's latch."""
    cdef const optimizer_t* optimizer = <const optimizer_t*>slab.optimizer
    optimizer.step(optimizer, rate, step, value, state, gradient, slab.length)


cdef uint32_t take_row(slab_t* slab, size_t written, uint8_t holder, watch_t* watch) noexcept nogil:
    """A row of zeros, apart from so many bytes at its beginning, which the caller writes."""
    cdef pool_t* pool = slab.pool
    cdef uint32_t slot
    cdef bint used = False
    take_latch_as(&pool.latch, holder, watch)
    if pool.free_row != NO_SLOT:
        used = True
        slot = pool.free_row
        memcpy(&pool.free_row, row_at(slab, slot), sizeof(uint32_t))
    else:
        slot = pool.next_row
        pool.next_row += 1
    drop_latch(&pool.latch)
    if used and written < slab.held_bytes:
        memset(row_at(slab, slot) + written, 0, slab.held_bytes - written)
    return slot


cdef void give_row_back(slab_t* slab, uint32_t slot, uint8_t holder, watch_t* watch) noexcept nogil:
    cdef pool_t* pool = slab.pool
    if slot == NO_SLOT:
        return
    take_latch_as(&pool.latch, holder, watch)
    memcpy(row_at(slab, slot), &pool.free_row, sizeof(uint32_t))
    pool.free_row = slot
    drop_latch(&pool.latch)


cdef int make_slab(slab_t* slab, int length, int itemsize, size_t count, dict parameters) except -1:
    """Plan a slab, which is laid out later. `parameters` are those of its optimizer, None without one."""
    slab.row_bytes = slab.held_bytes = slab.stride = <size_t>length * itemsize
    slab.num_rows = count
    slab.length = length
    if parameters is None:
        return 0
    slab.held_bytes += state_length(parameters["kind"], length) * itemsize
    if slab.held_bytes > slab.row_bytes:
        slab.stride = stride_for(slab.held_bytes)
    slab.optimizer = calloc(1, sizeof(optimizer_t))
    if slab.optimizer == NULL:
        raise MemoryError("no memory for an optimizer")
    slab.rate = parameters["rate"]
    return read_parameters(<optimizer_t*>slab.optimizer, parameters, itemsize)


cdef size_t stride_for(size_t size) noexcept nogil:
    """Bytes from one row to the next: rows share no cache lines if that costs little."""
    return (size + 63) & ~<size_t>63 if size >= ALIGNED_FROM else (size + 7) & ~<size_t>7


cdef int read_parameters(optimizer_t* optimizer, dict given, int itemsize) except -1:
    optimizer.weight_decay = given["weight_decay"]
    optimizer.epsilon = given["epsilon"]
    optimizer.initial = given["initial"]
    optimizer.beta1, optimizer.beta2 = given["betas"]
    if not prepare_optimizer(optimizer, given["kind"], itemsize):
        raise MemoryError("no memory for an optimizer")
    return 0


cdef void free_slab(slab_t* slab) noexcept:
    if slab.optimizer != NULL:
        free((<optimizer_t*>slab.optimizer).corrections)
        free(slab.optimizer)
