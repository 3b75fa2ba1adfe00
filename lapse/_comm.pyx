"""Floor 3. The engine that moves all messages of a rank, how threads wait for it, and the communication thread."""

from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdio cimport fprintf, stderr

import threading

from lapse.base._sync cimport (THREAD_BIT, WORKER_BIT, doorbell_t, drop_latch, fence, fetch_add32, futex_wait_bits,
                               load, load32, now, pause, peek, peek_int, put, put_int, ring, sleep_until_rung, store32,
                               swap32, take_latch, try_latch)
from lapse.base._types cimport CLOSED, FAILED, FAILURE_GRACE_SECONDS, NO_MEMORY, OK, TIMED_OUT
from lapse.communication._doorbells cimport Doorbells, is_near, note_empty_look, note_received, note_sent, ring_own
from lapse.communication._failure cimport Failure, has_failed, is_broken
from lapse.communication._mail cimport Mail
from lapse.communication._transport cimport (Transport, abort_with, can_send, has_parts, next_frame, packet_t,
                                             traffic_t)
from lapse.communication._waiting cimport (BRIEF_SLEEP, FAR_SLEEP, LINGER, LONG_SLEEP, MAX_COSTLY_POLLS,
                                           MAX_EMPTY_POLLS, PRECISE, QUIET_AFTER, QUIET_SLEEP, RECENT_TRAFFIC,
                                           SHORT_SLEEP, TURNS_PER_CLOCK, YIELDS_FOR, may_yield, set_timer_slack,
                                           yield_core)
from lapse.messaging._messages cimport (BYE, FAILURE, HEARTBEAT, LEAVING, MAIL, frame_t, is_answered_in_parts, record_t,
                                        size_of_text, value_behind)
from lapse.messaging._outbox cimport FRAME_BYTES, PACKET_BYTES
from lapse.messaging._senders cimport send_bye
from lapse.protocol._protocol cimport handle_frame
from lapse.protocol._rounds cimport has_work, is_round_near, tick
from lapse.protocol._validation cimport check_frame
from lapse.storage._host_peers cimport HostPeers

