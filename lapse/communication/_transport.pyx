"""Floor 3. Packets over MPI: receives that are posted, sends that are under way, large frames that come in parts."""

from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdio cimport fflush, fprintf, snprintf, stderr
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from mpi4py.libmpi cimport (MPI_ANY_SOURCE, MPI_BYTE, MPI_REQUEST_NULL, MPI_STATUS_IGNORE, MPI_SUCCESS, MPI_Abort,
                            MPI_Cancel, MPI_Comm, MPI_Error_string, MPI_Get_count, MPI_Irecv, MPI_Isend,
                            MPI_MAX_ERROR_STRING, MPI_Request, MPI_Status, MPI_Test, MPI_Testsome, MPI_UNDEFINED,
                            MPI_Wait)

from lapse.base._sync cimport put, put_int, sleep_for
from lapse.communication._failure cimport Failure
from lapse.communication._guard cimport ABORT_DELAY, ABORT_SECONDS, end_process_after
from lapse.messaging._messages cimport HEARTBEAT, make_header, set_header
from lapse.messaging._outbox cimport PACKET_BYTES, block_data, block_t, give_block_back, packet_size, take_block

cdef enum:
    TAG = 77
    RECEIVES = 16               # posted at a time


cdef struct requests_t:
    MPI_Comm comm
    MPI_Request receives[RECEIVES]
    char* buffers[RECEIVES]
    int32_t head                # the receive that was posted first
    int32_t top                 # behind the last send that was used since all were free
    MPI_Request* sends
    block_t** blocks            # by send; NULL if it is free
    block_t* heartbeat          # one frame, which is sent again and again, to any rank
    int32_t* destinations       # by send
    int* finished               # scratch of MPI_Testsome
    MPI_Status* statuses


