"""Floor 4. A thread's place on a rank: its worker slot, how it waits there, and the errors that it raises."""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int32_t, uint32_t
from libc.string cimport strncpy

import collections
import os
import threading
import warnings
import weakref

from lapse.errors import ClosedError

from lapse.communication._failure cimport is_broken
from lapse.protocol._rank cimport rank_t
from lapse.protocol._rounds cimport begin_round_if_due, rounds_t, runs_ahead, waiting_here
from lapse.worker._slot_operations cimport is_finished
from lapse.base._counting cimport add_to
from lapse.base._sync cimport drop_latch, fetch_add32, load, load32, now, put, store, take_latch
from lapse.base._types cimport (BORROWS, CLOSED, FAILED, INTERRUPTED, NO_MEMORY, OK, RENDEZVOUS, TIMED_OUT,
                                WAITS_FOR_MAIL, WAITS_FOR_OWN, WAITS_FOR_PACE, WAITS_FOR_RANK, WAITS_FOR_ROOM,
                                WAITS_FOR_ROUND, wait_t)

cdef int64_t SIGNAL_EVERY = 50000000        # nanoseconds between looks for signals
cdef bint forked = False

_waiters = weakref.WeakSet()


def _after_fork():
    global forked
    cdef Waiter waiter
    forked = True
    for waiter in _waiters:
        waiter.thread = 0


os.register_at_fork(after_in_child=_after_fork)


# Conditions to wait for ----------------------------------------------------------------------------------------------

cdef bint nothing_unfinished(void* worker_slot) noexcept nogil:
    return load(&(<worker_slot_t*>worker_slot).unfinished) == 0


cdef bint is_rank_at_rest(void* protocol) noexcept nogil:
    cdef rank_t* state = &(<protocol_t*>protocol).rank
    cdef int32_t i
    for i in range(state.num_worker_slots):
        if load(&state.worker_slots[i].unfinished):
            return False
    return True


cdef bint keeps_pace(void* rounds) noexcept nogil:
    return not runs_ahead(<rounds_t*>rounds)


cdef struct round_wait_t:
    rounds_t* rounds
    int64_t number


cdef bint has_ended(void* what) noexcept nogil:
    """Whether all ranks have ended a round."""
    cdef round_wait_t* wanted = <round_wait_t*>what
    return load(&wanted.rounds.common.summed) >= wanted.number


cdef struct mail_wait_t:
    void* comm
    int32_t source


cdef bint has_mail(void* what) noexcept nogil:
    cdef mail_wait_t* wanted = <mail_wait_t*>what
    return (<Comm>wanted.comm).mail.has_mail(wanted.source)


