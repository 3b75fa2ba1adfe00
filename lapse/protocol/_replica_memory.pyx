"""Floor 2. Which keys are replicated, and in whose memory: what happens once, before a store is used."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

import numpy as np

from lapse._store cimport REPLICATED, Store, entry_t, home_of, is_leader, slab_for, store_t
from lapse.base._types cimport OK, key_t
from lapse.storage._replicas cimport lay_out_replicas, make_gradients, make_replicas, replicas_t, vectors_of
from lapse.storage._segment cimport Segment
from lapse.storage._slabs cimport slab_t


def replica_bytes(Store store not None, keys, bint in_place=False):
    """Return the size of the segment for the replicas of these keys, which ranks that share memory have in common.

    Parameters
    ----------
    store : Store
    keys : array_like of int
    in_place : bool
        As in `replicate`.

    Returns
    -------
    int
        0 without keys.
    """
    cdef replicas_t replicas
    cdef const size_t[::1] sizes = sizes_of(store, keys)
    if sizes.shape[0] == 0:
        return 0
    return lay_out_replicas(&replicas, NULL, &sizes[0], <uint32_t>sizes.shape[0],
                            has_optimizer(store, np.ascontiguousarray(keys, dtype=np.int64)), in_place)


def replicate(Store store not None, keys, leaders=None, Segment segment=None, bint in_place=False):
    """Let keys be replicated. Called by all ranks alike, after all have joined, and before their stores are used.

    Parameters
    ----------
    store : Store
    keys : array_like of int
        Sorted, without repeats.
    leaders : sequence of int, optional
        By rank: the first of the ranks that share memory with it, and its replicas. By default each rank is alone.
        If there is one leader only, nothing is replicated: every rank reaches every key.
    segment : Segment, optional
        Zeros, of `replica_bytes`, mapped by all ranks that share memory; a rank alone needs none.
    in_place : bool
        Whether workers may borrow replicas.

    Raises
    ------
    MemoryError
        If there is no memory for the replicas.
    """
    cdef int32_t rank
    if leaders is not None:
        for rank in range(store.c.size):
            store.c.leaders[rank] = leaders[rank]
        store.c.num_leaders = len(set(leaders))
    if store.c.num_leaders == 1 or len(keys) == 0:
        return
    keys = np.ascontiguousarray(keys, dtype=np.int64)
    try:
        store.replicas = segment or Segment(replica_bytes(store, keys, in_place))
        make(store, keys, sizes_of(store, keys), in_place)
    except MemoryError:
        least = vectors_of(in_place) * int(np.sum(sizes_of(store, keys)))
        raise MemoryError(f"no memory for the replicas of {len(keys)} keys: at least {least} bytes; replicate fewer "
                          "keys") from None


cdef bint has_optimizer(Store store, const key_t[::1] keys):
    """Whether gradients can be applied to one of the keys."""
    cdef int64_t i
    for i in range(keys.shape[0]):
        if slab_for(&store.c, keys[i]).optimizer != NULL:
            return True
    return False


cdef sizes_of(Store store, keys):
    """The bytes of each key's value."""
    return (store.value_length(keys) * store.c.itemsize).astype(np.uintp)


cdef make(Store store, const key_t[::1] keys, const size_t[::1] sizes, bint in_place):
    cdef store_t* c = &store.c
    cdef replicas_t* replicas = &c.replicas
    cdef uint32_t i
    cdef entry_t* entry
    cdef slab_t* slab
    cdef bint has_gradients = has_optimizer(store, keys)
    cdef uint8_t[::1] is_home = np.zeros(len(keys), dtype=np.uint8)
    cdef size_t[::1] state_bytes = np.zeros(len(keys), dtype=np.uintp)
    replicas.itemsize = c.itemsize
    replicas.holder = c.holder
    replicas.watch = c.watch
    lay_out_replicas(replicas, store.replicas.address, &sizes[0], <uint32_t>keys.shape[0], has_gradients,
                     in_place)
    for i in range(replicas.count):
        entry = &c.entries[keys[i]]
        entry.state = REPLICATED
        entry.slot = i
        entry.route = <uint16_t>c.leaders[home_of(c, keys[i])]
        is_home[i] = entry.route == c.rank
        slab = slab_for(c, keys[i])
        state_bytes[i] = slab.held_bytes - slab.row_bytes
        if c.hints != NULL:
            c.hints[keys[i]] = c.leader_holder
    if not is_leader(c):
        c.views[c.leader_holder].replicas = replicas[0]
    elif (make_replicas(replicas, &keys[0], &sizes[0], &is_home[0]) != OK
          or (has_gradients and make_gradients(replicas, &state_bytes[0], &is_home[0]) != OK)):
        raise MemoryError