cdef enum:
    PACKETS_PER_TURN = 32       # served before what was queued meanwhile is sent
    CALLS_PER_MESSAGE = 16      # of a worker that does not wait, sent together at the latest
    BYTES_PER_MESSAGE = 49152   # or when their values amount to so much
    FLUSH_AFTER = 50000         # nanoseconds: what is older is sent by the next call
    MIN_RECORDS_PER_PART = 4    # so that a header fits into the records of the part before
    ANNOUNCED_CALLS = 8         # that the thread is notified of, after one that it had to send


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
    dilation : float
        How many times slower time goes: see `environment.dilation`.
    partners, host_names, silence, stall
        See `Watchdog`.
    """

    def __cinit__(self, Protocol protocol, communicator, HostPeers host_peers, bint crowded, double dilation=1.0,
                  partners=(), host_names=(), double silence=0.0, double stall=0.0):
        cdef int32_t i
        cdef int64_t row_bytes = <int64_t>(sizeof(record_t) + protocol.store.c.slabs[0].row_bytes)
        self.protocol_object = protocol
        self.protocol = &protocol.c
        self.state = &protocol.c.rank
        self.bells = Doorbells(host_peers, self.state.rank, self.state.size)
        for i in range(self.state.num_worker_slots):
            self.state.worker_slots[i].doorbell = self.bells.own
        self.dilation = <int64_t>dilation if self.bells.has_far_ranks else 1
        self.failure = Failure(protocol, host_peers)
        self.mail = Mail(protocol)
        self.max_empty_polls = MAX_COSTLY_POLLS if crowded or self.bells.has_far_ranks else MAX_EMPTY_POLLS
        self.keys_per_message = max(1, BYTES_PER_MESSAGE // row_bytes)
        self.records_per_part = <uint32_t>max(MIN_RECORDS_PER_PART,
                                              (FRAME_BYTES - <int64_t>sizeof(frame_t)) // row_bytes)
        self.calls_to_announce = ANNOUNCED_CALLS
        if communicator is not None:
            packet_bytes = [FRAME_BYTES if is_near(self.bells, i) else PACKET_BYTES for i in range(self.state.size)]
            self.transport = Transport(self.failure, communicator, packet_bytes)
            # The one pointer from below to here: who waits for a latch of a dead rank ends the job.
            host_peers.c.context = <void*>self.transport
            host_peers.c.end_job = abort_with
        self.watchdog = Watchdog(protocol, self.transport, self.bells, self.failure, partners, host_names, silence,
                                 stall)

    # The engine ---------------------------------------------------------------------------------------

    cdef int drive(self) noexcept nogil:
        """One turn of the loop, by the thread that holds the engine; how many packets came or went."""
        cdef int moved, served
        if load32(&self.stopped):
            return 0
        if has_work(&self.protocol.replication.rounds):
            self.sync_replicas()
        moved = self.flush()
        served = self.serve()
        if served:
            put(&self.traffic_at, now())
            moved += self.flush()
        return moved + served

    cdef bint try_drive(self) noexcept nogil:
        """One turn unless another thread holds the engine; whether anything moved."""
        cdef bint moved = False
        if try_latch(&self.engine):
            moved = self.drive() > 0
            drop_latch(&self.engine)
        return moved

    cdef void sync_replicas(self) noexcept nogil:
        if not has_failed(self.failure) and tick(&self.protocol.replication.rounds, now()) != OK:
            self.failure.fail_with("out of memory while synchronizing replicas")

    cdef int flush(self) noexcept nogil:
        """Send what is queued, as far as enough sends are free; how many packets went."""
        cdef int32_t i
        cdef int moved = 0
        if load32(&self.state.outboxes_waiting) or has_parts(self.transport):
            for i in range(self.state.size):
                while can_send(self.transport, i) and self.transport.send_packet(i):
                    note_sent(self.bells, i)
                    moved += 1
        if self.transport.sends:
            self.transport.collect_sent()
        if moved:
            put(&self.flushed_at, now())
            put(&self.posted_calls, 0)
            put(&self.posted_keys, 0)
            self.values_gathered = 0
        return moved

    cdef int serve(self) noexcept nogil:
        """Handle what came; how many packets."""
        cdef packet_t packet
        cdef frame_t* frame
        cdef int served = 0
        while served < PACKETS_PER_TURN:
            if not self.transport.next_packet(&packet):
                note_empty_look(self.bells)
                break
            note_received(self.bells, packet.source)
            frame = next_frame(self.transport, &packet)
            while frame != NULL:
                self.on_frame(packet.source, frame)
                frame = next_frame(self.transport, &packet)
            self.transport.finish_packet(&packet)
            served += 1
        return served

    cdef void on_frame(self, int32_t source, frame_t* frame) noexcept nogil:
        cdef int status
        if check_frame(self.protocol, source, frame) != OK:
            self.failure.fail_with(self.state.error)
        elif frame.kind == MAIL:
            if self.mail.deliver(source, frame) != OK:
                self.failure.fail_with("out of memory for the message of a collective call")
            self.failure.wake_waiting_threads()
        elif frame.kind == FAILURE or frame.kind == BYE:
            self.on_last_frame(source, frame)
        elif frame.kind == LEAVING:
            self.failure.note_leaver(source)
        elif frame.kind == HEARTBEAT:
            self.transport.count_received(-1, -<int64_t>frame.bytes)  # nobody's traffic
        elif not has_failed(self.failure):
            status = self.handle(source, frame)
            if status == NO_MEMORY:
                self.failure.fail_with("out of memory while serving other ranks")
            elif status != OK:
                self.failure.fail_with(self.state.error)

    cdef void on_last_frame(self, int32_t source, frame_t* frame) noexcept nogil:
        cdef record_t* record = <record_t*>(frame + 1)
        self.transport.note_end(source)
        if frame.kind == FAILURE:
            self.failure.fail(frame.origin, value_behind(record), size_of_text(record))

    cdef inline int handle(self, int32_t source, frame_t* frame) noexcept nogil:
        """Answer a request for many values part by part: while one is under way the next is gathered."""
        cdef int status
        if not is_answered_in_parts(frame.kind) or not is_near(self.bells, frame.origin):
            return handle_frame(self.protocol, source, frame)
        if frame.count > self.records_per_part:
            return self.handle_in_parts(source, frame)
        status = handle_frame(self.protocol, source, frame)
        self.values_gathered += frame.count
        if self.values_gathered >= self.records_per_part:
            self.flush()
        return status

    cdef int handle_in_parts(self, int32_t source, frame_t* frame) noexcept nogil:
        # Each part gets its header in front of its records, over records that were handled already.
        cdef frame_t header = frame[0]
        cdef record_t* records = <record_t*>(frame + 1)
        cdef frame_t* part
        cdef uint32_t first = 0
        cdef int status = OK
        while first < header.count and status == OK:
            part = <frame_t*>(records + first) - 1
            part[0] = header
            part.count = min(<uint32_t>header.count - first, self.records_per_part)
            part.bytes = <uint32_t>(sizeof(frame_t) + part.count * sizeof(record_t))
            first += part.count
            status = handle_frame(self.protocol, source, part)
            if first < header.count:
                self.flush()
        return status

    # Worker threads ---------------------------------------------------------------------------------

    cdef int wait(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t nanoseconds) noexcept nogil:
        """Drive, or sleep while others do, until `ready(what)`.

        Returns OK, FAILED, CLOSED (the communication thread has ended) or TIMED_OUT.
        """
        cdef int64_t time
        cdef int status
        if ready(what):
            return OK
        if self.transport is None:
            return self.wait_alone(worker_slot, ready, what, nanoseconds)
        time = now()
        learn_from_ring(self, time)
        fetch_add32(&self.bells.own.awake, 1)
        status = self.poll_until(worker_slot, ready, what, time + nanoseconds)
        fetch_add32(&self.bells.own.awake, <uint32_t>-1)
        self.pass_on()
        return status

    cdef int poll_until(self, worker_slot_t* worker_slot, ready_t ready, void* what, int64_t deadline) noexcept nogil:
        cdef doorbell_t* doorbell = self.bells.own
        cdef int64_t time, idle_since = 0
        cdef int64_t idle = 0, turns = 0
        cdef uint32_t heard, heard_at_door
        cdef bint drove, is_soon
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
            # A thread that serves others without a pause must still look at the clock now and then.
            if idle <= self.max_empty_polls and turns % TURNS_PER_CLOCK:
                pause()
                continue
            time = now()
            if time > deadline:
                return TIMED_OUT
            if idle <= self.max_empty_polls:
                continue
            if load32(&self.bells.are_unrung):
                self.bells.ring_peers(self.transport.peers)
            if idle_since == 0:
                idle_since = time
            is_soon = (drove and may_yield(&self.yielding, time)
                       and time - idle_since < self.dilation * YIELDS_FOR)
            if is_soon and self.dilation == 1:
                yield_core(&self.yielding, time)
                continue
            fetch_add32(&doorbell.awake, <uint32_t>-1)
            self.sleep_as_waiter(worker_slot, heard, heard_at_door,
                                 min(longest_sleep(self, is_soon), max(deadline - time, <int64_t>1)))
            fetch_add32(&doorbell.awake, 1)

    cdef void sleep_as_waiter(self, worker_slot_t* worker_slot, uint32_t heard, uint32_t heard_at_door,
                              int64_t length) noexcept nogil:
        """Sleep until there may be news: at the rank's doorbell, or at the slot's own if it is taken."""
        cdef doorbell_t* doorbell = self.bells.own
        cdef long slack = set_timer_slack(PRECISE) if self.bells.has_far_ranks else 0
        self.sleep_at_bell(doorbell, worker_slot, heard, heard_at_door, length)
        if self.bells.has_far_ranks:
            set_timer_slack(slack)

    cdef inline void sleep_at_bell(self, doorbell_t* doorbell, worker_slot_t* worker_slot, uint32_t heard,
                                   uint32_t heard_at_door, int64_t length) noexcept nogil:
        if swap32(&doorbell.worker_asleep, 1):
            if not self.try_drive():
                sleep_until_rung(&worker_slot.bell, heard, length)
            return
        store32(&worker_slot.on_doorbell, 1)
        fence()
        # Once more: a thread that queued something while this one still polled told no other.
        if not self.try_drive() and load32(&worker_slot.bell.rings) == heard:
            futex_wait_bits(&doorbell.rings, heard_at_door, length, WORKER_BIT)
        store32(&worker_slot.on_doorbell, 0)
        store32(&doorbell.worker_asleep, 0)

    cdef int wait_alone(self, worker_slot_t* worker_slot, ready_t ready, void* what,
                        int64_t nanoseconds) noexcept nogil:
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
            sleep_until_rung(&worker_slot.bell, heard, min(<int64_t>LONG_SLEEP, max(deadline - time, <int64_t>1)))

    cdef void pass_on(self) noexcept nogil:
        """A thread stops driving: another one of this rank takes over what is under way."""
        cdef int32_t i
        fence()  # between letting the engine go and looking for what was queued meanwhile
        if load32(&self.bells.are_unrung):
            self.bells.ring_peers(self.transport.peers)
        if load32(&self.bells.own.worker_asleep) == 0:  # no waiting worker hears the doorbell
            for i in range(self.state.num_worker_slots):
                if load32(&self.state.worker_slots[i].bell.asleep) and load(&self.state.worker_slots[i].unfinished):
                    ring(&self.state.worker_slots[i].bell)
                    return
        if load32(&self.state.outboxes_waiting) or peek_int(&self.transport.sends):
            ring_own(self.bells)

    cdef void nudge(self, worker_slot_t* worker_slot, int64_t keys, bint at_once) noexcept nogil:
        """After a call that queued something: send it now, or together with that of the calls to come.

        A worker that waits next sends everything then, and calls that follow each other send what is enough for a
        message, or older than FLUSH_AFTER. Whether a worker does either soon is unknown, and notifying the
        thread is expensive. So it is notified as long as that was useful lately; otherwise it finds what was left
        when its sleep ends.
        """
        cdef int64_t time, calls, all_keys
        if self.transport is None or load32(&self.state.outboxes_waiting) == 0:
            return
        time = now()
        calls = peek(&self.posted_calls) + 1
        all_keys = peek(&self.posted_keys) + keys
        put(&self.posted_calls, calls)
        put(&self.posted_keys, all_keys)
        if at_once or calls >= CALLS_PER_MESSAGE or all_keys >= self.keys_per_message \
                or time - peek(&self.flushed_at) > FLUSH_AFTER:
            learn_from_ring(self, time)
            if try_latch(&self.engine):
                self.drive()
                drop_latch(&self.engine)
                self.pass_on()
                return
        fence()
        if peek_int(&self.calls_to_announce) and load32(&self.bells.own.awake) == 0:
            if peek(&self.rung_at) == 0:
                put(&self.rung_at, time)
            ring_own(self.bells)

    cdef void cancel(self, operation_t* operation) noexcept nogil:
        """After this nothing is written to the operation's buffer any more."""
        take_latch(&self.engine)
        operation.out = NULL
        drop_latch(&self.engine)

    # The communication thread -------------------------------------------------------------------------

    def start(self):
        """Post the receives and start the communication thread; a rank alone needs neither. Start the watchdog.

        Raises
        ------
        RuntimeError
            If the system refuses another thread, or MPI to receive.
        """
        if self.transport is not None:
            self.transport.post_receives()
            self.failure.raise_if_set()
            self.thread = threading.Thread(target=self._run, name="lapse-comm", daemon=True)
            self.thread.start()
        self.watchdog.start()

    def abandon(self):
        """End the thread of a server that not all ranks could make. Nothing was sent."""
        self.watchdog.stop()
        if self.transport is None:
            return
        store32(&self.abandoned, 1)
        ring_own(self.bells)
        if self.thread is None or self.thread.ident is None:
            self.transport.withdraw_receives()
        else:
            self.thread.join()

    def say_bye(self):
        """Queue the last message to every rank. Nothing may be sent after it."""
        cdef int32_t i
        store32(&self.watchdog.is_ending, 1)
        if self.transport is None:
            store32(&self.ending, 1)
            return
        for i in range(self.state.size):
            if i != self.state.rank and not self.state.outboxes[i].closed:
                send_bye(&self.state.outboxes[i], self.state.rank)
        store32(&self.ending, 1)
        ring_own(self.bells)

    def join(self, seconds=None):
        """Wait for the end of the communication thread, and so of the watchdog; whether it has ended."""
        if self.thread is not None:
            self.thread.join(seconds)
            if self.thread.is_alive():
                return False
        self.watchdog.stop()
        return True

    def abort(self):
        """Terminate all ranks at once."""
        self.transport.abort_job()

    @property
    def is_running(self):
        """Whether operations can still finish."""
        return self.transport is None or (self.thread is not None and not load32(&self.stopped))

    @property
    def silent_peers(self):
        """Ranks whose last message has not come: after the end, those that did not answer a failure in time."""
        if self.transport is None:
            return []
        return [i for i in range(self.state.size)
                if i != self.state.rank and not peek_int(&self.transport.peers[i].has_ended)]

    def traffic_counters(self):
        """MPI messages and bytes, sent and received, since the start."""
        cdef traffic_t* traffic
        if self.transport is None:
            return 0, 0, 0, 0
        traffic = &self.transport.traffic
        return (peek(&traffic.messages_sent), peek(&traffic.bytes_sent),
                peek(&traffic.messages_received), peek(&traffic.bytes_received))

    def bytes_sent_to(self):
        """The bytes that were sent to each rank since the start."""
        if self.transport is None:
            return [0] * self.state.size
        return [peek(&self.transport.peers[i].bytes_sent) for i in range(self.state.size)]

    def _run(self):
        with nogil:
            self.loop()

    cdef void loop(self) noexcept nogil:
        cdef int polls = 0
        set_timer_slack(PRECISE)
        while not self.is_at_end():
            if load32(&self.watchdog.heartbeats_due):
                self.send_heartbeats()
            if self.drive_as_thread():
                polls = 0
            elif self.expects_news(polls):
                polls += 1
                self.pause_or_yield(polls)
            else:
                # With no news when the time is up one look is enough: many add up to more than the sleeping costs.
                self.sleep_as_thread()
                polls = 2 * self.max_empty_polls
        take_latch(&self.engine)
        self.transport.withdraw_receives()
        store32(&self.stopped, 1)
        drop_latch(&self.engine)
        self.failure.wake_waiting_threads()

    cdef inline bint drive_as_thread(self) noexcept nogil:
        cdef bint was_left = peek(&self.posted_calls) and peek(&self.rung_at) == 0
        if not self.try_drive():
            return False
        if was_left and peek(&self.posted_calls) == 0:
            put_int(&self.calls_to_announce, ANNOUNCED_CALLS)
        return True

    cdef inline bint expects_news(self, int polls) noexcept nogil:
        """Whether more polls are of use: news may come, and no worker looks for them."""
        if load32(&self.bells.own.awake) or load32(&self.bells.own.worker_asleep):
            return False
        # No bell wakes this thread when the next request comes from another host: a rank that asks again does so soon.
        return polls < 2 * self.max_empty_polls or (self.bells.has_far_ranks
                                                    and now() - peek(&self.traffic_at) < LINGER)

    cdef inline void pause_or_yield(self, int polls) noexcept nogil:
        cdef int64_t time
        if self.bells.has_far_ranks and polls > self.max_empty_polls:
            time = now()
            if may_yield(&self.yielding, time):
                yield_core(&self.yielding, time)
                return
        pause()

    cdef void sleep_as_thread(self) noexcept nogil:
        cdef doorbell_t* doorbell = self.bells.own
        cdef uint32_t heard = load32(&doorbell.rings)
        cdef int64_t length
        if load32(&self.bells.are_unrung):
            self.bells.ring_peers(self.transport.peers)
        length = thread_sleep(self)
        store32(&doorbell.thread_asleep, 1)
        fence()
        if not self.drive_as_thread():
            futex_wait_bits(&doorbell.rings, heard, length, THREAD_BIT)
        store32(&doorbell.thread_asleep, 0)

    cdef void send_heartbeats(self) noexcept nogil:
        if try_latch(&self.engine):
            self.watchdog.send_heartbeats()
            drop_latch(&self.engine)

    cdef bint is_at_end(self) noexcept nogil:
        """Whether every peer's last message has come and everything of ours has gone, or time is up."""
        if load32(&self.abandoned):
            return True
        if not load32(&self.ending) and not has_failed(self.failure):
            return False
        if is_all_exchanged(self):
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
                    self.state.rank, <int>FAILURE_GRACE_SECONDS, self.failure.text)
            self.transport.abort_job()
        return False