cdef class Waiter:
    """One thread at one worker slot of a rank. Nothing of it is for users."""

    # Whether the thread may make calls -----------------------------------------------------------------------------

    cdef int check_thread(self) except -1:
        if not may_call(self):
            self.refuse_thread()
        return 0

    cdef int refuse_thread(self) except -1:
        """Raise why this thread may not make calls, unless any thread may."""
        if forked:
            raise RuntimeError("a worker cannot be used in a forked child, because MPI does not survive a fork; "
                               "start ranks with mpirun")
        if self.retired:
            raise ClosedError(f"worker {self.id} was used after its run")
        if self.any_thread:
            return 0
        raise RuntimeError(f"worker {self.id} belongs to another thread, {self.thread_name!r}, and was used in "
                           f"{threading.current_thread().name!r}: give each thread a worker of its own "
                           "(Server(workers=N) and run)")

    cdef int check_usable(self) except -1:
        self.check_thread()
        if load32(&self.comm.ending):
            self.raise_status(CLOSED)
        if is_broken(self.comm.failure):
            self.raise_status(FAILED)
        if self.num_borrowed:
            self.raise_status(BORROWS)
        return 0

    # Waiting -------------------------------------------------------------------------------------------------------

    cdef int block(self, ready_t ready, void* what, int64_t deadline) except -1 nogil:
        cdef int64_t time
        cdef int64_t* waited
        cdef int status
        if self.num_borrowed:
            return self.check(BORROWS)
        if ready(what):
            return OK
        waited = self.clock_of(ready, what)  # when it is done, an operation may belong to somebody else already
        time = now()
        self.note_wait(ready, what, time)
        while True:
            status = self.comm.wait(self.worker_slot, ready, what, min(SIGNAL_EVERY, max(deadline - time, <int64_t>0)))
            add_to(waited, now() - time)
            if status == TIMED_OUT:
                time = now()
                if time < deadline and not self.is_interrupted():
                    self.note_progress(ready, what)
                    continue
                status = TIMED_OUT if time >= deadline else INTERRUPTED
            self.note_end_of_wait()
            return TIMED_OUT if status == TIMED_OUT else self.check(status)

    cdef int64_t* clock_of(self, ready_t ready, void* what) noexcept nogil:
        """Where the time of a wait is counted."""
        cdef counters_t* counters = &self.worker_slot.counters
        if ready == keeps_pace or ready == has_ended:
            return &counters.rounds_nanoseconds
        if ready == has_mail or (ready == is_finished and (<operation_t*>what).kind == RENDEZVOUS):
            return &counters.meetings_nanoseconds
        return &counters.values_nanoseconds

    cdef int block_on_operation(self, operation_t* operation, int64_t deadline) except -1 nogil:
        return self.block(is_finished, operation, deadline)

    cdef int block_on_own_operations(self) except -1 nogil:
        return self.block(nothing_unfinished, self.worker_slot, INT64_MAX)

    cdef bytes receive(self, int32_t source):
        """Wait for the next mail from a rank."""
        cdef mail_wait_t wanted
        wanted.comm = <void*>self.comm
        wanted.source = source
        with nogil:
            self.block(has_mail, &wanted, INT64_MAX)
        return self.comm.mail.take(source)

    cdef int wait_for_room(self) noexcept nogil:
        """Too many bytes are in flight: drive until there are fewer."""
        return self.wait_or_interrupt(has_room, self.protocol)

    cdef int wait_for_round(self) noexcept nogil:
        """This rank runs ahead of what the others know of it: drive until its next round has begun."""
        cdef rounds_t* rounds = &self.protocol.replication.rounds
        cdef int status
        fetch_add32(waiting_here(rounds), 1)
        status = begin_round_if_due(rounds)
        if status == OK:
            status = self.wait_or_interrupt(keeps_pace, rounds)
        fetch_add32(waiting_here(rounds), <uint32_t>-1)
        return status

    cdef int block_on_round(self, int64_t number) except -1 nogil:
        cdef round_wait_t wanted
        wanted.rounds = &self.protocol.replication.rounds
        wanted.number = number
        fetch_add32(waiting_here(wanted.rounds), 1)
        try:
            self.block(has_ended, &wanted, INT64_MAX)
        finally:
            fetch_add32(waiting_here(wanted.rounds), <uint32_t>-1)
        return 0

    cdef int wait_or_interrupt(self, ready_t ready, void* what) noexcept nogil:
        cdef int status = BORROWS if self.num_borrowed else TIMED_OUT
        cdef int64_t began = now()
        self.note_wait(ready, what, began)
        while status == TIMED_OUT:
            status = self.comm.wait(self.worker_slot, ready, what, SIGNAL_EVERY)
            if status == TIMED_OUT:
                self.note_progress(ready, what)
                if self.is_interrupted():
                    status = INTERRUPTED
        self.note_end_of_wait()
        add_to(self.clock_of(ready, what), now() - began)
        return status

    cdef bint is_interrupted(self) noexcept with gil:
        """Whether a signal handler of Python raises; `raise_status` raises it again. For the main thread only."""
        try:
            PyErr_CheckSignals()
        except BaseException as error:
            self.interrupt = error
        return self.interrupt is not None

    cdef void note_wait(self, ready_t ready, void* what, int64_t time) noexcept nogil:
        """Tell the watchdog what this thread begins to wait for."""
        cdef wait_t* wait = &self.worker_slot.wait
        cdef int64_t pending = self.unfinished_of(ready, what)
        take_latch(&wait.latch)
        put(&wait.progress_at, 0)
        if ready == is_finished:
            wait.what = (<operation_t*>what).kind
            wait.count = (<operation_t*>what).count
            wait.key = (<operation_t*>what).asked_key
        elif ready == has_mail:
            wait.what = WAITS_FOR_MAIL
            wait.source = (<mail_wait_t*>what).source
        elif ready == has_room:
            wait.what = WAITS_FOR_ROOM
        elif ready == keeps_pace:
            wait.what = WAITS_FOR_PACE
        elif ready == has_ended:
            wait.what = WAITS_FOR_ROUND
        else:
            wait.what = WAITS_FOR_OWN if ready == nothing_unfinished else WAITS_FOR_RANK
        wait.pending = pending
        store(&wait.since, time)
        drop_latch(&wait.latch)

    cdef void note_end_of_wait(self) noexcept nogil:
        cdef wait_t* wait = &self.worker_slot.wait
        take_latch(&wait.latch)
        store(&wait.since, 0)
        drop_latch(&wait.latch)

    cdef void note_progress(self, ready_t ready, void* what) noexcept nogil:
        """Tell the watchdog whether what this thread waits for has come nearer."""
        cdef wait_t* wait = &self.worker_slot.wait
        cdef int64_t pending = self.unfinished_of(ready, what)
        if pending != wait.pending:
            take_latch(&wait.latch)
            wait.pending = pending
            put(&wait.progress_at, now())
            drop_latch(&wait.latch)

    cdef int64_t unfinished_of(self, ready_t ready, void* what) noexcept nogil:
        """A number that changes when what is waited for makes progress."""
        cdef int64_t total = 0
        cdef int32_t i
        if ready == is_finished:
            return load(&(<operation_t*>what).pending)
        if ready == nothing_unfinished:
            return load(&self.worker_slot.unfinished)
        if ready == has_room or ready == is_rank_at_rest:
            for i in range(self.protocol.rank.size):
                total += load(&self.protocol.rank.flow.in_flight[i])
        return total

    # Errors --------------------------------------------------------------------------------------------------------

    cdef int check(self, int status) except -1 nogil:
        if status != OK:
            with gil:
                self.raise_status(status)
        return 0

    cdef int raise_status(self, int status) except -1:
        if status == NO_MEMORY:
            raise MemoryError("no memory for an operation's bookkeeping; what was not sent was not carried out")
        if status == INTERRUPTED:
            interrupt, self.interrupt = self.interrupt, None
            raise interrupt
        if status == CLOSED:
            raise ClosedError("the server is closed")
        if status == BORROWS:
            raise RuntimeError(f"worker {self.id} may not wait while it has borrowed {self.num_borrowed} values, "
                               "because others may wait for them: return_keys first")
        raise self.comm.failure.error()


