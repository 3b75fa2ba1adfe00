"""Floor 2. Values that workers of this rank change where they are, between `lend_keys` and `take_keys_back`."""

from lapse.protocol._relocation cimport take_back
from lapse._store cimport (LENT, LENT_ALONE, LENT_STEP, LENT_TO_MOST, OWNED, entry_t, is_lent, is_replicated,
                           lock_entry, note_use, set_slot, set_state, slab_for, store_t, unlock_entry, view_of)
from lapse.storage._replicas cimport lend_replica, take_replica_back
from lapse.storage._slabs cimport NO_SLOT, row_at, slab_t, take_row
from lapse.base._types cimport FAILED, OK
from lapse.base._values cimport prefetch

cdef enum:
    # How many keys ahead of the current one its replica, and its entry, are prefetched.
    REPLICAS_AHEAD = 12
    ENTRIES_AHEAD = 24


cdef inline void look_ahead(store_t* store, const key_t* keys, int64_t i, int64_t count) noexcept nogil:
    cdef store_t* view
    cdef key_t key
    if i + ENTRIES_AHEAD < count:
        key = keys[i + ENTRIES_AHEAD]
        prefetch(&view_of(store, key).entries[key])
    if store.replicas.can_lend and i + REPLICAS_AHEAD < count:
        key = keys[i + REPLICAS_AHEAD]
        view = view_of(store, key)
        if is_replicated(&view.entries[key]):
            prefetch(&view.replicas.all[view.entries[key].slot])


cdef int64_t lend_keys(relocation_t* relocation, bint shared, const key_t* keys, int64_t count,
                       void** values) noexcept nogil:
    """Lend what is owned or replicated here and not lent yet, or with `shared` lent to others that share it.

    `values` receives the address of each value, or NULL. Returns the number of keys that were not lent.
    """
    cdef store_t* store = relocation.state.store
    cdef int64_t i, refused = 0
    for i in range(count):
        look_ahead(store, keys, i, count)
        values[i] = (lend_replicated(store, shared, keys[i]) if is_replicated(&store.entries[keys[i]])
                     else lend_key(store, shared, keys[i]))
        refused += values[i] == NULL
    return refused


cdef inline void* lend_key(store_t* store, bint shared, key_t key) noexcept nogil:
    cdef entry_t* entry = &store.entries[key]
    cdef slab_t* slab = slab_for(store, key)
    cdef void* value = NULL
    lock_entry(store, entry)
    note_use(entry)
    if entry.state == OWNED:
        if entry.slot == NO_SLOT:
            set_slot(entry, take_row(slab, 0, store.holder, store.watch))
        set_state(entry, LENT if shared else LENT_ALONE)
        value = row_at(slab, entry.slot)
    elif shared and entry.state >= LENT and entry.state < LENT_TO_MOST:
        set_state(entry, entry.state + LENT_STEP)
        value = row_at(slab, entry.slot)
    unlock_entry(entry)
    return value


cdef inline void* lend_replicated(store_t* store, bint shared, key_t key) noexcept nogil:
    cdef store_t* view = view_of(store, key)  # the leader's
    cdef entry_t* entry = &view.entries[key]
    cdef void* value
    lock_entry(view, entry)
    value = lend_replica(&view.replicas, entry.slot, shared)
    unlock_entry(entry)
    return value


cdef int take_keys_back(relocation_t* relocation, const key_t* keys, int64_t count, const float* weights,
                        void** values, int64_t* done, returned_t* returned) noexcept nogil:
    """Take back the keys whose address in `values` is not NULL, and set it to NULL.

    `weights` are those of the changes to replicas, 0 of what was not changed; NULL: 1 each. `done` receives the
    position of the first key that was not taken back; FAILED: because it was not lent.
    """
    cdef store_t* store = relocation.state.store
    cdef int64_t i
    cdef int status
    done[0] = count
    returned.awaited = returned.replicated = 0
    for i in range(count):
        look_ahead(store, keys, i, count)
        if values[i] == NULL:
            continue
        if is_replicated(&store.entries[keys[i]]):
            status = take_replicated_back(store, keys[i], 1 if weights == NULL else weights[i], returned)
        else:
            status = take_owned_back(relocation, keys[i], returned)
        if status != OK:
            done[0] = i
            return status
        values[i] = NULL
    return OK


cdef inline int take_owned_back(relocation_t* relocation, key_t key, returned_t* returned) noexcept nogil:
    cdef store_t* store = relocation.state.store
    cdef entry_t* entry = &store.entries[key]
    cdef bint is_awaited
    lock_entry(store, entry)
    is_awaited = not is_lent(entry)
    if entry.state > LENT:
        set_state(entry, entry.state - LENT_STEP)
    elif not is_awaited:
        set_state(entry, OWNED)
    unlock_entry(entry)
    if not is_awaited:
        return OK
    returned.awaited += 1
    return take_back(relocation, key)


cdef inline int take_replicated_back(store_t* store, key_t key, float weight, returned_t* returned) noexcept nogil:
    cdef store_t* view = view_of(store, key)
    cdef entry_t* entry = &view.entries[key]
    cdef bint was_lent
    lock_entry(view, entry)
    was_lent = take_replica_back(&view.replicas, entry.slot, weight)
    unlock_entry(entry)
    returned.replicated += weight != 0
    return OK if was_lent else FAILED
