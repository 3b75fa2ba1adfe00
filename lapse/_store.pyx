"""Floor 1. The values stored on this rank, and what this rank knows about every key."""

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import numpy as np

from lapse.storage.slabs import BLOCK, plan_slabs

from lapse.base._memory cimport release, reserve, take
from lapse.storage._replica_gradients cimport apply_to_replica, begin_state
from lapse.storage._replicas cimport (fill_replica, free_replicas, prefetch_replica, push_replica, read_replica,
                                      value_of)
from lapse.storage._segment cimport SEGMENT_HEAD, Segment
from lapse.storage._slabs cimport (NO_SLOT, free_slab, give_row_back, make_slab, pool_t, rate_for, row_at, slab_t,
                                   take_row, take_step)
from lapse.storage._host_peers cimport HostPeers
from lapse.base._sync cimport peek32, put32
from lapse.base._types cimport GRADIENT, PULL, PUSH, SET, terms_of, terms_t
from lapse.base._values cimport add_values, prefetch, prefetch_bytes


cdef extern from *:
    """
    #define lapse_likely(x) __builtin_expect(!!(x), 1)
    """
    bint is_likely "lapse_likely"(bint x) noexcept nogil


cdef enum:
    # How many keys ahead of the current one its row, and its entry, are prefetched: 8 to 16 is a flat optimum for rows
    # of 400 bytes.
    ROWS_AHEAD = 12
    REPLICAS_AHEAD = 18     # what is known about a replica, its vectors' address among it
    ENTRIES_AHEAD = 24
    HINTS_AHEAD = 36        # the hint, if ranks share memory
    PAGE_BYTES = 4096
    NUM_VIEWS = 256         # a hint is a byte


# One key ---------------------------------------------------------------------------------------------

cdef void read_value(const store_t* store, key_t key, uint32_t slot, char* out) noexcept nogil:
    cdef slab_t* slab = slab_for(store, key)
    if slot == NO_SLOT:
        memset(out, 0, slab.row_bytes)
    else:
        memcpy(out, row_at(slab, slot), slab.row_bytes)


cdef void change_value(store_t* store, key_t key, uint32_t* slot, int kind, const char* given,
                       terms_t terms) noexcept nogil:
    # The only place where an update meets the value of a key that is not replicated. A push to a replicated key is
    # added to the value and to the delta, homes add contributions, and all ranks add the sums (docs/replication.md):
    # that is correct because additions commute. Its gradients are summed, and the home takes the step
    # (`_replica_gradients`).
    cdef slab_t* slab = slab_for(store, key)
    cdef char* row
    if slot[0] == NO_SLOT:
        put32(slot, take_row(slab, slab.row_bytes if kind == SET else 0, store.holder, store.watch))
    row = row_at(slab, slot[0])
    if kind == PUSH:
        add_values(store.itemsize, row, given, slab.row_bytes)
    elif kind == SET:
        memcpy(row, given, slab.row_bytes)
    else:
        take_step(slab, row, row + slab.row_bytes, given, rate_for(slab, terms), terms.step)


cdef inline void access_owned(store_t* store, int kind, key_t key, entry_t* entry, char* value,
                              terms_t terms) noexcept nogil:
    # under the key's latch
    if kind == PULL:
        read_value(store, key, entry.slot, value)
    else:
        change_value(store, key, &entry.slot, kind, value, terms)


cdef inline bint access_replica(store_t* store, int kind, const entry_t* entry, char* value, terms_t terms,
                                tally_t* tally) noexcept nogil:
    """Under the key's latch, in the leader's store: pull or push a key that is replicated; return whether it was done.

    A set of a replicated key is left to its home.
    """
    if entry.state != REPLICATED or kind == SET:
        return False
    if kind == PULL:
        read_replica(&store.replicas, entry.slot, value)
    elif kind == GRADIENT:
        apply_to_replica(&store.replicas, entry.slot, value,
                         rate_for(slab_for(store, store.replicas.all[entry.slot].key), terms), terms.step)
        tally.replicated += 1
    else:
        push_replica(&store.replicas, entry.slot, value, <float>terms.weight)
        tally.replicated += 1
    return True


