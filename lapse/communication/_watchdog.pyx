"""Floor 3. The watchdog of a server on one rank: who is silent, who is dead, who waits without progress."""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free

from lapse.base._sync cimport drop_latch, load, load32, now, peek, peek8, peek_int, store32, take_latch
from lapse.base._types cimport (FAILURE_GRACE_SECONDS, GRADIENT, LOCALIZE, LOCATE, PULL, PUSH, RENDEZVOUS, SET,
                                WAITS_FOR_MAIL, WAITS_FOR_OWN, WAITS_FOR_PACE, WAITS_FOR_RANK, WAITS_FOR_ROOM,
                                WAITS_FOR_ROUND, key_t, wait_t)
from lapse.communication._doorbells cimport is_near
from lapse.communication._failure cimport has_failed
from lapse.communication._guard cimport MAX_ELAPSED, end_process_after, guard, leave_unguarded
from lapse.communication._text cimport print_text, say, seconds_of
from lapse.messaging._outbox cimport queued_bytes
from lapse.protocol._rounds cimport common_t
from lapse.storage._host_peers cimport is_dead, process_state
from lapse._store cimport ABSENT, ARRIVING, REPLICATED

cdef enum:
    NAME_BYTES = 64
    HEARTBEATS = 6          # in the time after which a rank counts as silent
    DEAD_LOOKS = 4          # at which a rank's process is gone before it counts as dead: the launcher is faster
    END_SECONDS = FAILURE_GRACE_SECONDS + 5     # from silence to the end of this process, whatever it does

cdef int64_t SECOND = 1000000000
cdef text_t text            # of the guard's thread only


