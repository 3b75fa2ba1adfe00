"""Floor 3. The only module that talks to MPI: sending, receiving, progress, waiting, the end."""

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdio cimport fflush, fprintf, stderr
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from mpi4py cimport MPI
from mpi4py.libmpi cimport (MPI_ANY_SOURCE, MPI_BYTE, MPI_REQUEST_NULL, MPI_STATUS_IGNORE, MPI_SUCCESS, MPI_Abort,
                            MPI_Cancel, MPI_Comm, MPI_Error_string, MPI_Get_count, MPI_Irecv, MPI_Isend,
                            MPI_MAX_ERROR_STRING, MPI_Request, MPI_Status, MPI_Test, MPI_Testsome, MPI_UNDEFINED,
                            MPI_Wait)

import threading

from lapse.communication._failure cimport Failure, has_failed, is_broken
from lapse.messaging._messages cimport BYE, FAILURE, HAND_OVER, LEAVING, MAIL, frame_t, record_t
from lapse.messaging._outbox cimport (FRAME_BYTES, PACKET_BYTES, append_last, append_record, block_data, block_t, give_block_back,
                            packet_size, take_block)
from lapse.messaging._operations cimport ring_worker_slot
from lapse.protocol._protocol cimport handle_frame
from lapse.protocol._replication cimport has_work, tick
from lapse.storage._host_peers cimport HostPeers
from lapse.base._sync cimport (THREAD_BIT, WORKER_BIT, doorbell_t, drop_latch, fence, fetch_add32, futex_wait_bits, load, load32,
                          now, pause, ring, ring_doorbell, sched_yield, sleep_until_rung, store32, swap32, take_latch,
                          try_latch)
from lapse.base._types cimport CLOSED, FAILED, FAILURE_GRACE_SECONDS, LOCALIZE, NO_MEMORY, OK, PULL, TIMED_OUT

cdef enum:
    TAG = 77
    RECEIVES = 16               # posted at a time
    SENDS_PER_RANK = 8          # under way at a time
    PACKETS_PER_TURN = 32       # served before what was queued meanwhile is sent
    TURNS_PER_LOOK = 256        # of a waiter's loop, between looks at the clock
    CALLS_TOGETHER = 16         # of a worker that does not wait, sent together at the latest
    BYTES_TOGETHER = 49152      # or when their values come to so much
    MIN_TOGETHER = 4          # records of a part, so that a header fits into those of the part before
    LONELY = 8                  # calls that the thread is told of, after one that it had to send

cdef int64_t MICROSECOND = 1000
cdef int64_t MILLISECOND = 1000000
# Timed sleeps are dear on virtual machines: shorter ones than these cost a computing neighbour more than they gain.
cdef int64_t LONG_SLEEP = 2 * MILLISECOND
cdef int64_t SHORT_SLEEP = 200 * MICROSECOND
cdef int64_t FAR_SLEEP = 50 * MICROSECOND       # of a worker whose answer comes from another host: no bell wakes it
cdef int64_t QUIET_SLEEP = 5 * MILLISECOND      # while nothing has been sent or received for
cdef int64_t QUIET_AFTER = 50 * MILLISECOND
cdef int64_t FLUSH_AFTER = 50 * MICROSECOND     # what is older is sent by the next call
# A yield beside a thread that computes costs its whole time slice; after one the waiter sleeps on its bell for a while.
cdef int64_t SLOW_YIELD = 300 * MICROSECOND
cdef int64_t YIELD_PENALTY = 20 * MILLISECOND
cdef int64_t YIELDS_FOR = 2 * MILLISECOND     # without news; who waits longer need not be quick, and sleeps
cdef int64_t MAX_YIELD_PENALTY = 640 * MILLISECOND
cdef int64_t TRAFFIC_LATELY = 10 * MILLISECOND
cdef long PRECISE = 1000
cdef int64_t LINGER = 100 * MICROSECOND         # more than a journey there and back over TCP


cdef extern from *:
    r"""
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
    """
    long set_timer_slack "lapse_timer_slack"(long nanoseconds) noexcept nogil


cdef struct peer_t:
    block_t* block      # partly sent
    int64_t sent        # bytes of it
    int32_t under_way   # sends that MPI has not finished
    bint unrung         # something was sent since it was last heard of
    uint32_t looks      # its looks for messages when that was sent
    bint ended          # its last message was received
    assembly_t assembly
    mail_t* first_mail
    mail_t* last_mail


