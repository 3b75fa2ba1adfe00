"""Floor 1. The ranks of one host: the page by which they wake each other, and which of them are alive."""

from libc.errno cimport ENOENT, ESRCH, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdio cimport FILE, fclose, fflush, fopen, fprintf, fread, snprintf, stderr
from libc.string cimport strrchr

import os

from lapse.storage._segment cimport SEGMENT_HEAD, Segment
from lapse.base._sync cimport doorbell_t, load32, store32, swap32, watch_t
from lapse.base._types cimport FAILURE_GRACE_SECONDS

cdef enum:
    TEXT_SIZE = 256

cdef int64_t GRACE = FAILURE_GRACE_SECONDS * <int64_t>1000000000


cdef char process_state(int32_t process) noexcept nogil:
    """The letter that Linux shows for it: T and t are stopped, Z and X dead; 0 if there is no such process.

    A question mark if that is unknown, as to a process without a free descriptor: then it is not taken to be dead.
    """
    cdef char path[64]
    cdef char text[TEXT_SIZE]
    cdef FILE* file
    cdef size_t size
    cdef char* name_end
    snprintf(path, sizeof(path), "/proc/%d/stat", process)
    file = fopen(path, "r")
    if file == NULL:
        return 0 if errno == ENOENT or errno == ESRCH else c"?"
    size = fread(text, 1, TEXT_SIZE - 1, file)
    fclose(file)
    text[size] = 0
    name_end = strrchr(text, c")")
    return name_end[2] if name_end != NULL and name_end + 2 < text + size else c"?"


cdef bint is_dead(int32_t process) noexcept nogil:
    cdef char state = process_state(process)
    return state == 0 or state == c"Z" or state == c"X"


cdef void look(watch_t* watch, uint8_t holder, int64_t waited) noexcept nogil:
    """Called by a thread that has waited long for a latch."""
    cdef host_peers_t* host_peers = <host_peers_t*>watch
    cdef doorbell_t* other
    cdef char text[TEXT_SIZE]
    cdef char state
    if holder - 1 == host_peers.local_rank or holder > host_peers.count:
        return  # another thread of this process, which lost its core
    other = &host_peers.doorbells[holder - 1]
    state = process_state(other.process)
    if is_dead(other.process):
        snprintf(text, TEXT_SIZE, "rank %d (process %d) died while it changed a value that ranks of this host share; "
                 "the value is lost", other.rank, other.process)
        host_peers.end_job(host_peers.context, text)
    elif load32(host_peers.failed) and waited > GRACE:
        snprintf(text, TEXT_SIZE, "the job has failed, and rank %d (process %d) does not release a value that it "
                 "has begun to change", other.rank, other.process)
        host_peers.end_job(host_peers.context, text)
    elif (state == c"T" or state == c"t") and not swap32(&host_peers.stop_reported, 1):
        fprintf(stderr, "lapse: rank %d (process %d) was stopped while it changed a value that ranks of this host "
                "share; waiting until it continues\n", other.rank, other.process)
        fflush(stderr)


cdef void only_print(void* context, const char* text) noexcept nogil:
    fprintf(stderr, "lapse: %s\n", text)
    fflush(stderr)


cdef class HostPeers:
    """The ranks of this host; or this rank alone.

    Parameters
    ----------
    rank : int
    page : Segment or None
        Of `page_bytes(ranks of this host)`, the same memory for all of them; None: this rank can wake nobody.
    local_ranks : sequence of int
        For each rank its number among those of this host; -1 on another one.
    """

    def __cinit__(self, int rank=0, Segment page=None, local_ranks=()):
        self.page = page
        self.local_ranks = tuple(local_ranks)
        self.c.watch.look = look
        self.c.end_job = only_print
        if page is not None:
            self.c.count = sum(local_rank >= 0 for local_rank in self.local_ranks)
            self.c.local_rank = self.local_ranks[rank]
            self.c.failed = <uint32_t*>(page.address + SEGMENT_HEAD)
            self.c.doorbells = <doorbell_t*>(page.address + SEGMENT_HEAD + sizeof(doorbell_t))
            self.c.doorbells[self.c.local_rank].process = os.getpid()
            self.c.doorbells[self.c.local_rank].rank = rank

    @property
    def can_wake(self):
        """Whether the ranks of this host share the page."""
        return self.page is not None

    @staticmethod
    def page_bytes(int ranks):
        """The size of the page: a line for all, then one for each rank."""
        return SEGMENT_HEAD + (1 + ranks) * sizeof(doorbell_t)

    cdef doorbell_t* doorbell_of(self, int32_t rank) noexcept:
        if self.page is None or self.local_ranks[rank] < 0:
            return NULL
        return &self.c.doorbells[<int32_t>self.local_ranks[rank]]

    cdef void tell_failure(self) noexcept nogil:
        if self.c.failed != NULL:
            store32(self.c.failed, 1)