cdef bint access_host_peer(store_t* store, int kind, key_t key, char* value, terms_t terms) noexcept nogil:
    """Pull or change a key at another rank of this host, if that owns it or has its replica; return whether so."""
    cdef store_t* view = view_of(store, key)
    cdef entry_t* entry = &view.entries[key]
    cdef tally_t tally
    cdef bint served
    if view == store:
        return False
    lock_entry(view, entry)
    note_use(entry)
    served = entry.state == OWNED or (kind == PULL and is_lent(entry))
    if served:
        access_owned(view, kind, key, entry, value, terms)
    else:
        served = access_replica(view, kind, entry, value, terms, &tally)
    unlock_entry(entry)
    return served


cdef inline bint access_held(store_t* store, int kind, key_t key, entry_t* entry, char* value,
                             terms_t terms, tally_t* tally) noexcept nogil:
    """Under the key's latch: pull or change a key of this rank; return whether it is here."""
    note_use(entry)
    if entry.state == OWNED:
        access_owned(store, kind, key, entry, value, terms)
    elif kind == PULL and is_lent(entry):
        read_value(store, key, entry.slot, value)
    else:
        return access_replica(store, kind, entry, value, terms, tally)
    return True


cdef bint access_here(store_t* store, int kind, key_t key, char* value, terms_t terms, tally_t* tally) noexcept nogil:
    """As `access_held`, for a caller that does not hold the latch."""
    cdef entry_t* entry = &store.entries[key]
    cdef bint served
    lock_entry(store, entry)
    served = access_held(store, kind, key, entry, value, terms, tally)
    unlock_entry(entry)
    return served


cdef bint read_reachable(store_t* store, key_t key, char* out) noexcept nogil:
    """Copy a value if it is owned or replicated here, or owned by a rank that shares memory; return whether it was."""
    cdef tally_t tally
    cdef terms_t terms = terms_of(0)
    return access_host_peer(store, PULL, key, out, terms) or access_here(store, PULL, key, out, terms, &tally)


cdef bint access_not_owned(store_t* store, store_t* view, int kind, key_t key, char* value, terms_t terms,
                           tally_t* tally) noexcept nogil:
    """What `access_batch` does with a key whose state in the view is not OWNED; return whether it was served.

    Drops the key's latch in the view.
    """
    cdef entry_t* entry = &view.entries[key]
    cdef bint served
    if view == store:
        served = access_held(store, kind, key, entry, value, terms, tally)
        unlock_entry(entry)
        return served
    note_use(entry)
    served = entry.state == OWNED
    if served:
        access_owned(view, kind, key, entry, value, terms)
        tally.shared += 1
    else:
        served = access_replica(view, kind, entry, value, terms, tally)
    unlock_entry(entry)
    return served or access_here(store, kind, key, value, terms, tally)


# Batches ---------------------------------------------------------------------------------------------

cdef inline void prefetch_row(store_t* store, int kind, key_t key) noexcept nogil:
    # Reads the slot without the latch: a stale slot, or what the slot of an absent key remembers, costs a useless
    # prefetch, nothing more.
    cdef store_t* view = view_of(store, key)
    cdef slab_t* slab = slab_for(view, key)
    cdef entry_t* entry = &view.entries[key]
    cdef uint32_t slot = peek32(&entry.slot)
    if slot == NO_SLOT:
        return
    if is_replicated(entry):
        prefetch_bytes(value_of(&view.replicas.all[slot]), view.replicas.all[slot].bytes)
        return
    prefetch_bytes(row_at(slab, slot), slab.held_bytes if kind == GRADIENT else slab.row_bytes)


