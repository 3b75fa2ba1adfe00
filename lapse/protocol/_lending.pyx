"""Floor 2. Values that workers of this rank change where they are, between `lend_keys` and `take_keys_back`."""

from lapse.protocol._relocation cimport take_back
from lapse._store cimport (LENT, LENT_ALONE, LENT_STEP, LENT_TO_MOST, OWNED, entry_t, is_lent, lock_entry, note_use,
                           set_slot, set_state, slab_for, store_t, unlock_entry)
from lapse.storage._slabs cimport NO_SLOT, row_at, slab_t, take_row
from lapse.base._types cimport OK
from lapse.base._values cimport prefetch

cdef enum:
    ENTRIES_AHEAD = 24  # how many keys ahead of the current one its entry is prefetched


cdef inline void look_ahead(const store_t* store, const key_t* keys, int64_t i, int64_t count) noexcept nogil:
    if i + ENTRIES_AHEAD < count:
        prefetch(&store.entries[keys[i + ENTRIES_AHEAD]])


cdef int64_t lend_keys(relocation_t* relocation, bint shared, const key_t* keys, int64_t count,
                       void** values) noexcept nogil:
    """Lend what is owned here and not lent yet, or with `shared` lent to others that share it.

    `values` receives the address of each value, or NULL. Returns the number of keys that were not lent.
    """
    cdef store_t* store = relocation.state.store
    cdef int64_t i, refused = 0
    for i in range(count):
        look_ahead(store, keys, i, count)
        values[i] = lend_key(store, shared, keys[i])
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


cdef int take_keys_back(relocation_t* relocation, const key_t* keys, int64_t count, void** values, int64_t* done,
                        int64_t* awaited) noexcept nogil:
    """Take back the keys whose address in `values` is not NULL, and set it to NULL.

    `done` receives the position of the first key that was not taken back; FAILED: because it was not lent. `awaited`
    receives for how many somebody waited.
    """
    cdef store_t* store = relocation.state.store
    cdef entry_t* entry
    cdef int64_t i
    cdef bint is_awaited
    cdef int status = OK
    done[0] = count
    awaited[0] = 0
    for i in range(count):
        look_ahead(store, keys, i, count)
        if values[i] == NULL:
            continue
        entry = &store.entries[keys[i]]
        lock_entry(store, entry)
        is_awaited = not is_lent(entry)
        if entry.state > LENT:
            set_state(entry, entry.state - LENT_STEP)
        elif not is_awaited:
            set_state(entry, OWNED)
        unlock_entry(entry)
        if is_awaited:
            status = take_back(relocation, keys[i])
            if status != OK:
                done[0] = i
                return status
            awaited[0] += 1
        values[i] = NULL
    return OK