cdef class Watchdog:
    """What the guard does for one server.

    Parameters
    ----------
    protocol : Protocol
    transport : Transport or None
        None for a rank alone.
    bells : Doorbells
    failure : Failure
    partners : sequence of int
        Ranks of other hosts that expect heartbeats from this one, and this one from them.
    host_names : sequence of str
        By rank.
    silence, stall : float
        Seconds without a message after which the server fails, and without progress after which a wait is reported; 0:
        never.
    """

    def __cinit__(self, Protocol protocol, Transport transport, Doorbells bells, Failure failure, partners, host_names,
                  double silence, double stall):
        cdef int32_t i
        self.protocol_object = protocol
        self.protocol = &protocol.c
        self.state = &protocol.c.rank
        self.transport = transport
        self.bells = bells
        self.failure = failure
        self.limit = <int64_t>(silence * SECOND)
        self.stall = <int64_t>(stall * SECOND)
        self.names = b"".join(_fitted(name) for name in host_names)
        self.host_names = <const char*>(<bytes>self.names) if self.names else NULL
        self.ward = self._next_of_host()
        self.last_reported = 0
        if self.limit and transport is not None:
            self.partners = <partner_t*>calloc(len(partners) + 1, sizeof(partner_t))
            if self.partners == NULL:
                raise MemoryError(f"no memory for {len(partners)} partners")
            for i in range(<int32_t>len(partners)):
                self.partners[i].rank = partners[i]
            self.num_partners = len(partners)
        self.guarded.context = <void*>self
        self.guarded.look = look
        self.guarded.describe = describe
        self.guarded.end = end

    def __dealloc__(self):
        leave_unguarded(&self.guarded)
        free(self.partners)

    def start(self):
        """Let the guard look at this server from now on."""
        guard(&self.guarded)

    def stop(self):
        """The guard does not look any more; calling it again does nothing."""
        leave_unguarded(&self.guarded)

    def _next_of_host(self):
        """The rank behind this one among those of its host, in a circle; -1 if there is no other."""
        own = self.state.rank
        others = [i for i in [*range(own + 1, self.state.size), *range(own)] if self.bells.ranks[i].doorbell != NULL]
        return others[0] if others else -1

    # Heartbeats and silence -------------------------------------------------------------------------------------

    cdef void send_heartbeats(self) noexcept nogil:
        """To partners to whom nothing was sent since the last time. Nothing follows the last message of a channel."""
        cdef int32_t i
        cdef partner_t* partner
        store32(&self.heartbeats_due, 0)
        for i in range(self.num_partners):
            partner = &self.partners[i]
            if partner.sent == self.transport.peers[partner.rank].packets_sent \
                    and not self.state.outboxes[partner.rank].closed:
                self.transport.send_heartbeat(partner.rank)
            partner.sent = self.transport.peers[partner.rank].packets_sent

    cdef void look(self, int64_t elapsed) noexcept nogil:
        if elapsed >= MAX_ELAPSED:
            self.awake_since = now()
        self.look_for_stalls()
        if self.transport is None or has_failed(self.failure):
            return
        self.since_heartbeat += elapsed
        if self.since_heartbeat * HEARTBEATS >= self.limit:
            self.since_heartbeat = 0
            store32(&self.heartbeats_due, 1)  # the communication thread does not sleep long if there are other hosts
        self.look_at_partners(elapsed)
        self.look_at_ward()

    cdef void look_at_partners(self, int64_t elapsed) noexcept nogil:
        cdef int32_t i
        cdef partner_t* partner
        cdef int64_t received
        cdef bint any_silent = False
        for i in range(self.num_partners):
            partner = &self.partners[i]
            received = peek(&self.transport.peers[partner.rank].packets_received)
            if received != partner.received or peek_int(&self.transport.peers[partner.rank].has_ended):
                partner.received = received
                partner.silence = 0
            else:
                partner.silence += elapsed
                any_silent |= partner.silence > self.limit
        if any_silent:
            self.report_silence()

    cdef void report_silence(self) noexcept nogil:
        """Fail, with the names of all who have been silent for nearly as long."""
        cdef int32_t i
        cdef partner_t* partner
        cdef bint is_first = True
        text.used = 0
        for i in range(self.num_partners):
            partner = &self.partners[i]
            if partner.silence * 3 < self.limit * 2:
                continue
            if is_first:
                say(&text, "no message from rank %d (%s) for %.1f s", partner.rank, self.host_of(partner.rank),
                    seconds_of(partner.silence))
            else:
                say(&text, ", from rank %d (%s) for %.1f s", partner.rank, self.host_of(partner.rank),
                    seconds_of(partner.silence))
            is_first = False
        say(&text, ": cut off, stopped or overloaded, seen from rank %d (%s). The limit is LAPSE_SILENCE_SECONDS=%g",
            self.state.rank, self.host_of(self.state.rank), seconds_of(self.limit))
        end(<void*>self, text.bytes)

    cdef void look_at_ward(self) noexcept nogil:
        """A rank of this host does not end before this one has said good-bye, or the server has failed."""
        if self.ward < 0 or load32(&self.is_ending) or peek_int(&self.transport.peers[self.ward].has_ended):
            return
        if not is_dead(self.bells.ranks[self.ward].doorbell.process):
            self.ward_missed = 0
            return
        self.ward_missed += 1
        if self.ward_missed == DEAD_LOOKS:
            text.used = 0
            say(&text, "rank %d (process %d on %s) has died", self.ward, self.bells.ranks[self.ward].doorbell.process,
                self.host_of(self.ward))
            end(<void*>self, text.bytes)

    # Reports ------------------------------------------------------------------------------------------------------

    cdef bint is_stalled(self, worker_slot_t* worker_slot, int64_t time) noexcept nogil:
        cdef int64_t since = load(&worker_slot.wait.since)
        return since and time - max(max(since, peek(&worker_slot.wait.progress_at)), self.awake_since) > self.stall

    cdef void look_for_stalls(self) noexcept nogil:
        """Report the state of this rank, once for waits that are under way at the same time."""
        cdef int32_t i
        cdef int64_t time = now(), newest = 0
        cdef worker_slot_t* worker_slot
        cdef bint is_new = False
        if self.stall == 0:
            return
        for i in range(self.state.num_worker_slots):
            worker_slot = &self.state.worker_slots[i]
            if self.is_stalled(worker_slot, time):
                is_new |= load(&worker_slot.wait.since) > self.last_reported
                newest = time
        if is_new:
            self.last_reported = newest
            text.used = 0
            self.describe(&text)
            print_text(&text)

    cdef const char* host_of(self, int32_t rank) noexcept nogil:
        if self.host_names == NULL:
            return b"this host"
        return self.host_names + rank * NAME_BYTES

    cdef void describe(self, text_t* text) noexcept nogil:
        cdef common_t* common
        cdef int32_t i
        cdef int64_t time = now()
        cdef bint any_stalled = False
        for i in range(self.state.num_worker_slots):
            any_stalled |= self.stall > 0 and self.is_stalled(&self.state.worker_slots[i], time)
        say(text, "lapse: rank %d of %d on %s, ", self.state.rank, self.state.size, self.host_of(self.state.rank))
        if has_failed(self.failure):
            say(text, "the server has failed:\n")
        elif any_stalled:
            say(text, "waits without progress:\n")
        else:
            say(text, "present state:\n")
        for i in range(self.state.num_worker_slots):
            self.describe_worker(&self.state.worker_slots[i], text)
        if self.transport is None:
            return
        for i in range(self.state.size):
            if i != self.state.rank:
                self.describe_peer(i, text)
        if self.state.store.replicas.count:
            common = self.protocol.replication.rounds.common
            say(text, "  rounds of replicas: %lld begun here, %lld ended by all, %lld changes wait\n",
                <long long>load(&common.begun), <long long>load(&common.summed), <long long>load(&common.pending))

    cdef void describe_worker(self, worker_slot_t* worker_slot, text_t* text) noexcept nogil:
        cdef wait_t wait
        cdef int64_t time = now(), unfinished = load(&worker_slot.unfinished)
        take_latch(&worker_slot.wait.latch)
        wait = worker_slot.wait
        drop_latch(&worker_slot.wait.latch)
        if worker_slot.worker < 0:
            if wait.since == 0:
                return
            say(text, "  the server's own calls:")
        else:
            say(text, "  worker slot %d:", worker_slot.worker)
        if wait.since == 0:
            say(text, " does not wait in a call of Lapse; %lld operations unfinished\n", <long long>unfinished)
            return
        say(text, " waits for %.1f s ", seconds_of(time - wait.since))
        describe_wait(&wait, text)
        if PULL <= wait.what <= LOCATE:
            self.describe_key(wait.key, text)
        if wait.progress_at > wait.since:
            say(text, ", last progress %.1f s ago", seconds_of(time - wait.progress_at))
        say(text, "; %lld operations unfinished\n", <long long>unfinished)

    cdef void describe_key(self, key_t key, text_t* text) noexcept nogil:
        """Where a key that was asked for is, or who knows."""
        cdef int state
        if not 0 <= key < self.state.store.num_keys:
            return
        state = peek8(&self.state.store.entries[key].state)
        say(text, "; key %lld, among those that were asked for, ", <long long>key)
        if state == ARRIVING:
            say(text, "is on its way to this rank")
        elif state == REPLICATED:
            say(text, "is replicated")
        elif state == ABSENT:
            say(text, "is known to rank %d", <int>self.state.store.entries[key].route)
        else:
            say(text, "is here")

    cdef void describe_peer(self, int32_t rank, text_t* text) noexcept nogil:
        cdef int32_t i
        cdef int64_t unanswered = load(&self.state.flow.in_flight[rank])
        cdef int64_t queued = queued_bytes(&self.state.outboxes[rank])
        say(text, "  rank %d on %s: ", rank, self.host_of(rank))
        if is_near(self.bells, rank):
            describe_process(self.bells.ranks[rank].doorbell.process, text)
        for i in range(self.num_partners):
            if self.partners[i].rank == rank:
                say(text, "last heard of %.1f s ago, ", seconds_of(self.partners[i].silence))
        if peek_int(&self.transport.peers[rank].has_ended):
            say(text, "has said good-bye, ")
        say(text, "%lld bytes queued for it, %d messages being sent, %lld bytes unanswered\n", <long long>queued,
            peek_int(&self.transport.peers[rank].under_way), <long long>unanswered)