cdef class Transport:
    """Packets of one rank over a communicator of its own.

    Parameters
    ----------
    failure : Failure
        Of the same server; it also knows the rank's outboxes.
    communicator : mpi4py.MPI.Intracomm
        A private duplicate, with errors returned.
    packet_bytes : sequence of int
        For each rank the size up to which frames share a packet.
    """

    def __cinit__(self, Failure failure, communicator, packet_bytes):
        cdef int32_t i
        self.failure = failure
        self.communicator = communicator
        self.outboxes = failure.state.outboxes
        self.rank = failure.state.rank
        self.size = failure.state.size
        self.max_sends = max(64, 2 * self.size)
        self.peers = <peer_t*>calloc(self.size, sizeof(peer_t))
        self.requests = new_requests(handle_of(communicator)[0], self.max_sends)
        if self.peers == NULL or self.requests == NULL:
            raise MemoryError(f"no memory for messages to {self.size} ranks")
        for i in range(self.size):
            self.peers[i].packet_bytes = packet_bytes[i]

    def __dealloc__(self):
        cdef int32_t i
        for i in range(self.size if self.peers != NULL else 0):
            free(self.peers[i].assembly.data)
            free(self.peers[i].block)
        free(self.peers)
        if not self.has_failed:  # else MPI may still use its buffers
            free_requests(self.requests)

    # Sending --------------------------------------------------------------------------------------------

    cdef bint send_packet(self, int32_t destination) noexcept nogil:
        """Start to send the next packet for a rank that `can_send` allows; whether there was one."""
        cdef requests_t* requests = self.requests
        cdef peer_t* peer = &self.peers[destination]
        cdef block_t* block = peer.block
        cdef int64_t size
        cdef int32_t send
        if block == NULL:
            block = take_block(&self.outboxes[destination])
            if block == NULL:
                return False
            peer.sent = 0
        size = packet_size(block, peer.sent, peer.packet_bytes)
        send = first_free_send(requests)
        requests.sends[send] = MPI_REQUEST_NULL
        if self.check(MPI_Isend(block_data(block) + peer.sent, <int>size, MPI_BYTE, destination, TAG, requests.comm,
                                &requests.sends[send])):
            peer.block = block
            return False
        requests.top = max(requests.top, send + 1)
        requests.blocks[send] = block
        requests.destinations[send] = destination
        block.unsent += 1
        put_int(&self.sends, self.sends + 1)
        put_int(&peer.under_way, peer.under_way + 1)
        put(&peer.packets_sent, peer.packets_sent + 1)
        peer.sent += size
        peer.block = block if peer.sent < block.used else NULL
        put(&self.traffic.messages_sent, self.traffic.messages_sent + 1)
        put(&self.traffic.bytes_sent, self.traffic.bytes_sent + size)
        put(&peer.bytes_sent, peer.bytes_sent + size)
        return True

    cdef void send_heartbeat(self, int32_t destination) noexcept nogil:
        """Send a heartbeat, unless something is under way: what arrives is a sign of life as well."""
        cdef requests_t* requests = self.requests
        cdef peer_t* peer = &self.peers[destination]
        cdef int32_t send
        if peer.under_way or peer.block != NULL or not can_send(self, destination):
            return
        send = first_free_send(requests)
        requests.sends[send] = MPI_REQUEST_NULL
        self.check(MPI_Isend(block_data(requests.heartbeat), sizeof(frame_t), MPI_BYTE, destination, TAG, requests.comm,
                             &requests.sends[send]))
        requests.top = max(requests.top, send + 1)
        requests.blocks[send] = requests.heartbeat
        requests.destinations[send] = destination
        requests.heartbeat.unsent += 1  # never 0, so that it is not given back
        put_int(&self.sends, self.sends + 1)
        put_int(&peer.under_way, peer.under_way + 1)
        put(&peer.packets_sent, peer.packets_sent + 1)

    cdef void collect_sent(self) noexcept nogil:
        """Give back the blocks whose sends MPI has finished."""
        cdef requests_t* requests = self.requests
        cdef int count = 0
        cdef int i
        cdef int32_t send, destination
        cdef block_t* block
        if self.sends_are_lost:
            return
        if self.check(MPI_Testsome(requests.top, requests.sends, &count, requests.finished, requests.statuses)):
            self.sends_are_lost = True
            return
        if count == MPI_UNDEFINED:
            return
        for i in range(count):
            send = requests.finished[i]
            destination = requests.destinations[send]
            block = requests.blocks[send]
            requests.blocks[send] = NULL
            put_int(&self.sends, self.sends - 1)
            put_int(&self.peers[destination].under_way, self.peers[destination].under_way - 1)
            block.unsent -= 1
            if block.unsent == 0 and self.peers[destination].block != block:
                give_block_back(&self.outboxes[destination], block)
        if self.sends == 0:
            requests.top = 0

    # Receiving ------------------------------------------------------------------------------------------

    cdef bint next_packet(self, packet_t* packet) noexcept nogil:
        """Take the next packet, in the order in which the receives were posted; whether there is one.

        MPI orders the matching of messages, not their completion: of two from one rank the second, if it is small,
        may complete first. Hence only the head of the ring is tested.
        """
        cdef requests_t* requests = self.requests
        cdef MPI_Status status
        cdef int flag = 0, size = 0
        if self.receives_are_lost:
            return False
        if self.check(MPI_Test(&requests.receives[requests.head], &flag, &status)):
            self.receives_are_lost = True
            return False
        if not flag:
            return False
        if self.check(MPI_Get_count(&status, MPI_BYTE, &size)):
            self.receives_are_lost = True
            return False
        put(&self.peers[status.MPI_SOURCE].packets_received, self.peers[status.MPI_SOURCE].packets_received + 1)
        self.count_received(1, size)
        packet.source = status.MPI_SOURCE
        packet.data = requests.buffers[requests.head]
        packet.size = size
        return True

    cdef void count_received(self, int64_t messages, int64_t size) noexcept nogil:
        put(&self.traffic.messages_received, self.traffic.messages_received + messages)
        put(&self.traffic.bytes_received, self.traffic.bytes_received + size)

    cdef frame_t* assemble(self, packet_t* packet) noexcept nogil:
        """Add a packet to the large frame that it is a part of; the frame if that was the last part, else NULL."""
        cdef assembly_t* assembly = &self.peers[packet.source].assembly
        if not self.is_next_part(packet):
            return NULL
        if assembly.size == 0:
            assembly.size = (<frame_t*>packet.data).bytes
            assembly.filled = 0
            assembly.data = <char*>malloc(assembly.size)
        if assembly.data == NULL:  # its parts are still counted, so that what follows them is understood
            self.failure.fail_with("out of memory for a large message")
        else:
            memcpy(assembly.data + assembly.filled, packet.data, packet.size)
        assembly.filled += packet.size
        packet.size = 0
        return <frame_t*>assembly.data if assembly.filled >= assembly.size else NULL

    cdef bint is_next_part(self, packet_t* packet) noexcept nogil:
        """Whether a packet begins a large frame, or continues the one that is coming; else the server fails.

        All parts but the last one have the size of the largest packet.
        """
        cdef char text[200]
        cdef assembly_t* assembly = &self.peers[packet.source].assembly
        cdef int64_t expected = assembly.size - assembly.filled
        if assembly.size == 0 and packet.size == PACKET_BYTES:
            expected = (<frame_t*>packet.data).bytes
        if packet.size == min(expected, <int64_t>PACKET_BYTES) and (assembly.size or expected > packet.size):
            return True
        snprintf(text, sizeof(text), "protocol error at rank %d, message from rank %d: %lld bytes, which are no whole "
                 "frames and no part of a large one", self.rank, packet.source, <long long>packet.size)
        self.failure.fail_with(text)
        packet.size = 0
        return False

    cdef void finish_packet(self, packet_t* packet) noexcept nogil:
        """Free what the packet's frames lie in, and receive into its buffer again."""
        cdef requests_t* requests = self.requests
        cdef assembly_t* assembly = &self.peers[packet.source].assembly
        if assembly.size and assembly.filled >= assembly.size:
            free(assembly.data)
            assembly.data = NULL
            assembly.size = 0
        if self.check(post_receive(requests, requests.head)):
            self.receives_are_lost = True
        requests.head = (requests.head + 1) % RECEIVES

    cdef void note_end(self, int32_t source) noexcept nogil:
        """The last message of a rank was received."""
        put_int(&self.peers[source].has_ended, True)
        self.ended_peers += 1

    cdef void post_receives(self) noexcept nogil:
        cdef int32_t i
        for i in range(RECEIVES):
            if self.check(post_receive(self.requests, i)):
                self.receives_are_lost = True
                return

    cdef void withdraw_receives(self) noexcept nogil:
        cdef int32_t i
        cdef MPI_Request* receive
        for i in range(RECEIVES):
            receive = &self.requests.receives[i]
            if receive[0] == MPI_REQUEST_NULL:
                continue
            if self.receives_are_lost or self.check(MPI_Cancel(receive)) \
                    or self.check(MPI_Wait(receive, MPI_STATUS_IGNORE)):
                return

    # The end and errors ---------------------------------------------------------------------------------

    cdef void abort_job(self) noexcept nogil:
        """Terminate all ranks; this process in any case, also if the launcher cannot be reached."""
        fflush(stderr)
        end_process_after(ABORT_SECONDS)
        sleep_for(ABORT_DELAY)
        MPI_Abort(self.requests.comm, 1)

    cdef int check(self, int code) noexcept nogil:
        """Every error code of MPI passes through here: an error fails the server. Whether it was one.

        After an error it is unknown what became of the requests that it concerns, so that these are not used again.
        What can still be sent is: the last messages, which tell the other ranks.
        """
        cdef char text[MPI_MAX_ERROR_STRING + 1]
        cdef int size = 0
        if code == MPI_SUCCESS:
            return 0
        if MPI_Error_string(code, text, &size) != MPI_SUCCESS:
            size = snprintf(text, sizeof(text), "error %d of MPI", code)
        text[size] = 0
        self.has_failed = True
        self.failure.fail_with(text)
        return 1