cdef bint was_forked() noexcept nogil:
    """Whether this process is a forked child of the one that loaded this module."""
    return forked


cdef int begin_waiter(Waiter waiter) except -1:
    """From now on it belongs to this thread."""
    waiter.handles = collections.deque()
    waiter.thread = PyThread_get_thread_ident()
    waiter.thread_name = threading.current_thread().name
    _waiters.add(waiter)
    return 0


# For the modules above, without a place among a worker's methods ------------------------------------------------------

def warn_of_dropped(Waiter waiter):
    """Warn if a pull into an array of the caller was dropped before it was done, and nothing waited since."""
    if waiter.dropped_at is None:
        return
    file, line = waiter.dropped_at
    waiter.dropped_at = None
    warnings.warn_explicit("a pull into out= was dropped before it was done, and nobody waited for it: `out` is "
                           "complete only after wait() of the operation, or after wait_all()", RuntimeWarning, file,
                           line)


def check_thread(Waiter waiter):
    """Raise unless this thread may use the waiter."""
    waiter.check_thread()


def name_call(Waiter waiter, str name):
    """Tell the watchdog in which collective call the thread is."""
    cdef bytes encoded = name.encode()
    take_latch(&waiter.worker_slot.wait.latch)
    strncpy(waiter.worker_slot.wait.call, encoded, sizeof(waiter.worker_slot.wait.call) - 1)
    drop_latch(&waiter.worker_slot.wait.latch)


def receive(Waiter waiter, int source):
    """Wait for the next mail from a rank."""
    return waiter.receive(source)


def send_queued(Waiter waiter):
    """Send what is queued, now."""
    with nogil:
        waiter.comm.nudge(waiter.worker_slot, 0, True)


def wait_for_rank(Waiter waiter):
    """Wait for everything that any worker of this rank has issued."""
    with nogil:
        waiter.block(is_rank_at_rest, waiter.protocol, INT64_MAX)