cdef inline void look_for_entries(store_t* store, const key_t* keys, int64_t i, int64_t count) noexcept nogil:
    if store.hints != NULL and i + HINTS_AHEAD < count:
        prefetch(&store.hints[keys[i + HINTS_AHEAD]])
    if i + ENTRIES_AHEAD < count:
        prefetch(&view_of(store, keys[i + ENTRIES_AHEAD]).entries[keys[i + ENTRIES_AHEAD]])


cdef inline void look_for_replica(store_t* store, key_t key) noexcept nogil:
    # As `prefetch_row`: a key is replicated for good.
    cdef entry_t* entry = &view_of(store, key).entries[key]
    if is_replicated(entry):
        prefetch_replica(&store.replicas.all[entry.slot])


cdef inline void look_ahead(store_t* store, int kind, const key_t* keys, int64_t i, int64_t count) noexcept nogil:
    look_for_entries(store, keys, i, count)
    if store.replicas.count and i + REPLICAS_AHEAD < count:
        look_for_replica(store, keys[i + REPLICAS_AHEAD])
    if i + ROWS_AHEAD < count:
        prefetch_row(store, kind, keys[i + ROWS_AHEAD])


cdef inline void start_looking_for_entries(store_t* store, const key_t* keys, int64_t count) noexcept nogil:
    cdef int64_t i
    if store.hints != NULL:
        for i in range(min(count, <int64_t>HINTS_AHEAD)):
            prefetch(&store.hints[keys[i]])
    for i in range(min(count, <int64_t>ENTRIES_AHEAD)):
        prefetch(&view_of(store, keys[i]).entries[keys[i]])


cdef inline void start_looking_ahead(store_t* store, int kind, const key_t* keys, int64_t count) noexcept nogil:
    cdef int64_t i
    start_looking_for_entries(store, keys, count)
    if store.replicas.count:
        for i in range(min(count, <int64_t>REPLICAS_AHEAD)):
            look_for_replica(store, keys[i])
    for i in range(min(count, <int64_t>ROWS_AHEAD)):
        prefetch_row(store, kind, keys[i])


cdef int64_t access_batch(store_t* store, int kind, const key_t* keys, int64_t count, const int64_t* offsets,
                          char* values, const float* weights, terms_t terms, uint32_t* missed,
                          tally_t* tally) noexcept nogil:
    """Pull into `values`, or push, set or apply gradients from it.

    `weights` are those of pushes to replicas; NULL: each has that of `terms`.

    Returns the number of keys that could not be served; their positions are written to `missed`.
    """
    cdef int64_t i, misses = 0
    cdef int64_t row_bytes = store.slabs[0].row_bytes
    cdef store_t* view
    cdef entry_t* entry
    cdef char* value
    if count > 1:
        start_looking_ahead(store, kind, keys, count)
    for i in range(count):
        look_ahead(store, kind, keys, i, count)
        value = values + (i * row_bytes if offsets == NULL else offsets[i])
        # Whose memory it is makes no difference, hence no branch: where owners are random it would be mispredicted.
        view = view_of(store, keys[i])
        entry = &view.entries[keys[i]]
        lock_entry(view, entry)
        if is_likely(entry.state == OWNED):  # keeps the rest out of the loop
            access_owned(view, kind, keys[i], entry, value, terms)
            unlock_entry(entry)
            tally.shared += view != store
        elif not access_not_owned(store, view, kind, keys[i], value,
                                  terms if weights == NULL else terms_of(weights[i]), tally):
            missed[misses] = <uint32_t>i
            misses += 1
    return misses


cdef int64_t find_unreachable(store_t* store, const key_t* keys, int64_t count, uint32_t* missed) noexcept nogil:
    """Return how many keys can only be reached by messages at this moment; their positions are written to `missed`.

    Prefetches the entries, which the next calls on the keys need.
    """
    cdef int64_t i, misses = 0
    if store.reaches_all:
        for i in range(count):
            prefetch(&view_of(store, keys[i]).entries[keys[i]])
        return 0
    start_looking_for_entries(store, keys, count)
    for i in range(count):
        look_for_entries(store, keys, i, count)
        if not is_reachable(store, keys[i]):
            missed[misses] = <uint32_t>i
            misses += 1
    return misses


