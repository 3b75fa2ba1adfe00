"""Floor 0. What threads need to share memory: atomics, the byte latch, futex sleeps, the clock.

Declarations only. The atomics are the compiler's builtins, so that a C compiler suffices
(Cython's `libcpp.atomic` would require a C++ compiler).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef extern from *:
    r"""
    #ifndef LAPSE_SYNC
    #define LAPSE_SYNC
    #include <errno.h>
    #include <limits.h>
    #include <sched.h>
    #include <stdint.h>
    #include <time.h>
    #include <unistd.h>

    #if defined(__x86_64__) || defined(__i386__)
    #define lapse_pause() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define lapse_pause() __asm__ __volatile__("yield" ::: "memory")
    #else
    #define lapse_pause() __asm__ __volatile__("" ::: "memory")
    #endif

    static inline int64_t lapse_load(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void lapse_store(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline int64_t lapse_add(int64_t *p, int64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
    static inline uint32_t lapse_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void lapse_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint32_t lapse_add32(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
    static inline uint32_t lapse_swap32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
    #define lapse_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

    /* A word that other threads read or write meanwhile, whole but in no order with other words: for looks without a
       lock, whose answer may be out of date. On all usual processors this costs what a plain access costs. */
    #define lapse_peek(p) __atomic_load_n(p, __ATOMIC_RELAXED)
    #define lapse_put(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)

    /* A latch is 0 when it is free, else the number of its holder: 1 in private memory, and in memory that ranks of
       a host share the local rank of the holder, plus 1. Only a free one is written to: those who wait for a dead
       holder read its number. */
    static inline int lapse_try_latch_as(uint8_t *latch, uint8_t holder) {
        uint8_t unheld = 0;
        return !__atomic_load_n(latch, __ATOMIC_RELAXED)
            && __atomic_compare_exchange_n(latch, &unheld, holder, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
    }
    static inline int lapse_try_latch(uint8_t *latch) { return lapse_try_latch_as(latch, 1); }

    static inline int64_t lapse_now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    static inline void lapse_nap(int64_t nanoseconds) {
        struct timespec t = {nanoseconds / 1000000000, nanoseconds % 1000000000};
        nanosleep(&t, 0);
    }

    /* Called when a latch is held for long: its holder may be dead, or stopped. */
    typedef struct lapse_watch {
        void (*look)(struct lapse_watch *watch, uint8_t holder, int64_t waited);
    } lapse_watch;
    #define LAPSE_LONG_WAIT 10000000

    /* Spins first, because a latch is held only for the copy of one value; then yields the core, and finally sleeps
       in steps: the holder may have lost its core to a computing thread. */
    static __attribute__((noinline, unused)) void lapse_wait_latch(uint8_t *latch, uint8_t holder, lapse_watch *watch) {
        int64_t began = 0, waited;
        uint8_t current;
        for (int64_t turn = 0; !lapse_try_latch_as(latch, holder); turn++) {
            if (turn < 200) { lapse_pause(); continue; }
            if (turn < 300) { sched_yield(); continue; }
            if (!began) began = lapse_now();
            waited = lapse_now() - began;
            current = __atomic_load_n(latch, __ATOMIC_RELAXED);
            if (watch && current && waited > LAPSE_LONG_WAIT) watch->look(watch, current, waited);
            lapse_nap(waited < LAPSE_LONG_WAIT ? 50000 : 1000000);
        }
    }
    static inline void lapse_latch_as(uint8_t *latch, uint8_t holder, lapse_watch *watch) {
        if (!lapse_try_latch_as(latch, holder)) lapse_wait_latch(latch, holder, watch);
    }
    static inline void lapse_latch(uint8_t *latch) { lapse_latch_as(latch, 1, 0); }
    static inline void lapse_unlatch(uint8_t *latch) { __atomic_store_n(latch, 0, __ATOMIC_RELEASE); }

    /* Sleeps for at most `nanoseconds` while *word == expected, until the word is woken. The word may lie in memory
       that ranks of a host share. Systems other than Linux sleep for a short time instead. */
    #if defined(__linux__)
    #include <linux/futex.h>
    #include <sys/syscall.h>
    static inline void lapse_futex_wait(uint32_t *word, uint32_t expected, int64_t nanoseconds) {
        struct timespec t = {nanoseconds / 1000000000, nanoseconds % 1000000000};
        syscall(SYS_futex, word, FUTEX_WAIT, expected, &t, 0, 0);
    }
    static inline void lapse_futex_wake(uint32_t *word, int count) {
        syscall(SYS_futex, word, FUTEX_WAKE, count, 0, 0, 0);
    }
    /* The same for sleepers that are selected by a bit; this system call takes an absolute end time. */
    static inline void lapse_futex_wait_bits(uint32_t *word, uint32_t expected, int64_t nanoseconds, uint32_t bits) {
        int64_t end = lapse_now() + nanoseconds;
        struct timespec t = {end / 1000000000, end % 1000000000};
        syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, &t, 0, bits);
    }
    static inline void lapse_futex_wake_bits(uint32_t *word, uint32_t bits) {
        syscall(SYS_futex, word, FUTEX_WAKE_BITSET, 1, 0, 0, bits);
    }
    #else
    static inline void lapse_futex_wait_bits(uint32_t *word, uint32_t expected, int64_t nanoseconds, uint32_t bits) {
        (void)bits;
        if (lapse_load32(word) == expected) lapse_nap(nanoseconds < 200000 ? nanoseconds : 200000);
    }
    static inline void lapse_futex_wake_bits(uint32_t *word, uint32_t bits) { (void)word; (void)bits; }
    static inline void lapse_futex_wait(uint32_t *word, uint32_t expected, int64_t nanoseconds) {
        if (lapse_load32(word) == expected) lapse_nap(nanoseconds < 200000 ? nanoseconds : 200000);
    }
    static inline void lapse_futex_wake(uint32_t *word, int count) { (void)word; (void)count; }
    #endif
    #endif
    """
    void pause "lapse_pause"() noexcept nogil
    int64_t load "lapse_load"(const int64_t* word) noexcept nogil
    void store "lapse_store"(int64_t* word, int64_t value) noexcept nogil
    int64_t fetch_add "lapse_add"(int64_t* word, int64_t value) noexcept nogil
    uint32_t load32 "lapse_load32"(const uint32_t* word) noexcept nogil
    void store32 "lapse_store32"(uint32_t* word, uint32_t value) noexcept nogil
    uint32_t fetch_add32 "lapse_add32"(uint32_t* word, uint32_t value) noexcept nogil
    uint32_t swap32 "lapse_swap32"(uint32_t* word, uint32_t value) noexcept nogil
    void fence "lapse_fence"() noexcept nogil

    int64_t peek "lapse_peek"(const int64_t* word) noexcept nogil
    uint32_t peek32 "lapse_peek"(const uint32_t* word) noexcept nogil
    uint8_t peek8 "lapse_peek"(const uint8_t* word) noexcept nogil
    int32_t peek_int "lapse_peek"(const int32_t* word) noexcept nogil
    void put "lapse_put"(int64_t* word, int64_t value) noexcept nogil
    void put32 "lapse_put"(uint32_t* word, uint32_t value) noexcept nogil
    void put8 "lapse_put"(uint8_t* word, uint8_t value) noexcept nogil
    void put_int "lapse_put"(int32_t* word, int32_t value) noexcept nogil

    bint try_latch "lapse_try_latch"(uint8_t* latch) noexcept nogil
    void take_latch "lapse_latch"(uint8_t* latch) noexcept nogil
    void drop_latch "lapse_unlatch"(uint8_t* latch) noexcept nogil

    ctypedef struct watch_t "lapse_watch":
        void (*look)(watch_t* watch, uint8_t holder, int64_t waited) noexcept nogil
    bint try_latch_as "lapse_try_latch_as"(uint8_t* latch, uint8_t holder) noexcept nogil
    void take_latch_as "lapse_latch_as"(uint8_t* latch, uint8_t holder, watch_t* watch) noexcept nogil

    int64_t now "lapse_now"() noexcept nogil              # nanoseconds, monotonic
    void sleep_for "lapse_nap"(int64_t nanoseconds) noexcept nogil
    void futex_wait "lapse_futex_wait"(uint32_t* word, uint32_t expected, int64_t nanoseconds) noexcept nogil
    void futex_wake "lapse_futex_wake"(uint32_t* word, int count) noexcept nogil

    void futex_wait_bits "lapse_futex_wait_bits"(uint32_t* word, uint32_t expected, int64_t nanoseconds,
                                                 uint32_t bits) noexcept nogil
    void futex_wake_bits "lapse_futex_wake_bits"(uint32_t* word, uint32_t bits) noexcept nogil

cdef extern from "<sched.h>":
    int sched_yield() noexcept nogil


cdef struct bell_t:
    # One thread sleeps on it. A thread that has news for the sleeper rings; if nobody sleeps, ringing costs one load.
    uint32_t rings
    uint32_t asleep


cdef inline void ring(bell_t* bell) noexcept nogil:
    fetch_add32(&bell.rings, 1)
    fence()
    if load32(&bell.asleep):
        futex_wake(&bell.rings, 1)


cdef inline void sleep_until_rung(bell_t* bell, uint32_t heard, int64_t nanoseconds) noexcept nogil:
    # `heard` is the count that was read before the caller last looked for work, so that a ring since then is not
    # missed.
    store32(&bell.asleep, 1)
    fence()
    if load32(&bell.rings) == heard:
        futex_wait(&bell.rings, heard, nanoseconds)
    store32(&bell.asleep, 0)


cdef enum:
    THREAD_BIT = 1
    WORKER_BIT = 2


cdef struct doorbell_t:
    # One per rank, if possible in memory that all ranks of a host share: other ranks ring it after they have sent
    # something. The communication thread listens, and at most one waiting worker; the worker is woken first because
    # the news is mostly its answer.
    uint32_t rings
    uint32_t thread_asleep
    uint32_t worker_asleep
    uint32_t awake          # threads of this rank that are polling now
    int32_t process         # process id of this rank, checked by those who wait for a latch that it holds
    int32_t rank
    uint32_t looks          # how often this rank found no message: what was sent before the last two looks was seen
    char padding[36]


cdef inline void ring_doorbell(doorbell_t* doorbell) noexcept nogil:
    fetch_add32(&doorbell.rings, 1)
    fence()
    if load32(&doorbell.worker_asleep):
        futex_wake_bits(&doorbell.rings, WORKER_BIT)
    elif load32(&doorbell.thread_asleep):
        futex_wake_bits(&doorbell.rings, THREAD_BIT)