cdef void abort_with(void* transport, const char* text) noexcept nogil:
    """Print a text and terminate all ranks at once: what host peers call when a rank died holding a latch."""
    fprintf(stderr, "lapse: %s; aborting the job\n", text)
    (<Transport>transport).abort_job()


cdef MPI_Comm* handle_of(communicator) except NULL:
    """MPI's own handle. By its address, so that this module can be imported before MPI is initialized.

    A pointer to it: what Cython returns after an exception, NULL, is no handle of MPICH, whose handles are integers.
    """
    from mpi4py import MPI
    return <MPI_Comm*><uintptr_t>MPI._addressof(communicator)


cdef inline int32_t first_free_send(requests_t* requests) noexcept nogil:
    # The caller knows that there is one. Sends mostly finish in order, so it is near.
    cdef int32_t send = 0
    while requests.blocks[send] != NULL:
        send += 1
    return send


cdef inline int post_receive(requests_t* requests, int32_t receive) noexcept nogil:
    return MPI_Irecv(requests.buffers[receive], PACKET_BYTES, MPI_BYTE, MPI_ANY_SOURCE, TAG, requests.comm,
                     &requests.receives[receive])


cdef requests_t* new_requests(MPI_Comm comm, int32_t max_sends) noexcept:
    cdef requests_t* requests = <requests_t*>calloc(1, sizeof(requests_t))
    cdef frame_t* heartbeat
    cdef int32_t i
    if requests == NULL:
        return NULL
    requests.comm = comm
    requests.sends = <MPI_Request*>malloc(max_sends * sizeof(MPI_Request))
    requests.statuses = <MPI_Status*>malloc(max_sends * sizeof(MPI_Status))
    requests.blocks = <block_t**>calloc(max_sends, sizeof(block_t*))
    requests.destinations = <int32_t*>calloc(max_sends, sizeof(int32_t))
    requests.finished = <int*>calloc(max_sends, sizeof(int))
    requests.buffers[0] = <char*>malloc(RECEIVES * PACKET_BYTES)
    requests.heartbeat = <block_t*>calloc(1, sizeof(block_t) + sizeof(frame_t))
    if (requests.sends == NULL or requests.statuses == NULL or requests.blocks == NULL
            or requests.destinations == NULL or requests.finished == NULL or requests.buffers[0] == NULL
            or requests.heartbeat == NULL):
        free_requests(requests)
        return NULL
    requests.heartbeat.unsent = 1
    heartbeat = <frame_t*>block_data(requests.heartbeat)
    heartbeat.bytes = sizeof(frame_t)
    set_header(heartbeat, make_header(HEARTBEAT, 0, 0, 0))
    for i in range(max_sends):
        requests.sends[i] = MPI_REQUEST_NULL
    for i in range(RECEIVES):
        requests.buffers[i] = requests.buffers[0] + i * PACKET_BYTES
        requests.receives[i] = MPI_REQUEST_NULL
    return requests


cdef void free_requests(requests_t* requests) noexcept:
    if requests == NULL:
        return
    free(requests.sends)
    free(requests.statuses)
    free(requests.blocks)
    free(requests.heartbeat)
    free(requests.destinations)
    free(requests.finished)
    free(requests.buffers[0])
    free(requests)