# The store as an object ------------------------------------------------------------------------------

cdef inline size_t to_pages(size_t size) noexcept nogil:
    return (size + PAGE_BYTES - 1) & ~<size_t>(PAGE_BYTES - 1)


cdef size_t lay_out(store_t* store, char* address) noexcept nogil:
    """Set the addresses of everything within a segment; return its size. All ranks of a server have the same layout."""
    cdef size_t at = SEGMENT_HEAD
    cdef int i
    cdef slab_t* slab
    for i in range(store.num_slabs):
        store.slabs[i].pool = <pool_t*>(address + at)
        at += sizeof(pool_t)
    at = to_pages(at)
    store.entries = <entry_t*>(address + at)
    at = to_pages(at + store.num_keys * sizeof(entry_t))
    for i in range(store.num_slabs):
        slab = &store.slabs[i]
        slab.rows = address + at
        at = to_pages(at + slab.stride * slab.num_rows)
    return at


cdef inline bint belongs_here(const store_t* store, key_t key) noexcept nogil:
    cdef const entry_t* entry = &store.entries[key]
    return is_owned(entry) or is_lent(entry) or (entry.state == REPLICATED and entry.route == store.rank)


cdef inline bint is_written(const store_t* store, key_t key) noexcept nogil:
    cdef const entry_t* entry = &store.entries[key]
    return belongs_here(store, key) and (entry.state == REPLICATED or entry.slot != NO_SLOT)


cdef store_t* new_view(const store_t* store, Segment segment) except NULL:
    """Return the store of another rank as mapped here: a copy of this one at another address, without replicas."""
    cdef store_t* view = <store_t*>calloc(1, sizeof(store_t))
    cdef slab_t* slabs = <slab_t*>calloc(store.num_slabs, sizeof(slab_t))
    if view == NULL or slabs == NULL:
        free(view)
        free(slabs)
        raise MemoryError("no memory for the store of another rank")
    view[0] = store[0]
    memset(&view.replicas, 0, sizeof(view.replicas))
    view.hints = NULL
    view.views = NULL
    memcpy(slabs, store.slabs, store.num_slabs * sizeof(slab_t))
    view.slabs = slabs
    lay_out(view, segment.address)
    return view


cdef void free_view(const store_t* store, store_t* view) noexcept:
    if view != NULL and view != store:
        free(view.slabs)
        free(view)


