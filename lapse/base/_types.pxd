"""Floor 0. The types that every module uses: keys, operations, the C state of a worker thread.

Declarations only.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lapse.base._sync cimport bell_t, doorbell_t

ctypedef int64_t key_t


cdef enum status_t:
    OK = 0
    NO_MEMORY = 1       # this rank could not allocate; nothing was sent for the key at hand
    TIMED_OUT = 2
    FAILED = 3          # the server has failed: some rank reported an error
    INTERRUPTED = 4     # a Python signal handler raised (main thread)
    CLOSED = 5
    BORROWS = 6         # the worker has borrowed values, and must return them before it waits


cdef enum:
    FAILURE_GRACE_SECONDS = 10  # from a failure to the end of a rank or thread that does not react to it


cdef enum operation_kind:
    # Messages that carry such a request use the same numbers as their kind.
    PULL = 1
    PUSH = 2
    SET = 3
    LOCALIZE = 4
    LOCATE = 5          # asks homes for the owners of keys
    RENDEZVOUS = 6      # a worker that waits for the other workers of its rank; never in a message
    GRADIENT = 7        # a step of the optimizer where the value lies


cdef enum wait_kind:
    # What a thread waits for that is no operation of its own; the numbers follow those of the operations.
    WAITS_FOR_OWN = 16      # all operations of its worker slot
    WAITS_FOR_RANK = 17     # all operations of its rank
    WAITS_FOR_ROOM = 18     # too many bytes are in flight
    WAITS_FOR_PACE = 19     # it is ahead of the rounds of replication
    WAITS_FOR_ROUND = 20    # the end of a round
    WAITS_FOR_MAIL = 21     # of a collective call


cdef struct counters_t:
    # Key positions and times of waiting since the last reset, counted by each worker for itself.
    int64_t pulled_keys
    int64_t pulled_local
    int64_t pulled_shared
    int64_t pulled_in_transit
    int64_t pushed_keys
    int64_t pushed_local
    int64_t pushed_shared
    int64_t pushed_in_transit
    int64_t localize_keys
    int64_t localize_local
    int64_t sampled_keys
    int64_t sampled_local
    int64_t values_nanoseconds      # waited for operations,
    int64_t rounds_nanoseconds      # for rounds of replication,
    int64_t meetings_nanoseconds    # and for other workers, in barriers and other collective calls


cdef packed struct terms_t:
    # How much a change counts. Gradients have it in front of them, in messages and while they are parked.
    double weight   # of a push, where replicas are combined; of a gradient its learning rate, NaN: the optimizer's own
    uint32_t step   # of a gradient: which of its caller's steps it belongs to, from 1 on; 0: the value counts its own


cdef inline terms_t terms_of(double weight) noexcept nogil:
    cdef terms_t terms
    terms.weight, terms.step = weight, 0
    return terms


cdef struct operation_t:
    # An unfinished call of a worker. It lives until `pending` is 0 and its worker has given it back; the thread that
    # brings `pending` to 0 does not touch it afterwards.
    int64_t pending             # key positions without an answer, plus 1 while it is being issued
    char* out                   # destination of a pull; NULL for other calls and after a cancel
    int64_t* offsets            # in bytes, by position; NULL if all values have the same length
    bint offsets_have_ends      # each value ends where the next one begins, and one more offset is where the last ends
    worker_slot_t* worker_slot
    operation_t* next           # in its worker slot's list of spare or of detached operations
    int64_t count               # all key positions, for error messages
    key_t asked_key             # one of those that other ranks were asked for, for reports
    terms_t terms               # of gradients
    uint8_t kind


cdef struct wait_t:
    # What a thread waits for, for the watchdog: copies, under a latch that is held only to write or read them.
    uint8_t latch
    int64_t since               # nanoseconds; 0: it does not wait. This one and the next are looked at without it
    int64_t progress_at         # when `pending` was last seen to change
    int64_t count               # key positions of the operation, and those without an answer;
    int64_t pending             # operations, if it waits for several
    key_t key
    int32_t what                # an `operation_kind` or `wait_kind`
    int32_t source              # of the mail that it waits for
    char call[40]               # the collective call


cdef struct worker_slot_t:
    # The C state of one worker thread. One more per rank serves the calls of the server itself.
    bell_t bell
    uint32_t on_doorbell        # this worker sleeps at its rank's doorbell
    doorbell_t* doorbell
    int64_t unfinished          # unfinished operations of this worker slot
    int32_t worker              # number within the rank; -1 for the server's own worker slot
    operation_t* spare          # finished operations, for reuse
    operation_t* detached       # issued without a handle, oldest first
    operation_t* last_detached
    uint32_t* missed            # positions of a batch whose keys are not here
    int64_t missed_capacity
    counters_t counters
    wait_t wait
    char padding[64]            # the slots of two threads never share a cache line
