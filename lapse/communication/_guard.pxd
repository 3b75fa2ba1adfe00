"""Floor 3. The guard of a process: one thread, the same for all servers, that never waits for anybody.

It looks at each open server a few times a second (`_watchdog`), ends a process whose launcher is gone, whose
connections with another host are dead (`base/_connections`) or whose abort does not come to an end, and says on SIGUSR1
what everybody waits for. It calls neither MPI nor Python.

Who enters: any thread registers a server; the guard's own thread looks, under the latch of the registry, which comes
before all other locks.
"""

from libc.stdint cimport int64_t

from lapse.communication._text cimport text_t

cdef enum:
    MAX_ELAPSED = 750000000     # nanoseconds between two looks; in what is beyond that the process was stopped
    ABORT_DELAY = 300000000     # nanoseconds until the launcher has read why; what it has not, an abort discards
    ABORT_SECONDS = 5           # after which MPI_Abort has not ended this process: the launcher cannot be reached


cdef struct guarded_t:
    # A server, as the guard knows it.
    void* context
    void (*look)(void* context, int64_t elapsed) noexcept nogil     # elapsed: nanoseconds since the last look
    void (*describe)(void* context, text_t* text) noexcept nogil
    void (*end)(void* context, const char* why) noexcept nogil      # fail, because this process will be ended
    guarded_t* next


cdef void guard(guarded_t* server) noexcept nogil
cdef void leave_unguarded(guarded_t* server) noexcept nogil
cdef void end_process_after(int64_t seconds) noexcept nogil