cdef struct transport_t:
    MPI_Comm comm
    int32_t size
    int32_t num_sends       # places for sends under way
    int32_t sends           # of these in use
    int32_t top             # behind the last one that was used since all were free
    int32_t head            # the receive that was posted first
    int32_t ended_peers
    uint8_t mail_latch
    MPI_Request receives[RECEIVES]
    char* buffers[RECEIVES]
    MPI_Request* requests
    block_t** blocks
    int32_t* destinations
    int* finished           # scratch of MPI_Testsome
    MPI_Status* statuses
    peer_t* peers


# Memory ------------------------------------------------------------------------------------------------

cdef transport_t* new_transport(MPI_Comm comm, int32_t size) noexcept:
    cdef transport_t* t = <transport_t*>calloc(1, sizeof(transport_t))
    cdef int32_t i
    if t == NULL:
        return NULL
    t.comm = comm
    t.size = size
    t.num_sends = max(64, 2 * size)
    t.requests = <MPI_Request*>malloc(t.num_sends * sizeof(MPI_Request))
    t.statuses = <MPI_Status*>malloc(t.num_sends * sizeof(MPI_Status))
    t.blocks = <block_t**>calloc(t.num_sends, sizeof(block_t*))
    t.destinations = <int32_t*>calloc(t.num_sends, sizeof(int32_t))
    t.finished = <int*>calloc(t.num_sends, sizeof(int))
    t.peers = <peer_t*>calloc(size, sizeof(peer_t))
    t.buffers[0] = <char*>malloc(RECEIVES * PACKET_BYTES)
    if (t.requests == NULL or t.statuses == NULL or t.blocks == NULL or t.destinations == NULL
            or t.finished == NULL or t.peers == NULL or t.buffers[0] == NULL):
        free_transport(t)
        return NULL
    for i in range(t.num_sends):
        t.requests[i] = MPI_REQUEST_NULL
    for i in range(RECEIVES):
        t.buffers[i] = t.buffers[0] + i * PACKET_BYTES
        t.receives[i] = MPI_REQUEST_NULL
    return t


cdef void free_transport(transport_t* t) noexcept:
    cdef int32_t i
    cdef mail_t* mail
    if t == NULL:
        return
    for i in range(t.size if t.peers != NULL else 0):
        free(t.peers[i].assembly.data)
        free(t.peers[i].block)
        while t.peers[i].first_mail != NULL:
            mail = t.peers[i].first_mail
            t.peers[i].first_mail = mail.next
            free(mail)
    free(t.requests)
    free(t.statuses)
    free(t.blocks)
    free(t.destinations)
    free(t.finished)
    free(t.peers)
    free(t.buffers[0])
    free(t)


cdef void end_job(void* transport, const char* text) noexcept nogil:
    fprintf(stderr, "lapse: %s: aborting the job\n", text)
    fflush(stderr)
    MPI_Abort((<transport_t*>transport).comm, 1)