# Parts of the engine without a place among its methods ---------------------------------------------------------------

cdef inline void learn_from_ring(Comm self, int64_t time) noexcept nogil:
    """A worker sends by itself: notifying the thread of an earlier call was useful only if that was long ago."""
    cdef int64_t rung_at = peek(&self.rung_at)
    cdef int32_t to_announce
    if rung_at:
        to_announce = peek_int(&self.calls_to_announce)
        if time - rung_at > FLUSH_AFTER:
            put_int(&self.calls_to_announce, ANNOUNCED_CALLS)
        elif to_announce:
            put_int(&self.calls_to_announce, to_announce - 1)
        put(&self.rung_at, 0)


cdef bint is_all_exchanged(Comm self) noexcept nogil:
    """Whether nothing is to come or to go; not as long as another thread drives, which may have taken a block."""
    cdef bint is_all = False
    if try_latch(&self.engine):
        is_all = (self.transport.ended_peers == self.state.size - 1 and self.transport.sends == 0
                  and load32(&self.state.outboxes_waiting) == 0 and not has_parts(self.transport))
        drop_latch(&self.engine)
    return is_all


# How long threads sleep -------------------------------------------------------------------------------------------

cdef inline int64_t longest_sleep(Comm self, bint is_soon) noexcept nogil:
    # If every rank can ring, a sleep need not end by itself.
    if not self.bells.has_far_ranks:
        return LONG_SLEEP
    if is_soon and self.dilation > 1:
        return self.dilation * BRIEF_SLEEP
    if now() - peek(&self.traffic_at) < self.dilation * RECENT_TRAFFIC:
        return self.dilation * FAR_SLEEP
    return self.dilation * SHORT_SLEEP


