"""Floor 5. The states of optimizers as arrays, for checkpoints."""

from libc.stdint cimport int64_t
from libc.string cimport memcpy

import numpy as np

from lapse._store cimport REPLICATED, Store, entry_t, is_owned, lock_entry, slab_for, unlock_entry
from lapse.storage._slabs cimport NO_SLOT, row_at, slab_t
from lapse.base._types cimport key_t


cdef inline size_t state_bytes(const slab_t* slab) noexcept nogil:
    return slab.held_bytes - slab.row_bytes


def state_lengths(Store store not None, const key_t[::1] keys):
    """Return the number of elements of the state of each key's optimizer: an int64 array; 0 where there is none."""
    cdef int64_t i
    lengths = np.empty(keys.shape[0], dtype=np.int64)
    cdef int64_t[::1] view = lengths
    for i in range(keys.shape[0]):
        view[i] = state_bytes(slab_for(&store.c, keys[i])) // store.c.itemsize
    return lengths


def read_states(Store store not None, const key_t[::1] keys):
    """Return the states of keys that are here: a 1-D array, one after another. Nobody may use them meanwhile."""
    states = np.zeros(int(state_lengths(store, keys).sum()), dtype=store.dtype)
    move_states(store, keys, states.view(np.uint8), False)
    return states


def fill_states(Store store not None, const key_t[::1] keys, states):
    """Replace the states of keys that are here and have values, of replicated ones at their homes.

    Parameters
    ----------
    store : Store
    keys : int64 array
    states : array
        1-D, one after another.
    """
    move_states(store, keys, np.array(states, dtype=store.dtype).view(np.uint8), True)


cdef move_states(Store store, const key_t[::1] keys, unsigned char[::1] data, bint into_store):
    cdef int64_t i
    cdef size_t at = 0
    cdef slab_t* slab
    cdef entry_t* entry
    cdef char* state
    for i in range(keys.shape[0]):
        slab = slab_for(&store.c, keys[i])
        entry = &store.c.entries[keys[i]]
        lock_entry(&store.c, entry)
        state = NULL
        if entry.state == REPLICATED:
            if store.c.replicas.home_gradients != NULL:
                state = store.c.replicas.home_gradients[entry.slot].state
        elif is_owned(entry) and entry.slot != NO_SLOT:
            state = row_at(slab, entry.slot) + slab.row_bytes
        if state != NULL and state_bytes(slab):
            if into_store:
                memcpy(state, &data[at], state_bytes(slab))
            else:
                memcpy(&data[at], state, state_bytes(slab))
        unlock_entry(entry)
        at += state_bytes(slab)