@cython.no_gc_clear  # objects that point to its entries are released later
cdef class Store:
    """Values of the keys that this rank owns, and an entry for every key.

    Parameters
    ----------
    num_keys : int
        Keys are 0 .. num_keys - 1; at most 2**32 - 2.
    lengths : int or int64 array of shape (num_keys,)
        Elements per value.
    dtype : numpy.dtype
        float32 or float64.
    rank, size : int
        This rank, and how many there are.
    shareable : bool
        Whether other ranks of this host may map this store (see `join`).
    optimizers : sequence of (int, dict or None)
        Which keys have which optimizer: see `plan_slabs`.

    Raises
    ------
    MemoryError
        If the directory or the address range for the values cannot be allocated.
    """

    def __cinit__(self, int64_t num_keys, lengths, dtype, int rank=0, int size=1, bint shareable=False,
                  optimizers=()):
        cdef int i
        self.length = lengths if isinstance(lengths, int) else -1
        self.dtype = np.dtype(dtype)
        self.c.num_keys = num_keys
        self.c.itemsize = self.dtype.itemsize
        self.c.rank = rank
        self.c.size = size
        self.c.holder = 1
        self.c.reaches_all = size == 1
        bits = max(1, int(num_keys - 1).bit_length())
        self.c.mix_mask = (1 << bits) - 1
        self.c.mix_shift = (bits + 1) // 2
        self._plan_slabs(lengths, optimizers)
        self.segment = Segment(lay_out(&self.c, NULL), shareable)
        lay_out(&self.c, self.segment.address)
        self._fill_directory()
        self.c.leaders = <int32_t*>calloc(size, sizeof(int32_t))
        if self.c.leaders == NULL:
            raise MemoryError(f"no memory for a table of {size} ranks")
        for i in range(size):
            self.c.leaders[i] = i
        self.c.num_leaders = size

    def _plan_slabs(self, lengths, optimizers):
        cdef int i
        plans, number = plan_slabs(self.c.num_keys, lengths, optimizers)
        self.c.slabs = <slab_t*>calloc(len(plans), sizeof(slab_t))
        if self.c.slabs == NULL:
            raise MemoryError(f"no memory for {len(plans)} value lengths")
        self.c.num_slabs = len(plans)
        self.c.takes_gradients = True
        for i, (length, parameters, count) in enumerate(plans):
            make_slab(&self.c.slabs[i], length, self.c.itemsize, count, parameters)
            self.c.takes_gradients = self.c.takes_gradients and parameters is not None
        if number is not None:
            self._number_slabs(number)

    def _number_slabs(self, number):
        """Record the slab of each key."""
        cdef const uint32_t[::1] view
        cdef int64_t i, first
        self.c.slab_of = <uint32_t*>reserve(self.c.num_keys * sizeof(uint32_t))
        if self.c.slab_of == NULL:
            raise MemoryError(f"no memory for the lengths of {self.c.num_keys} keys")
        for first in range(0, self.c.num_keys, <int64_t>BLOCK):
            view = number(first)
            for i in range(view.shape[0]):
                self.c.slab_of[first + i] = view[i]

    def _fill_directory(self):
        cdef key_t key
        cdef int32_t home
        cdef entry_t* entry
        cdef int i
        for i in range(self.c.num_slabs):
            self.c.slabs[i].pool.free_row = NO_SLOT
        with nogil:
            if self.segment.descriptor >= 0:
                # Ranks that share memory look up random keys in the directories of several: with small pages the
                # processor's table of pages bounds them.
                take(self.segment.address, <char*>&self.c.entries[self.c.num_keys] - self.segment.address)
            for key in range(self.c.num_keys):
                home = home_of(&self.c, key)
                entry = &self.c.entries[key]
                entry.slot = NO_SLOT
                entry.latch = 0
                entry.state = OWNED if home == self.c.rank else ABSENT
                entry.route = <uint16_t>home

    def __dealloc__(self):
        cdef int i
        free_replicas(&self.c.replicas)
        if self.c.views != NULL:
            for i in range(1, NUM_VIEWS):
                free_view(&self.c, self.c.views[i])
        free(self.c.views)
        for i in range(self.c.num_slabs):
            free_slab(&self.c.slabs[i])
        free(self.c.slabs)
        free(self.c.leaders)
        if self.c.slab_of != NULL:
            release(self.c.slab_of, self.c.num_keys * sizeof(uint32_t))

    # With other ranks of this host -----------------------------------------------------------------------

    @property
    def ticket(self):
        """What other processes need to map this store; None if they cannot map it."""
        return self.segment.ticket

    @property
    def reason(self):
        """Why other processes cannot map this store; None if they can."""
        return self.segment.reason

    def hide(self):
        """Let no further process map this store: all that share it have done so."""
        self.segment.hide()

    @property
    def hint_bytes(self):
        """Bytes of the segment of hints that ranks of one host share."""
        return SEGMENT_HEAD + self.c.num_keys

    def join(self, int local_rank, segments, Segment hints not None, HostPeers host_peers=None):
        """Make the values that other ranks of this host own reachable. Called before the store is used.

        Parameters
        ----------
        local_rank : int
            This rank's number on its host.
        segments : dict of int to Segment
            By local rank: the stores of the others, and None for this rank.
        hints : Segment
            Of `hint_bytes` bytes, mapped by all of them.
        host_peers : HostPeers, optional
            Checks on ranks that hold a latch for long.
        """
        cdef int i
        cdef key_t key
        self.c.views = <store_t**>calloc(NUM_VIEWS, sizeof(store_t*))
        if self.c.views == NULL:
            raise MemoryError("no memory for the stores of other ranks")
        self.shared = segments, hints, host_peers
        self.c.holder = <uint8_t>(local_rank + 1)
        self.c.leader_holder = <uint8_t>(min(segments) + 1)
        self.c.watch = NULL if host_peers is None else &host_peers.c.watch
        for i in range(NUM_VIEWS):  # an unused hint leads here as well
            self.c.views[i] = &self.c
        for i, segment in segments.items():
            if i != local_rank:
                self.c.views[i + 1] = new_view(&self.c, segment)
        self.c.hints = <uint8_t*>(hints.address + SEGMENT_HEAD)
        self.c.reaches_all = len(segments) == self.c.size
        with nogil:
            for key in range(self.c.num_keys):
                if self.c.entries[key].state == OWNED:
                    self.c.hints[key] = self.c.holder

    @property
    def num_keys(self):
        return self.c.num_keys

    def value_length(self, keys):
        """Return the number of elements of each key's value: an int array of the shape of `keys`."""
        cdef Py_ssize_t i
        cdef const key_t[::1] flat = np.ascontiguousarray(keys, dtype=np.int64).reshape(-1)
        lengths = np.empty(flat.shape[0], dtype=np.int64)
        cdef int64_t[::1] view = lengths
        for i in range(flat.shape[0]):
            view[i] = value_bytes(&self.c, flat[i]) // self.c.itemsize
        return lengths.reshape(np.shape(keys))

    def home(self, keys):
        """Return the home of each key: an int array of the shape of `keys`."""
        keys = np.asarray(keys, dtype=np.int64)
        return np.array([home_of(&self.c, key) for key in keys.ravel()], dtype=np.int64).reshape(keys.shape)

    def local_keys(self):
        """Return the keys that are owned here now, sorted: an int64 array. A replicated key belongs to its home."""
        cdef key_t key
        cdef int64_t count = 0
        keys = np.empty(self.c.num_keys, dtype=np.int64)
        cdef key_t[::1] view = keys
        with nogil:
            for key in range(self.c.num_keys):
                if belongs_here(&self.c, key):
                    view[count] = key
                    count += 1
        return keys[:count].copy()

    def written_keys(self, key_t first, size_t max_bytes):
        """Return the next keys whose values this rank saves: owned and written, or replicated with their home here.

        No key may move during the call.

        Parameters
        ----------
        first : int
            The key to start from.
        max_bytes : int
            Stop before keys, values and states together exceed this size; at least one key is returned, if there is
            any.

        Returns
        -------
        keys : int64 array
            Ascending.
        next : int
            The key to continue from; `num_keys` at the end.
        """
        cdef key_t key = first
        cdef int64_t count = 0
        cdef size_t size, taken = 0
        smallest = self.c.slabs[0].row_bytes + sizeof(key_t)
        keys = np.empty(min(max_bytes // smallest + 1, self.c.num_keys - first), dtype=np.int64)
        cdef key_t[::1] view = keys
        with nogil:
            while key < self.c.num_keys:
                if is_written(&self.c, key):
                    size = slab_for(&self.c, key).held_bytes + sizeof(key_t)
                    if count > 0 and taken + size > max_bytes:
                        break
                    taken += size
                    view[count] = key
                    count += 1
                key += 1
        return keys[:count], key

    def is_here(self, const key_t[::1] keys):
        """Return whether each key is owned or replicated here now: a bool array."""
        cdef int64_t i
        here = np.empty(keys.shape[0], dtype=np.uint8)
        cdef uint8_t[::1] view = here
        for i in range(keys.shape[0]):
            view[i] = is_here(&self.c.entries[keys[i]])
        return here.view(np.bool_)

    def is_reachable(self, const key_t[::1] keys):
        """As `is_here`, for this rank and the ranks that share memory with it."""
        cdef int64_t i
        found = np.empty(keys.shape[0], dtype=np.uint8)
        cdef uint8_t[::1] view = found
        for i in range(keys.shape[0]):
            view[i] = is_reachable(&self.c, keys[i])
        return found.view(np.bool_)

    def fill(self, const key_t[::1] keys, values):
        """Write initial values of keys that are here, without a message; replicas by the leader alone.

        The states of their optimizers begin anew. No other thread or rank may use the keys during the call.

        Parameters
        ----------
        keys : int64 array
        values : array
            1-D, one value after another. For replicated keys the same on all ranks.

        Raises
        ------
        ValueError
            If `values` has another number of elements than these keys take.
        """
        cdef int64_t i
        cdef entry_t* entry
        cdef slab_t* slab
        cdef const unsigned char[::1] data = np.ascontiguousarray(values, dtype=self.dtype).view(np.uint8)
        cdef size_t at = 0
        for i in range(keys.shape[0]):
            at += value_bytes(&self.c, keys[i])
        if at != <size_t>data.shape[0]:
            raise ValueError(f"{keys.shape[0]} keys take {at // self.c.itemsize} elements, not "
                             f"{data.shape[0] // self.c.itemsize}")
        at = 0
        for i in range(keys.shape[0]):
            entry = &self.c.entries[keys[i]]
            lock_entry(&self.c, entry)
            if entry.state == REPLICATED and is_leader(&self.c):
                fill_replica(&self.c.replicas, entry.slot, <const char*>&data[at])
                begin_state(&self.c.replicas, entry.slot)
            elif is_owned(entry):
                slab = slab_for(&self.c, keys[i])
                change_value(&self.c, keys[i], &entry.slot, SET, <const char*>&data[at], terms_of(0))
                memset(row_at(slab, entry.slot) + slab.row_bytes, 0, slab.held_bytes - slab.row_bytes)
            unlock_entry(entry)
            at += value_bytes(&self.c, keys[i])

    def read(self, const key_t[::1] keys):
        """Return the values of keys that are here: a 1-D array, one after another.

        Raises
        ------
        LookupError
            If a key is on another rank.
        """
        cdef int64_t i = 0
        cdef size_t at = 0
        cdef tally_t tally
        values = np.empty(int(self.value_length(keys).sum()), dtype=self.dtype)
        cdef unsigned char[::1] data = values.view(np.uint8)
        with nogil:
            while i < keys.shape[0] and access_here(&self.c, PULL, keys[i], <char*>&data[at], terms_of(0), &tally):
                at += value_bytes(&self.c, keys[i])
                i += 1
        if i < keys.shape[0]:
            raise LookupError(f"key {keys[i]} is not on rank {self.c.rank}: read only keys for which is_here is true")
        return values

    def clear(self):
        """Reset all values that are here to zero; as in `fill`, nobody else may use them."""
        cdef key_t key
        cdef entry_t* entry
        cdef size_t longest = self.c.slabs[self.c.num_slabs - 1].row_bytes
        zeros = np.zeros(longest, dtype=np.uint8)
        cdef unsigned char[::1] data = zeros
        with nogil:
            for key in range(self.c.num_keys):
                entry = &self.c.entries[key]
                lock_entry(&self.c, entry)
                if entry.state == REPLICATED and is_leader(&self.c):
                    fill_replica(&self.c.replicas, entry.slot, <const char*>&data[0])
                    begin_state(&self.c.replicas, entry.slot)
                elif is_owned(entry):
                    give_row_back(slab_for(&self.c, key), entry.slot, self.c.holder, self.c.watch)
                    set_slot(entry, NO_SLOT)
                unlock_entry(entry)
