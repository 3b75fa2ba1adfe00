"""Floor 3. How long threads poll, yield and sleep while they wait. Declarations only.

Timed sleeps are expensive on virtual machines: short ones cost a computing neighbour more than they gain. A yield
beside a thread that computes costs its whole time slice.
"""

from libc.stdint cimport int64_t

from lapse.base._sync cimport now, peek, put, sched_yield

cdef enum:
    # Nanoseconds.
    LONG_SLEEP = 2000000
    SHORT_SLEEP = 200000
    FAR_SLEEP = 50000           # of a worker whose answer comes from another host, or during a round: no bell wakes it
    BRIEF_SLEEP = 10000         # in place of a yield, if time is dilated: cores are for others meanwhile
    QUIET_SLEEP = 5000000       # while nothing has been sent or received for QUIET_AFTER
    QUIET_AFTER = 50000000
    RECENT_TRAFFIC = 10000000
    LINGER = 100000             # more than a round trip over TCP
    SLOW_YIELD = 300000         # after one that took so long, waiting threads sleep on their bells for a while
    YIELDS_FOR = 2000000        # without news; a thread that waits longer need not be quick, and sleeps
    MIN_YIELD_PENALTY = 20000000
    MAX_YIELD_PENALTY = 640000000

cdef enum:
    PRECISE = 1000              # timer slack, in nanoseconds
    MAX_EMPTY_POLLS = 100       # before a waiting thread yields or sleeps
    MAX_COSTLY_POLLS = 20       # the same if cores are few, or if each poll is a system call
    TURNS_PER_CLOCK = 256       # of a waiting thread's loop, between looks at the clock


cdef extern from *:
    r"""
    #ifndef LAPSE_WAITING
    #define LAPSE_WAITING
    #if defined(__linux__)
    #include <sys/prctl.h>
    /* By how much sleeps of this thread may be lengthened, which is 50 us as a rule; returns what it was. */
    static inline long lapse_timer_slack(long nanoseconds) {
        long before = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
        prctl(PR_SET_TIMERSLACK, nanoseconds, 0, 0, 0);
        return before;
    }
    #else
    static inline long lapse_timer_slack(long nanoseconds) { return nanoseconds; }
    #endif
    #endif
    """
    long set_timer_slack "lapse_timer_slack"(long nanoseconds) noexcept nogil


cdef struct yielding_t:
    # Guesses, which all waiting threads of a rank share.
    int64_t forbidden_until     # yields were slow: some other thread computes
    int64_t penalty             # for how long the last slow yield forbade others


cdef inline void yield_core(yielding_t* yielding, int64_t time) noexcept nogil:
    """Yield. If that took long, other threads compute, and waiting threads of this rank sleep for a while instead."""
    cdef int64_t after, penalty
    sched_yield()
    after = now()
    if after - time > SLOW_YIELD:
        penalty = min(max(2 * peek(&yielding.penalty), <int64_t>MIN_YIELD_PENALTY), <int64_t>MAX_YIELD_PENALTY)
        put(&yielding.penalty, penalty)
        put(&yielding.forbidden_until, after + penalty)
    elif peek(&yielding.penalty):
        put(&yielding.penalty, 0)


cdef inline bint may_yield(const yielding_t* yielding, int64_t time) noexcept nogil:
    """Whether no slow yield forbids one now."""
    return time > peek(&yielding.forbidden_until)