cdef class Comm:
    """Messages of one rank over a communicator of its own, and the thread that serves them.

    Parameters
    ----------
    protocol : Protocol
    communicator : mpi4py.MPI.Intracomm or None
        A private duplicate, with errors returned; None for a rank alone.
    host_peers : HostPeers
        The ranks of this host.
    crowded : bool
        Whether threads that compute outnumber this host's cores.
    """

    def __cinit__(self, Protocol protocol, communicator, HostPeers host_peers, bint crowded):
        cdef int32_t i
        cdef int64_t row_bytes = <int64_t>(sizeof(record_t) + protocol.store.c.slabs[0].row_bytes)
        self.protocol = protocol
        self.rank = &protocol.c.rank
        self.communicator = communicator
        self.host_peers = host_peers
        self.patience = 20 if crowded else 100
        self.num_worker_slots = self.rank.num_worker_slots
        self.worker_slots = self.rank.worker_slots
        self.doorbells = <doorbell_t**>calloc(self.rank.size, sizeof(doorbell_t*))
        if self.doorbells == NULL:
            raise MemoryError(f"no memory for the doorbells of {self.rank.size} ranks")
        for i in range(self.rank.size):
            self.doorbells[i] = host_peers.doorbell_of(i)
        if self.doorbells[self.rank.rank] == NULL:
            self.doorbells[self.rank.rank] = &self.own_doorbell
        for i in range(self.num_worker_slots):
            self.worker_slots[i].doorbell = self.doorbells[self.rank.rank]
        for i in range(self.rank.size):
            self.has_far_ranks |= self.doorbells[i] == NULL
        if self.has_far_ranks:
            self.patience = 20  # each look asks the system
        self.keys_together = max(1, BYTES_TOGETHER // row_bytes)
        self.records_together = <uint32_t>max(MIN_TOGETHER, (FRAME_BYTES - <int64_t>sizeof(frame_t)) // row_bytes)
        self.lonely = LONELY
        self.failure = Failure(protocol, host_peers)
        if communicator is not None:
            self.transport = new_transport((<MPI.Comm>communicator).ob_mpi, self.rank.size)
            if self.transport == NULL:
                raise MemoryError(f"no memory for messages to {self.rank.size} ranks")
            host_peers.c.context = self.transport
            host_peers.c.end_job = end_job

    def __dealloc__(self):
        free(self.doorbells)
        free_transport(self.transport)

    # The engine --------------------------------------------------------------------------------------

    cdef int drive(self) noexcept nogil:
        """One turn of the loop, by whoever holds the engine; how many packets came or went."""
        cdef int moved, served
        if load32(&self.stopped):
            return 0
        if has_work(&self.protocol.c.replication):
            self.look_after_replicas()
        moved = self.flush()
        served = self.serve()
        if served:
            self.traffic_at = now()
            moved += self.flush()
        return moved + served

    cdef void look_after_replicas(self) noexcept nogil:
        if not has_failed(self.failure) and tick(&self.protocol.c.replication, now()) != OK:
            self.failure.fail_with("out of memory while synchronising replicas")

    cdef int flush(self) noexcept nogil:
        cdef transport_t* t = self.transport
        cdef int32_t i
        cdef int moved = 0
        if load32(&self.rank.outboxes_waiting) or self.has_parts(t):
            for i in range(t.size):
                while t.sends < t.num_sends and t.peers[i].under_way < SENDS_PER_RANK and self.send_packet(i):
                    moved += 1
        if t.sends:
            self.see_what_was_sent()
        if moved:
            self.flushed_at = now()
            self.posted_calls = self.posted_keys = 0
            self.values_gathered = 0
        return moved

    cdef inline bint has_parts(self, transport_t* t) noexcept nogil:
        cdef int32_t i
        for i in range(t.size):
            if t.peers[i].block != NULL:
                return True
        return False

    cdef bint send_packet(self, int32_t destination) noexcept nogil:
        cdef transport_t* t = self.transport
        cdef peer_t* peer = &t.peers[destination]
        cdef block_t* block = peer.block
        cdef int64_t size
        cdef int32_t place
        if block == NULL:
            block = take_block(&self.rank.outboxes[destination])
            if block == NULL:
                return False
            peer.sent = 0
        size = packet_size(block, peer.sent, FRAME_BYTES if self.doorbells[destination] != NULL else PACKET_BYTES)
        place = self.free_place(t)
        t.requests[place] = MPI_REQUEST_NULL
        self.check(MPI_Isend(block_data(block) + peer.sent, <int>size, MPI_BYTE, destination, TAG, t.comm,
                             &t.requests[place]))
        t.top = max(t.top, place + 1)
        t.blocks[place] = block
        t.destinations[place] = destination
        block.unsent += 1
        t.sends += 1
        peer.under_way += 1
        self.note_sent(peer, self.doorbells[destination])
        peer.sent += size
        peer.block = block if peer.sent < block.used else NULL
        self.traffic.messages_sent += 1
        self.traffic.bytes_sent += size
        return True

    cdef inline void note_sent(self, peer_t* peer, doorbell_t* doorbell) noexcept nogil:
        if doorbell == NULL:  # no bell reaches it
            return
        peer.unrung = True
        peer.looks = load32(&doorbell.looks)
        store32(&self.unrung, 1)

    cdef inline int32_t free_place(self, transport_t* t) noexcept nogil:
        # t.sends < t.num_sends, so there is one; sends mostly finish in order, so it is near
        cdef int32_t place = 0
        while t.blocks[place] != NULL:
            place += 1
        return place

    cdef void see_what_was_sent(self) noexcept nogil:
        cdef transport_t* t = self.transport
        cdef int count = 0
        cdef int i
        cdef int32_t place
        cdef block_t* block
        self.check(MPI_Testsome(t.top, t.requests, &count, t.finished, t.statuses))
        if count == MPI_UNDEFINED:
            return
        for i in range(count):
            place = t.finished[i]
            block = t.blocks[place]
            t.blocks[place] = NULL
            t.sends -= 1
            t.peers[t.destinations[place]].under_way -= 1
            block.unsent -= 1
            if block.unsent == 0 and t.peers[t.destinations[place]].block != block:
                give_block_back(&self.rank.outboxes[t.destinations[place]], block)
        if t.sends == 0:
            t.top = 0

    cdef int serve(self) noexcept nogil:
        """Handle what came, in the order in which the receives were posted.

        MPI orders the matching of messages, not their completion: of two from one rank the second,
        if it is small, may complete first. Hence only the head of the ring is tested.
        """
        cdef transport_t* t = self.transport
        cdef MPI_Status status
        cdef int flag, size, served = 0
        while served < PACKETS_PER_TURN:
            flag = 0
            if self.check(MPI_Test(&t.receives[t.head], &flag, &status)) or not flag:
                self.own_looks += 1
                store32(&self.doorbells[self.rank.rank].looks, self.own_looks)
                break
            self.check(MPI_Get_count(&status, MPI_BYTE, &size))
            self.traffic.messages_received += 1
            self.traffic.bytes_received += size
            t.peers[status.MPI_SOURCE].unrung = False
            self.on_packet(status.MPI_SOURCE, t.buffers[t.head], size)
            self.post_receive(t.head)
            t.head = (t.head + 1) % RECEIVES
            served += 1
        return served

    cdef void post_receive(self, int32_t place) noexcept nogil:
        cdef transport_t* t = self.transport
        self.check(MPI_Irecv(t.buffers[place], PACKET_BYTES, MPI_BYTE, MPI_ANY_SOURCE, TAG, t.comm,
                             &t.receives[place]))

    cdef void on_packet(self, int32_t source, char* data, int64_t size) noexcept nogil:
        cdef assembly_t* assembly = &self.transport.peers[source].assembly
        cdef frame_t* frame
        cdef int64_t frame_bytes
        if assembly.size:
            self.assemble(source, assembly, data, size)
            return
        while size > 0:
            frame = <frame_t*>data
            frame_bytes = frame.bytes
            if frame.bytes > size:
                assembly.size = frame.bytes
                assembly.filled = 0
                assembly.data = <char*>malloc(frame.bytes)
                self.assemble(source, assembly, data, size)
                return
            self.on_frame(source, frame)
            data += frame_bytes
            size -= frame_bytes

    cdef void assemble(self, int32_t source, assembly_t* assembly, const char* data, int64_t size) noexcept nogil:
        if assembly.data == NULL:  # its parts are still counted, so that what follows them is understood
            self.failure.fail_with("out of memory for a large message")
        else:
            memcpy(assembly.data + assembly.filled, data, size)
        assembly.filled += size
        if assembly.filled < assembly.size:
            return
        if assembly.data != NULL:
            self.on_frame(source, <frame_t*>assembly.data)
        free(assembly.data)
        assembly.data = NULL
        assembly.size = 0

    cdef void on_frame(self, int32_t source, frame_t* frame) noexcept nogil:
        cdef int status
        if frame.kind == MAIL:
            self.on_mail(source, frame)
        elif frame.kind == FAILURE or frame.kind == BYE:
            self.transport.peers[source].ended = True
            self.transport.ended_peers += 1
            if frame.kind == FAILURE:
                self.failure.fail(frame.origin, <char*>(<record_t*>(frame + 1) + 1), (<record_t*>(frame + 1)).key)
        elif frame.kind == LEAVING:
            self.failure.note_leaver(source)
        elif not has_failed(self.failure):
            status = self.handle(source, frame)
            if status == NO_MEMORY:
                self.failure.fail_with("out of memory while serving other ranks")
            elif status != OK:
                self.failure.fail_with(self.rank.error)

    cdef inline int handle(self, int32_t source, frame_t* frame) noexcept nogil:
        """What asks for many values is answered part by part: while one is under way the next is gathered."""
        cdef int status
        if not (frame.kind == PULL or frame.kind == LOCALIZE or frame.kind == HAND_OVER) \
                or self.doorbells[frame.origin] == NULL:
            return handle_frame(&self.protocol.c, source, frame)
        if frame.count > self.records_together:
            return self.handle_in_parts(source, frame)
        status = handle_frame(&self.protocol.c, source, frame)
        self.values_gathered += frame.count
        if self.values_gathered >= self.records_together:
            self.flush()
        return status

    cdef int handle_in_parts(self, int32_t source, frame_t* frame) noexcept nogil:
        # Each part gets its header in front of its records, where records were that are done with.
        cdef frame_t header = frame[0]
        cdef record_t* records = <record_t*>(frame + 1)
        cdef frame_t* part
        cdef uint32_t first = 0
        cdef int status = OK
        while first < header.count and status == OK:
            part = <frame_t*>(records + first) - 1
            part[0] = header
            part.count = min(<uint32_t>header.count - first, self.records_together)
            part.bytes = <uint32_t>(sizeof(frame_t) + part.count * sizeof(record_t))
            first += part.count
            status = handle_frame(&self.protocol.c, source, part)
            if first < header.count:
                self.flush()
        return status

    cdef int check(self, int code) noexcept nogil:
        """The one funnel for MPI's error codes; whether there was one."""
        cdef char text[MPI_MAX_ERROR_STRING + 1]
        cdef int size = 0
        if code == MPI_SUCCESS:
            return 0
        MPI_Error_string(code, text, &size)
        text[size] = 0
        self.failure.fail_with(text)
        return 1

    # Waiting -----------------------------------------------------------------------------------------

    cdef int wait(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t nanoseconds) noexcept nogil:
        """Drive, or sleep while others do, until `ready(what)`.

        Returns OK, FAILED, CLOSED (the communication thread has ended) or TIMED_OUT.
        """
        cdef int64_t time
        cdef int status
        if ready(what):
            return OK
        if self.transport == NULL:
            return self.wait_alone(worker_slot, ready, what, nanoseconds)
        time = now()
        self.judge_ring(time)
        fetch_add32(&self.doorbells[self.rank.rank].awake, 1)
        status = self.poll_until(worker_slot, ready, what, time + nanoseconds)
        fetch_add32(&self.doorbells[self.rank.rank].awake, <uint32_t>-1)
        self.leave(worker_slot)
        return status

    cdef int poll_until(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t deadline) noexcept nogil:
        cdef doorbell_t* doorbell = self.doorbells[self.rank.rank]
        cdef int64_t time, idle_since = 0
        cdef int64_t idle = 0, turns = 0
        cdef uint32_t heard, heard_at_door
        cdef bint drove
        while True:
            heard = load32(&worker_slot.bell.rings)
            heard_at_door = load32(&doorbell.rings)
            if ready(what):
                return OK
            if is_broken(self.failure):
                return FAILED
            if load32(&self.stopped):
                return CLOSED
            drove = try_latch(&self.engine)
            if drove:
                if self.drive():
                    idle = idle_since = 0
                drop_latch(&self.engine)
            idle += 1
            turns += 1
            # Who serves others without a pause must still look at the time now and then.
            if idle <= self.patience and turns % TURNS_PER_LOOK:
                pause()
                continue
            time = now()
            if time > deadline:
                return TIMED_OUT
            if idle <= self.patience:
                continue
            if load32(&self.unrung):
                self.ring_peers()
            if idle_since == 0:
                idle_since = time
            if drove and time > self.quiet_until and time - idle_since < YIELDS_FOR:
                self.give_way(time)
                continue
            fetch_add32(&doorbell.awake, <uint32_t>-1)
            self.sleep_as_waiter(worker_slot, heard, heard_at_door, min(self.longest_sleep(), max(deadline - time, <int64_t>1)))
            fetch_add32(&doorbell.awake, 1)

    cdef inline int64_t longest_sleep(self) noexcept nogil:
        # Where every rank can ring, a sleep need not end by itself.
        if not self.has_far_ranks:
            return LONG_SLEEP
        return FAR_SLEEP if now() - self.traffic_at < TRAFFIC_LATELY else SHORT_SLEEP

    cdef void give_way(self, int64_t time) noexcept nogil:
        """Yield. Where that took long some other thread computes: waiters of this rank sleep for a while instead."""
        cdef int64_t after
        sched_yield()
        after = now()
        if after - time > SLOW_YIELD:
            self.penalty = min(max(2 * self.penalty, YIELD_PENALTY), MAX_YIELD_PENALTY)
            self.quiet_until = after + self.penalty
        else:
            self.penalty = 0

    cdef void sleep_as_waiter(self, worker_slot_t* worker_slot, uint32_t heard, uint32_t heard_at_door, int64_t length) noexcept nogil:
        """Sleep until there may be news: at the rank's doorbell, or on the worker slot's own bell where another worker is there."""
        cdef doorbell_t* doorbell = self.doorbells[self.rank.rank]
        cdef long slack = set_timer_slack(PRECISE) if self.has_far_ranks else 0
        self.sleep_at_bell(doorbell, worker_slot, heard, heard_at_door, length)
        if self.has_far_ranks:
            set_timer_slack(slack)

    cdef inline void sleep_at_bell(self, doorbell_t* doorbell, worker_slot_t* worker_slot, uint32_t heard, uint32_t heard_at_door,
                                   int64_t length) noexcept nogil:
        if swap32(&doorbell.worker_asleep, 1):
            if not self.drive_once():
                sleep_until_rung(&worker_slot.bell, heard, length)
            return
        store32(&worker_slot.on_doorbell, 1)
        fence()
        # Once more: who queued something while this thread still polled told nobody else.
        if not self.drive_once() and load32(&worker_slot.bell.rings) == heard:
            futex_wait_bits(&doorbell.rings, heard_at_door, length, WORKER_BIT)
        store32(&worker_slot.on_doorbell, 0)
        store32(&doorbell.worker_asleep, 0)

    cdef int wait_alone(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t nanoseconds) noexcept nogil:
        # Without other ranks there is nothing to drive: only other workers of this rank can bring news.
        cdef int64_t deadline = now() + nanoseconds
        cdef int64_t time
        cdef uint32_t heard
        while True:
            heard = load32(&worker_slot.bell.rings)
            if ready(what):
                return OK
            if has_failed(self.failure):
                return FAILED
            time = now()
            if time > deadline:
                return TIMED_OUT
            sleep_until_rung(&worker_slot.bell, heard, min(LONG_SLEEP, max(deadline - time, <int64_t>1)))

    cdef void leave(self, worker_slot_t* worker_slot) noexcept nogil:
        """A driver goes: somebody else of this rank takes over what is under way."""
        cdef int32_t i
        fence()  # between letting the engine go and looking for what was queued meanwhile
        if load32(&self.unrung):
            self.ring_peers()
        if load32(&self.doorbells[self.rank.rank].worker_asleep) == 0:  # nobody of those who wait hears the door
            for i in range(self.num_worker_slots):
                if load32(&self.worker_slots[i].bell.asleep) and load(&self.worker_slots[i].unfinished):
                    ring(&self.worker_slots[i].bell)
                    return
        if load32(&self.rank.outboxes_waiting) or self.transport.sends:
            self.ring_thread()

    cdef void ring_thread(self) noexcept nogil:
        ring_doorbell(self.doorbells[self.rank.rank])

    cdef void ring_peers(self) noexcept nogil:
        """Wake ranks that were sent something and where nobody polls.

        Late: a rank that polls has seen it by now, and a wake-up is dear. But it may have polled for the last time
        just before: it is looked at again until it sleeps, sends something itself, or has looked for messages since.
        """
        cdef int32_t i
        cdef peer_t* peer
        cdef doorbell_t* doorbell
        store32(&self.unrung, 0)
        for i in range(self.rank.size):
            peer = &self.transport.peers[i]
            if not peer.unrung:
                continue
            doorbell = self.doorbells[i]
            if peer.under_way == 0 and load32(&doorbell.looks) - peer.looks > 1:
                peer.unrung = False
            elif load32(&doorbell.awake):
                store32(&self.unrung, 1)
            else:
                peer.unrung = False
                ring_doorbell(doorbell)

    cdef void nudge(self, worker_slot_t* worker_slot, int64_t keys, bint at_once) noexcept nogil:
        """After a call that queued something: send it now, or together with that of the calls to come.

        A worker that waits next sends everything then, and calls that follow each other send what is enough for a
        message, or older than FLUSH_AFTER. Whether a worker does either soon cannot be known, and telling the
        thread is dear. So it is told as long as that was of use lately, and else finds what was left when its
        sleep ends.
        """
        cdef int64_t time
        if self.transport == NULL or load32(&self.rank.outboxes_waiting) == 0:
            return
        time = now()
        self.posted_calls += 1
        self.posted_keys += keys
        if at_once or self.posted_calls >= CALLS_TOGETHER or self.posted_keys >= self.keys_together \
                or time - self.flushed_at > FLUSH_AFTER:
            self.judge_ring(time)
            if try_latch(&self.engine):
                self.drive()
                drop_latch(&self.engine)
                self.leave(worker_slot)
                return
        fence()
        if self.lonely and load32(&self.doorbells[self.rank.rank].awake) == 0:
            if self.rung_at == 0:
                self.rung_at = time
            self.ring_thread()

    cdef inline void judge_ring(self, int64_t time) noexcept nogil:
        """Was it of use to tell the thread of a call? Not if its worker comes to send it itself."""
        if self.rung_at:
            if time - self.rung_at > FLUSH_AFTER:
                self.lonely = LONELY
            elif self.lonely:
                self.lonely -= 1
            self.rung_at = 0

    cdef void cancel(self, operation_t* operation) noexcept nogil:
        """After this nothing is written to the operation's buffer any more."""
        take_latch(&self.engine)
        operation.out = NULL
        drop_latch(&self.engine)

    # The communication thread --------------------------------------------------------------------------

    def start(self):
        """Post the receives and start the communication thread. A rank alone needs neither.

        Raises
        ------
        RuntimeError
            Where there is no thread to be had.
        """
        cdef int32_t i
        if self.transport == NULL:
            return
        for i in range(RECEIVES):
            self.post_receive(i)
        self.thread = threading.Thread(target=self._run, name="lapse-comm", daemon=True)
        self.thread.start()

    def abandon(self):
        """End the thread of a server that not all ranks could make. Nothing was sent."""
        if self.transport == NULL:
            return
        store32(&self.abandoned, 1)
        self.ring_thread()
        if self.thread.ident is None:
            self.withdraw_receives()
        else:
            self.thread.join()

    def _run(self):
        with nogil:
            self.loop()

    cdef void loop(self) noexcept nogil:
        cdef int idle = 0
        set_timer_slack(PRECISE)
        while not self.at_end():
            if self.drive_as_thread():
                idle = 0
            elif self.goes_on_looking(idle):
                idle += 1
                self.look_later(idle)
            else:
                # With no news when the time is up one look is enough: many add up to more than the sleeping costs.
                self.sleep()
                idle = 2 * self.patience
        take_latch(&self.engine)
        self.withdraw_receives()
        store32(&self.stopped, 1)
        drop_latch(&self.engine)
        self.failure.wake_waiting_threads()

    cdef bint drive_once(self) noexcept nogil:
        cdef bint moved = False
        if try_latch(&self.engine):
            moved = self.drive() > 0
            drop_latch(&self.engine)
        return moved

    cdef inline bint goes_on_looking(self, int idle) noexcept nogil:
        """Whether news are to be expected, and no worker looks for them."""
        cdef doorbell_t* doorbell = self.doorbells[self.rank.rank]
        if load32(&doorbell.awake) or load32(&doorbell.worker_asleep):
            return False
        # No bell wakes this thread when the next request comes from another host: who asks again does so soon.
        return idle < 2 * self.patience or (self.has_far_ranks and now() - self.traffic_at < LINGER)

    cdef inline void look_later(self, int idle) noexcept nogil:
        cdef int64_t time
        if self.has_far_ranks and idle > self.patience:
            time = now()
            if time > self.quiet_until:
                self.give_way(time)
                return
        pause()

    cdef inline bint drive_as_thread(self) noexcept nogil:
        cdef bint was_left = self.posted_calls and self.rung_at == 0
        if not self.drive_once():
            return False
        if was_left and self.posted_calls == 0:
            self.lonely = LONELY
        return True

    cdef void sleep(self) noexcept nogil:
        cdef doorbell_t* doorbell = self.doorbells[self.rank.rank]
        cdef uint32_t heard = load32(&doorbell.rings)
        cdef int64_t length = LONG_SLEEP
        if load32(&self.unrung):
            self.ring_peers()
        if self.transport.sends or load32(&self.unrung) or load32(&self.ending) or has_failed(self.failure):
            length = SHORT_SLEEP
        else:
            length = self.idle_sleep(now() - max(self.traffic_at, self.flushed_at))
        store32(&doorbell.thread_asleep, 1)
        fence()
        if not self.drive_as_thread():
            futex_wait_bits(&doorbell.rings, heard, length, THREAD_BIT)
        store32(&doorbell.thread_asleep, 0)

    cdef inline int64_t idle_sleep(self, int64_t quiet_for) noexcept nogil:
        cdef bint is_needed
        if self.has_far_ranks:  # a worker that waits wakes by itself
            is_needed = load32(&self.doorbells[self.rank.rank].worker_asleep) == 0
            return SHORT_SLEEP if quiet_for < TRAFFIC_LATELY and is_needed else LONG_SLEEP
        return LONG_SLEEP if quiet_for < QUIET_AFTER or has_work(&self.protocol.c.replication) else QUIET_SLEEP

    cdef bint at_end(self) noexcept nogil:
        """Whether every peer's last message has come and everything of ours has gone, or time is up."""
        cdef transport_t* t = self.transport
        if load32(&self.abandoned):
            return True
        if not load32(&self.ending) and not has_failed(self.failure):
            return False
        if t.ended_peers == t.size - 1 and t.sends == 0 and load32(&self.rank.outboxes_waiting) == 0 \
                and not self.has_parts(t):
            return load32(&self.ending) or self.is_failure_known()
        if self.failure.is_overdue():
            self.is_failure_known()
            return True
        return False

    cdef bint is_failure_known(self) noexcept nogil:
        """Whether a caller of this rank knows of the failure; if none does in time, the job is aborted here."""
        if load32(&self.failure.is_known) or load32(&self.ending):
            return True
        if self.failure.is_overdue():
            fprintf(stderr, "lapse: rank %d made no call for %d s after a failure; aborting the job: %s\n",
                    self.rank.rank, <int>FAILURE_GRACE_SECONDS, self.failure.text)
            fflush(stderr)
            MPI_Abort(self.transport.comm, 1)
        return False

    cdef void withdraw_receives(self) noexcept nogil:
        cdef int32_t i
        cdef transport_t* t = self.transport
        for i in range(RECEIVES):
            if t.receives[i] != MPI_REQUEST_NULL:
                MPI_Cancel(&t.receives[i])
                MPI_Wait(&t.receives[i], MPI_STATUS_IGNORE)

    def say_bye(self):
        """Queue the last message to every rank. Nothing may be sent after it."""
        cdef int32_t i
        if self.transport == NULL:
            store32(&self.ending, 1)
            return
        for i in range(self.rank.size):
            if i != self.rank.rank and not self.rank.outboxes[i].closed:
                append_last(&self.rank.outboxes[i], BYE, <uint16_t>self.rank.rank, NULL, 0)
        store32(&self.ending, 1)
        self.ring_thread()

    def join(self, seconds=None):
        """Wait for the end of the communication thread; whether it has ended."""
        if self.thread is None:
            return True
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def abort(self):
        """Terminate all ranks at once."""
        MPI_Abort(self.transport.comm, 1)

    @property
    def silent_peers(self):
        """Ranks whose last message has not come: after the end, those that did not answer a failure in time."""
        if self.transport == NULL:
            return []
        return [i for i in range(self.rank.size) if i != self.rank.rank and not self.transport.peers[i].ended]

    @property
    def is_running(self):
        return self.transport == NULL or (self.thread is not None and not load32(&self.stopped))

    # Mail: bytes from rank to rank, in order -------------------------------------------------------------

    cdef void on_mail(self, int32_t source, frame_t* frame) noexcept nogil:
        cdef peer_t* peer = &self.transport.peers[source]
        cdef int64_t size = (<record_t*>(frame + 1)).key
        cdef mail_t* mail = <mail_t*>malloc(sizeof(mail_t) + size)
        if mail == NULL:
            self.failure.fail_with("out of memory for the message of a collective call")
            return
        mail.next = NULL
        mail.size = size
        memcpy(mail + 1, <char*>(frame + 1) + sizeof(record_t), size)
        take_latch(&self.transport.mail_latch)
        if peer.first_mail == NULL:
            peer.first_mail = mail
        else:
            peer.last_mail.next = mail
        peer.last_mail = mail
        drop_latch(&self.transport.mail_latch)
        self.failure.wake_waiting_threads()

    def post(self, int32_t destination, bytes data):
        """Queue bytes for another rank."""
        cdef const char* pointer = PyBytes_AsString(data)
        self.mails_posted += 1  # as the frame's operation: two of them never share a frame
        if append_record(&self.rank.outboxes[destination], MAIL, <uint16_t>self.rank.rank, 0, self.mails_posted,
                         <uint32_t>len(data), 0, pointer, len(data)) != OK:
            raise MemoryError(f"no memory for a message of {len(data)} bytes")

    def take_mail(self, int32_t source):
        """The next bytes from that rank, or None where there are none yet."""
        cdef peer_t* peer = &self.transport.peers[source]
        cdef mail_t* mail
        take_latch(&self.transport.mail_latch)
        mail = peer.first_mail
        if mail != NULL:
            peer.first_mail = mail.next
        drop_latch(&self.transport.mail_latch)
        if mail == NULL:
            return None
        data = PyBytes_FromStringAndSize(<char*>(mail + 1), mail.size)
        free(mail)
        return data

    cdef bint has_mail(self, int32_t source) noexcept nogil:
        cdef bint found
        take_latch(&self.transport.mail_latch)
        found = self.transport.peers[source].first_mail != NULL
        drop_latch(&self.transport.mail_latch)
        return found

    def traffic_counters(self):
        """MPI messages and bytes, sent and received, since the start."""
        return (self.traffic.messages_sent, self.traffic.bytes_sent,
                self.traffic.messages_received, self.traffic.bytes_received)
