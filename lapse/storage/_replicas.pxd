"""Floor 1. The replicas of this rank: three vectors for each replicated key.

`value` is what workers read and add to, `base` what all ranks have agreed on, `delta` what was pushed here and not sent
yet. The home of a key has a fourth vector, the `sum` of the contributions that it has collected and not sent yet.
`delta` and `sum` are valid only while their flag is set, so that they need not be cleared.

Every function is called under the latch of the key's directory entry. The lists have a latch of their own, which is
taken inside.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from lapse.base._types cimport key_t


cdef struct replica_t:
    key_t key
    char* value             # then base, then delta, `stride` bytes apart
    char* sum               # at the home only, else NULL
    uint8_t* contained      # at the home, by rank: whether `sum` contains that rank's contribution
    size_t bytes
    size_t stride
    uint32_t epoch          # how often the key was set; contributions of older epochs are ignored
    bint has_delta
    bint is_awaited         # this rank's contribution has not come back in a sum yet
    bint has_sum
    bint is_changed         # it is in the list `changed`
    bint is_collected       # at the home: it is in the list `collected`


cdef struct numbers_t:
    # Numbers of replicas, each at most once; two lists, so that one can be processed while the other grows.
    uint32_t* growing
    uint32_t* drained
    uint32_t count          # of the growing list


cdef struct replicas_t:
    replica_t* all
    uint32_t count
    int32_t itemsize
    uint8_t latch           # of the lists
    numbers_t changed       # replicas that were pushed to since the last round
    numbers_t collected     # replicas for which this home has contributions
    char* vectors
    size_t reserved
    uint8_t* contained


cdef inline char* base_of(const replica_t* replica) noexcept nogil:
    return replica.value + replica.stride


cdef inline char* delta_of(const replica_t* replica) noexcept nogil:
    return replica.value + 2 * replica.stride


cdef void read_replica(const replica_t* replica, char* out) noexcept nogil
cdef void push_replica(replicas_t* replicas, uint32_t number, const char* update) noexcept nogil
cdef void fill_replica(replica_t* replica, const char* value) noexcept nogil
cdef void add_contribution(replicas_t* replicas, uint32_t number, int32_t rank, const char* delta) noexcept nogil
cdef void add_sum(replicas_t* replicas, replica_t* replica, const char* total) noexcept nogil
cdef void note_changed(replicas_t* replicas, uint32_t number) noexcept nogil
cdef uint32_t drain(replicas_t* replicas, numbers_t* numbers) noexcept nogil

cdef int make_replicas(replicas_t* replicas, const key_t* keys, const size_t* sizes, const uint8_t* is_home,
                       uint32_t count, int32_t ranks, int32_t itemsize) noexcept
cdef void free_replicas(replicas_t* replicas) noexcept
