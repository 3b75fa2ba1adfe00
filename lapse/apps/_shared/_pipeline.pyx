"""Batches that are prepared ahead of their turn: the order of events that the kernels of all applications share.

A kernel fills a slot with a batch and calls `advance`. The batch is *prepared*: its keys are localized, and its samples
are drawn. When `lookahead` batches wait behind the oldest one, that one takes its turn: it *requests* its values, waits
for them, trains, and pushes what changed. By then its keys have arrived.

Messages are held while a batch is prepared and the oldest one requests its values, so that what both ask of the same
rank goes in one message.

The pipeline also knows how long its thread computes. A kernel says where its own computing begins and ends; what the
server does meanwhile is not part of it. For experiments with emulated hosts, computing can be stretched: it then takes
`slow_down` times its CPU time, and other processes can use the core meanwhile. Nothing else is stretched.
"""

from posix.time cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from lapse.base._sync cimport now, sleep_for

cdef enum:
    # Less than this is not slept at once, because a sleep ends up to some 0.1 ms late. (What is too much counts for
    # the next time.)
    SHORTEST_SLEEP = 1000000


cdef inline int64_t cpu_time() noexcept nogil:
    """The CPU time of this thread. Costs up to 1 us."""
    cdef timespec time
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec


cdef class Pipeline:
    """A ring of batches: the base class of the kernels, which implement the four steps below."""

    cdef int prepare(self, int slot) except -1 nogil:
        """Localize the batch's keys and prepare its samples."""
        return 0

    cdef int request(self, int slot) except -1 nogil:
        """Start to pull the batch's values, and wait for nothing."""
        return 0

    cdef int train_batch(self, int slot) except -1 nogil:
        """Wait for the values, train, and push."""
        return 0

    cdef int close_last(self) except -1 nogil:
        """No more data follow: call `advance` for the batch that is being filled, if it has any."""
        return 0

    cdef int give_back(self) except -1 nogil:
        """Return what the kernel has borrowed: nothing follows, or an error ends the training."""
        return 0

    @property
    def computing_seconds(self):
        """How long computing has taken: `slow_down` times its CPU time; 0 if it is neither timed nor stretched."""
        return self.computed * self.slow_down * 1e-9

    cdef int set_pace(self, double slow_down, bint is_timed) except -1:
        """Let computing take `slow_down` times its CPU time. If it is neither stretched nor timed, it has no costs."""
        if not slow_down >= 1:
            raise ValueError(f"slow_down is {slow_down}, but must be at least 1")
        self.slow_down = slow_down
        self.is_timed = is_timed or slow_down > 1
        return 0

    cdef void begin_computing(self) noexcept nogil:
        if self.is_timed:
            self.began = now()
            self.began_cpu = cpu_time()

    cdef void pause_computing(self) noexcept nogil:
        """As `end_computing`, but sleep later: for a kernel that must not keep others waiting here."""
        cdef int64_t spent
        if not self.is_timed:
            return
        spent = cpu_time() - self.began_cpu
        self.computed += spent
        if self.slow_down > 1:  # what the thread waited for a core meanwhile is part of the stretched time
            self.owed += <int64_t>(self.slow_down * spent) - (now() - self.began)

    cdef void end_computing(self) noexcept nogil:
        if self.is_timed:
            self.pause_computing()
            self.sleep_owed(SHORTEST_SLEEP)

    cdef void sleep_owed(self, int64_t at_least) noexcept nogil:
        """Sleep what stretched computing owes, unless it is less than `at_least`."""
        cdef int64_t began
        if self.owed >= at_least:
            began = now()
            sleep_for(self.owed)
            self.owed -= now() - began

    cdef int set_lookahead(self, int lookahead) except -1:
        if lookahead < 0:
            raise ValueError(f"lookahead is {lookahead}, but must be at least 0")
        self.num_slots = lookahead + 1
        return 0

    def finish(self):
        """Train what is prepared, and wait until every update has been applied."""
        try:
            with nogil:
                self.close_last()
                while self.num_prepared:
                    self.take_turn(False, True)
                self.give_back()
                self.wait(0)
                self.wait(1)
                if self.kv is not None:
                    self.kv.wait_everything()
                self.sleep_owed(1)
        except BaseException:
            self.settle()
            raise

    cdef int filling(self) noexcept nogil:
        """The slot of the next batch."""
        return (self.oldest + self.num_prepared) % self.num_slots

    cdef int advance(self) except -1 nogil:
        """The slot `filling` is complete. Prepare it; then the oldest one takes its turn, if enough are ahead."""
        self.take_turn(True, self.num_prepared + 1 == self.num_slots)
        return 0

    cdef int take_turn(self, bint prepares, bint trains) except -1 nogil:
        if self.kv is not None:
            self.kv.hold_messages()
        try:
            if prepares:
                self.prepare(self.filling())
                self.num_prepared += 1
            if trains:
                self.request(self.oldest)
        finally:
            if self.kv is not None:
                self.kv.release_messages()
        if trains:
            self.train_batch(self.oldest)
            self.oldest = (self.oldest + 1) % self.num_slots
            self.num_prepared -= 1
        return 0

    cdef int wait(self, int operation) except -1 nogil:
        """Wait for one of `operations`, if it is not done."""
        if self.operations[operation] != NULL:
            self.kv.wait_for(self.operations[operation])
            self.operations[operation] = NULL
        return 0

    cdef int settle(self) except -1:
        """After an error: nothing may write into the kernel's memory any more when it is freed, nor stay borrowed."""
        cdef int i
        for i in range(2):
            if self.operations[i] != NULL:
                self.kv.cancel(self.operations[i])
                self.operations[i] = NULL
        self.give_back()
        return 0
