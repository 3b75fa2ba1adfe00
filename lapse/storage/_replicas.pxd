"""Floor 1. The replicas of this rank and the ranks that share memory with it: vectors for each replicated key.

`value` is what workers read and add to, `base` what all hosts have agreed on, `mark` what `value` was when it was sent
last: what was pushed here since, the *delta*, is the difference. The home of a key has one more, the `sum` of the
contributions that it has collected and not sent yet, and up to two more, if the rule of combination or the wire needs
them.

If workers may borrow replicas (`lend_replica`), each has a vector `aside`. While a replica is lent, its borrowers
change `value` without a latch, and nobody else writes there. What others push meanwhile, and what rounds and sets
bring, goes aside, and is added to `value` and `mark` when the last borrower has returned it. Whoever reads the replica
reads the sum of `value` and `aside`. The delta is `value - mark` at any moment: a push that goes aside is subtracted
from `mark`.

`aside` and `sum` are valid only while a flag is set, so that they need not be cleared.

Ranks that share memory have one copy of all this. The first of them, their *leader*, alone exchanges messages about it;
the others read and push in place, under the latch of the key's entry in the leader's directory. So replicas, vectors
and the list of those that were changed lie in a segment, without addresses; the vectors of homes are the leader's own.

A key of level n takes part in every 2**n-th round. The keys of a level take turns, by their numbers, so that each round
has about as much to send as the next; changed keys are listed by turn.

Every function is called under the latch of the key's directory entry. The lists have a latch of their own, which is
taken inside.
"""

from libc.math cimport sqrtf
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

from lapse.base._sync cimport watch_t
from lapse.base._types cimport key_t
from lapse.base._values cimport prefetch, prefetch_bytes

cdef enum:
    NUM_LEVELS = 16
    MOST_TURNS = 64         # of a level: 2**level, but no more
    NUM_TURNS = 703         # of all levels: 1 + 2 + 4 + ... + 64, and 9 times 64
    ROUNDS_BYTES = 2048     # of a segment of replicas, for what ranks that share it know about rounds
    LENT_TO_ONE = 0xFFFF    # no other worker may join


cdef struct weight_t:
    # Of additions: how many pushes they are, or what the worker says.
    float all
    float late              # of those that were computed before the last sum had come


cdef struct replica_t:
    # In the order in which it is needed: pulls and pushes need only the first part.
    size_t at               # of `value`, counted from this struct; then base, mark and aside, `stride` bytes apart
    size_t bytes
    size_t stride
    key_t key
    weight_t weight         # of the pushes that the delta contains
    uint16_t lent           # how many workers have borrowed it; LENT_TO_ONE: one alone
    uint8_t level
    uint8_t has_aside
    uint8_t has_delta
    uint8_t has_rest        # the delta is what rounding kept back of the last contribution: nothing was pushed since
    uint8_t is_changed      # it is in a list of changed replicas
    uint32_t epoch          # how often the key was set; contributions of older epochs are ignored
    uint16_t contributors   # at the home: how many contributions `sum` contains
    uint16_t turn           # among those of all levels
    uint8_t has_sum
    uint8_t is_collected    # at the home: it is in the list `collected`
    weight_t total_weight   # at the home: of the contributions that `sum` contains
    # Addresses in the leader's process, which alone uses them.
    char* sum               # at the home only, else NULL
    float* owed             # at the home, with bfloat16 on the wire: what rounding has kept back so far
    float* growth           # at the home, for AdaGrad: by how much the square roots of the accumulators grew apart


cdef struct replica_gradient_t:
    # Of a replica with an optimizer: the gradients that were applied here and not sent yet, summed. In the segment.
    size_t at               # of their vector, counted from this struct
    double rates            # the learning rates of all calls, added up
    double calls
    uint32_t step           # the largest of all calls, see `terms_t`
    uint8_t is_there


cdef struct home_gradient_t:
    # The same at the home: of all ranks. With the state of the optimizer. Addresses in the leader's process.
    char* total             # NULL if the home is elsewhere, or there is no optimizer
    char* stepped           # scratch: the value as the step leaves it
    char* state
    size_t state_bytes
    double rates
    double calls
    uint32_t step
    uint8_t has_total


cdef struct list_t:
    # Replicas, each at most once, linked by `following`: the number of a replica plus 1; 0 at the end.
    uint32_t first
    uint32_t count


cdef struct lists_t:
    # Replicas that were pushed to since they last took part in a round, by turn.
    uint8_t latch
    uint32_t num_changed
    list_t changed[NUM_TURNS]


cdef struct numbers_t:
    # Numbers of replicas, each at most once; two lists, so that one can be processed while the other grows.
    uint32_t* growing
    uint32_t* drained
    uint32_t count          # of the growing list