cdef inline int64_t thread_sleep(Comm self) noexcept nogil:
    """How long the thread sleeps if nothing wakes it."""
    cdef int64_t quiet_for
    cdef bint is_needed
    if self.bells.has_far_ranks and is_round_near(&self.protocol.replication.rounds) \
            and now() - max(peek(&self.traffic_at), peek(&self.flushed_at)) < self.dilation * RECENT_TRAFFIC:
        return self.dilation * FAR_SLEEP
    if (peek_int(&self.transport.sends) or load32(&self.bells.are_unrung) or load32(&self.ending)
            or has_failed(self.failure)):
        return self.dilation * SHORT_SLEEP
    quiet_for = now() - max(peek(&self.traffic_at), peek(&self.flushed_at))
    if self.bells.has_far_ranks:  # a waiting worker wakes by itself
        is_needed = load32(&self.bells.own.worker_asleep) == 0
        if self.dilation > 1 and is_needed and now() - peek(&self.traffic_at) < self.dilation * LINGER:
            return self.dilation * BRIEF_SLEEP
        return self.dilation * (SHORT_SLEEP if quiet_for < self.dilation * RECENT_TRAFFIC and is_needed
                                else LONG_SLEEP)
    return LONG_SLEEP if quiet_for < QUIET_AFTER or has_work(&self.protocol.replication.rounds) else QUIET_SLEEP
