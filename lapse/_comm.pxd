"""Floor 3. The only module that talks to MPI: sending, receiving, progress, waiting, the end.

One loop, which whoever has time drives under a try-lock (the engine): flush what is to be sent,
see what was sent, serve what came. A worker that waits drives it itself, so that a reply needs no
thread switch; the communication thread does so where nobody waits, and sleeps otherwise.

MPI's types stay in `_comm.pyx`, so that modules above compile without mpi.h.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from lapse.communication._failure cimport Failure
from lapse.messaging._messages cimport frame_t
from lapse.protocol._protocol cimport Protocol
from lapse.protocol._rank cimport rank_t
from lapse.storage._host_peers cimport HostPeers
from lapse.base._sync cimport doorbell_t
from lapse.base._types cimport operation_t, worker_slot_t

ctypedef bint (*ready_t)(void* what) noexcept nogil


cdef struct mail_t:
    mail_t* next
    int64_t size


cdef struct traffic_t:
    int64_t messages_sent
    int64_t bytes_sent
    int64_t messages_received
    int64_t bytes_received


cdef struct assembly_t:
    # A frame that comes in several packets.
    char* data
    int64_t size
    int64_t filled


cdef struct peer_t
cdef struct transport_t     # MPI's requests and buffers; defined in _comm.pyx


cdef class Comm:
    cdef rank_t* rank
    cdef Protocol protocol
    cdef transport_t* transport
    cdef object communicator        # the private duplicate
    cdef HostPeers host_peers          # keeps the doorbells' memory
    cdef readonly Failure failure
    cdef object thread
    cdef doorbell_t** doorbells     # by rank; NULL for one of another host
    cdef doorbell_t own_doorbell    # where no memory is shared
    cdef worker_slot_t* worker_slots              # the workers' and, last, the server's own
    cdef int32_t num_worker_slots
    cdef int32_t patience           # empty polls before a waiting thread thinks of others
    cdef bint has_far_ranks         # ranks that no doorbell reaches
    cdef uint8_t engine             # latch: who holds it drives
    cdef uint32_t ending            # BYE was queued
    cdef uint32_t abandoned         # not all ranks came so far as to use it
    cdef uint32_t stopped           # the communication thread has left its loop
    cdef uint32_t unrung            # something was sent to a rank that may sleep
    cdef uint32_t own_looks         # see doorbell_t
    cdef int64_t flushed_at
    cdef int64_t posted_calls       # since then; these and what follows are no counts to rely on
    cdef int64_t posted_keys
    cdef int64_t keys_together      # whose values make a message of a good size
    cdef uint32_t records_together  # are answered at once
    cdef uint32_t values_gathered   # in answers that are not sent yet
    cdef int64_t rung_at            # when the thread was told of a call; 0: it was not, or it is judged
    cdef int32_t lonely             # of so many more calls the thread is told
    cdef int64_t quiet_until        # no yields before: they were slow, some other thread computes
    cdef int64_t penalty            # how long the last slow yield forbade others
    cdef int64_t traffic_at
    cdef traffic_t traffic
    cdef int64_t mails_posted

    cdef int wait(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t nanoseconds) noexcept nogil
    cdef void nudge(self, worker_slot_t* worker_slot, int64_t keys, bint at_once) noexcept nogil
    cdef void cancel(self, operation_t* operation) noexcept nogil
    cdef bint has_mail(self, int32_t source) noexcept nogil

    cdef int drive(self) noexcept nogil
    cdef void look_after_replicas(self) noexcept nogil
    cdef int flush(self) noexcept nogil
    cdef bint has_parts(self, transport_t* t) noexcept nogil
    cdef bint send_packet(self, int32_t destination) noexcept nogil
    cdef void note_sent(self, peer_t* peer, doorbell_t* doorbell) noexcept nogil
    cdef int32_t free_place(self, transport_t* t) noexcept nogil
    cdef void see_what_was_sent(self) noexcept nogil
    cdef int serve(self) noexcept nogil
    cdef void post_receive(self, int32_t place) noexcept nogil
    cdef void on_packet(self, int32_t source, char* data, int64_t size) noexcept nogil
    cdef void assemble(self, int32_t source, assembly_t* assembly, const char* data, int64_t size) noexcept nogil
    cdef void on_frame(self, int32_t source, frame_t* frame) noexcept nogil
    cdef void on_mail(self, int32_t source, frame_t* frame) noexcept nogil
    cdef int handle(self, int32_t source, frame_t* frame) noexcept nogil
    cdef int handle_in_parts(self, int32_t source, frame_t* frame) noexcept nogil
    cdef int check(self, int code) noexcept nogil
    cdef int poll_until(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t deadline) noexcept nogil
    cdef int64_t longest_sleep(self) noexcept nogil
    cdef void give_way(self, int64_t time) noexcept nogil
    cdef void sleep_as_waiter(self, worker_slot_t* worker_slot, uint32_t heard, uint32_t heard_at_door, int64_t length) noexcept nogil
    cdef void sleep_at_bell(self, doorbell_t* doorbell, worker_slot_t* worker_slot, uint32_t heard, uint32_t heard_at_door,
                            int64_t length) noexcept nogil
    cdef int wait_alone(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t nanoseconds) noexcept nogil
    cdef void leave(self, worker_slot_t* worker_slot) noexcept nogil
    cdef void ring_thread(self) noexcept nogil
    cdef void ring_peers(self) noexcept nogil
    cdef void loop(self) noexcept nogil
    cdef bint drive_once(self) noexcept nogil
    cdef bint goes_on_looking(self, int idle) noexcept nogil
    cdef void look_later(self, int idle) noexcept nogil
    cdef bint drive_as_thread(self) noexcept nogil
    cdef void judge_ring(self, int64_t time) noexcept nogil
    cdef void sleep(self) noexcept nogil
    cdef int64_t idle_sleep(self, int64_t quiet_for) noexcept nogil
    cdef bint at_end(self) noexcept nogil
    cdef bint is_failure_known(self) noexcept nogil
    cdef void withdraw_receives(self) noexcept nogil