cdef void describe_process(int32_t process, text_t* text) noexcept nogil:
    cdef char letter = process_state(process)
    say(text, "process %d, ", process)
    if letter == c"T" or letter == c"t":
        say(text, "stopped, ")
    elif is_dead(process):
        say(text, "dead, ")


cdef void describe_wait(const wait_t* wait, text_t* text) noexcept nogil:
    cdef const char* name = name_of(wait.what)
    if name != NULL:
        say(text, "for a %s of %lld keys, %lld unanswered", name, <long long>wait.count, <long long>wait.pending)
    elif wait.what == RENDEZVOUS:
        say(text, "in %s for other workers of this rank", wait.call)
    elif wait.what == WAITS_FOR_MAIL:
        say(text, "in %s for rank %d", wait.call, wait.source)
    elif wait.what == WAITS_FOR_OWN:
        say(text, "for all of its operations")
    elif wait.what == WAITS_FOR_RANK:
        say(text, "for all operations of this rank")
    elif wait.what == WAITS_FOR_ROOM:
        say(text, "because max_in_flight bytes are unanswered")
    elif wait.what == WAITS_FOR_PACE:
        say(text, "because it is ahead of the rounds of replicas by max_pending")
    elif wait.what == WAITS_FOR_ROUND:
        say(text, "for a round of replicas")


cdef const char* name_of(int what) noexcept nogil:
    if what == PULL:
        return b"pull"
    if what == PUSH:
        return b"push"
    if what == SET:
        return b"set"
    if what == GRADIENT:
        return b"step with gradients"
    if what == LOCALIZE:
        return b"localize"
    if what == LOCATE:
        return b"search for owners"
    return NULL


# What the guard calls ---------------------------------------------------------------------------------------------

cdef void look(void* context, int64_t elapsed) noexcept nogil:
    (<Watchdog>context).look(elapsed)


cdef void describe(void* context, text_t* text) noexcept nogil:
    (<Watchdog>context).describe(text)


cdef void end(void* context, const char* why) noexcept nogil:
    """Fail, and see to it that this process ends: other ranks cannot be reached."""
    (<Watchdog>context).failure.fail_with(why)
    end_process_after(END_SECONDS)


def _fitted(name):
    """A host's name in NAME_BYTES, with a zero at the end."""
    return name.encode()[: NAME_BYTES - 1].ljust(NAME_BYTES, b"\0")
