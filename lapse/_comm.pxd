"""Floor 3. The engine that moves all messages of a rank, how threads wait for it, and the communication thread.

One loop, which any thread that has time drives under a try-lock (the engine): send what is queued, collect what was
sent, serve what came. A waiting worker drives it itself, so that a reply needs no thread switch; the communication
thread does so if no worker waits, and sleeps otherwise.

Below it: packets over MPI (`_transport`), waking other ranks (`_doorbells`), mail, failure.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from lapse.base._sync cimport doorbell_t
from lapse.base._types cimport operation_t, worker_slot_t
from lapse.communication._doorbells cimport Doorbells
from lapse.communication._failure cimport Failure
from lapse.communication._mail cimport Mail
from lapse.communication._transport cimport Transport
from lapse.communication._waiting cimport yielding_t
from lapse.communication._watchdog cimport Watchdog
from lapse.messaging._messages cimport frame_t
from lapse.protocol._protocol cimport Protocol, protocol_t
from lapse.protocol._rank cimport rank_t

ctypedef bint (*ready_t)(void* what) noexcept nogil


cdef class Comm:
    cdef Protocol protocol_object   # owns the protocol and the state
    cdef protocol_t* protocol
    cdef rank_t* state
    cdef Transport transport        # None for a rank alone
    cdef Doorbells bells
    cdef int64_t dilation           # how many times slower time goes, as far as ranks of other hosts are waited for
    cdef readonly Failure failure
    cdef readonly Mail mail
    cdef Watchdog watchdog
    cdef object thread
    cdef uint8_t engine             # latch: the thread that holds it drives
    cdef uint32_t ending            # the last messages were queued
    cdef uint32_t abandoned         # some rank could not start; nothing was sent
    cdef uint32_t stopped           # the communication thread has left its loop
    cdef int64_t traffic_at         # when the last packet came
    # Answers to requests for many values
    cdef uint32_t records_per_part  # are answered at once
    cdef uint32_t values_gathered   # in answers that are not sent yet
    # Calls that do not wait
    cdef int64_t flushed_at
    cdef int64_t posted_calls       # since then; these and what follows are no counts to rely on
    cdef int64_t posted_keys
    cdef int64_t keys_per_message   # whose values make a message of a good size
    cdef int64_t rung_at            # when the thread was notified of a call; 0: it was not, or its use is known
    cdef int32_t calls_to_announce  # the thread is notified of so many more calls
    # Threads that wait
    cdef int32_t max_empty_polls
    cdef yielding_t yielding

    # The engine
    cdef int drive(self) noexcept nogil
    cdef bint try_drive(self) noexcept nogil
    cdef void sync_replicas(self) noexcept nogil
    cdef int flush(self) noexcept nogil
    cdef int serve(self) noexcept nogil
    cdef void on_frame(self, int32_t source, frame_t* frame) noexcept nogil
    cdef void on_last_frame(self, int32_t source, frame_t* frame) noexcept nogil
    cdef int handle(self, int32_t source, frame_t* frame) noexcept nogil
    cdef int handle_in_parts(self, int32_t source, frame_t* frame) noexcept nogil
    # Worker threads
    cdef int wait(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t nanoseconds) noexcept nogil
    cdef int poll_until(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t deadline) noexcept nogil
    cdef int wait_alone(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t nanoseconds) noexcept nogil
    cdef void sleep_as_waiter(self, worker_slot_t* worker_slot, uint32_t heard, uint32_t heard_at_door,
                              int64_t length) noexcept nogil
    cdef void sleep_at_bell(self, doorbell_t* doorbell, worker_slot_t* worker_slot, uint32_t heard,
                            uint32_t heard_at_door, int64_t length) noexcept nogil
    cdef void pass_on(self) noexcept nogil
    cdef void nudge(self, worker_slot_t* worker_slot, int64_t keys, bint at_once) noexcept nogil
    cdef void cancel(self, operation_t* operation) noexcept nogil
    # The communication thread
    cdef void loop(self) noexcept nogil
    cdef bint drive_as_thread(self) noexcept nogil
    cdef bint expects_news(self, int polls) noexcept nogil
    cdef void pause_or_yield(self, int polls) noexcept nogil
    cdef void sleep_as_thread(self) noexcept nogil
    cdef void send_heartbeats(self) noexcept nogil
    cdef bint is_at_end(self) noexcept nogil
    cdef bint is_failure_known(self) noexcept nogil