cdef struct replicas_t:
    # Shared
    replica_t* all
    lists_t* lists
    uint32_t* following     # as `all`; beside each other, since who walks along a list reads nothing else
    char* rounds            # ROUNDS_BYTES for floor 2
    replica_gradient_t* gradients   # as `all`; NULL if no replicated key has an optimizer
    # Of this rank
    uint32_t count
    int32_t itemsize
    uint8_t holder          # as in store_t
    bint can_lend
    watch_t* watch
    # Of the leader
    uint32_t homes          # how many of them have their home here
    uint8_t latch           # of `collected`
    uint32_t* drained       # numbers of the replicas whose deltas are being sent
    numbers_t collected     # replicas for which this home has contributions
    char* sums
    size_t reserved
    bint has_squares        # the second half of a value are AdaGrad's sums of squares
    home_gradient_t* home_gradients     # as `all`, or NULL
    char* home_vectors      # that they name
    size_t home_reserved
    float* more_vectors     # `owed` and `growth` of all replicas
    size_t more_reserved


cdef inline float root_growth(float before, float added) noexcept nogil:
    # By how much the square root of a sum of squares grows; without cancellation.
    cdef float roots = sqrtf(max(before + added, <float>0)) + sqrtf(max(before, <float>0))
    return added / roots if roots > 0 else <float>0


cdef inline char* value_of(const replica_t* replica) noexcept nogil:
    return <char*>replica + replica.at


cdef inline char* base_of(const replica_t* replica) noexcept nogil:
    return value_of(replica) + replica.stride


cdef inline char* mark_of(const replica_t* replica) noexcept nogil:
    return value_of(replica) + 2 * replica.stride


cdef inline char* aside_of(const replica_t* replica) noexcept nogil:
    return value_of(replica) + 3 * replica.stride


cdef inline int turns_of(int level) noexcept nogil:
    """How many turns the keys of a level take."""
    return min(1 << level, MOST_TURNS)


cdef inline int first_turn(int level) noexcept nogil:
    """The number of a level's first turn; those of lower levels come before it."""
    cdef int crowded = max(level - 6, 0)  # levels whose turns are the maximum
    return (1 << (level - crowded)) - 1 + crowded * MOST_TURNS


cdef inline void prefetch_replica(const replica_t* replica) noexcept nogil:
    """Fetch ahead what `prefetch_vectors` reads."""
    prefetch(replica)
    prefetch(<const char*>(replica + 1) - 1)


cdef inline void prefetch_vectors(const replica_t* replica) noexcept nogil:
    """Fetch ahead the first bytes of value, base and mark, which rounds need, or all of it if vectors are short."""
    if 3 * replica.stride <= 64:
        prefetch(value_of(replica))
        prefetch(mark_of(replica) + replica.stride - 1)
        return
    prefetch_bytes(value_of(replica), replica.bytes)
    prefetch_bytes(base_of(replica), replica.bytes)
    prefetch_bytes(mark_of(replica), replica.bytes)


cdef void read_replica(const replicas_t* replicas, uint32_t number, char* out) noexcept nogil
cdef void push_replica(replicas_t* replicas, uint32_t number, const char* update, float weight) noexcept nogil
cdef char* lend_replica(replicas_t* replicas, uint32_t number, bint shared) noexcept nogil
cdef bint take_replica_back(replicas_t* replicas, uint32_t number, float weight) noexcept nogil
cdef void read_delta(const replicas_t* replicas, const replica_t* replica, char* seen, char* delta) noexcept nogil
cdef void fill_replica(replicas_t* replicas, uint32_t number, const char* value) noexcept nogil
cdef void add_contribution(replicas_t* replicas, uint32_t number, const char* delta, weight_t weight) noexcept nogil
cdef void add_sum(replicas_t* replicas, replica_t* replica, const char* total) noexcept nogil
cdef void note_collected(replicas_t* replicas, uint32_t number) noexcept nogil
cdef void note_changed(replicas_t* replicas, uint32_t number) noexcept nogil
cdef uint32_t drain_changed(replicas_t* replicas, int turn) noexcept nogil
cdef uint32_t drain_collected(replicas_t* replicas) noexcept nogil

cdef inline int vectors_of(bint can_lend) noexcept nogil:
    """How many vectors of each replica ranks that share memory have in common."""
    return 4 if can_lend else 3


cdef size_t lay_out_replicas(replicas_t* replicas, char* address, const size_t* sizes, uint32_t count,
                             bint has_gradients, bint can_lend) noexcept
cdef int make_replicas(replicas_t* replicas, const key_t* keys, const size_t* sizes, const uint8_t* is_home) noexcept
cdef int make_gradients(replicas_t* replicas, const size_t* state_bytes, const uint8_t* is_home) noexcept
cdef void set_levels(replicas_t* replicas, const uint8_t* levels) noexcept
cdef int add_home_vectors(replicas_t* replicas, bint owed, bint growth) noexcept
cdef void free_replicas(replicas_t* replicas) noexcept
