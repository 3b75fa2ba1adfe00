"""Floor 3. The doorbells of a host: waking the ranks that were sent something, if they sleep."""

from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free

from lapse.base._sync cimport peek32, peek_int, swap32


cdef class Doorbells:
    """The doorbells that one rank can ring, its own among them.

    Parameters
    ----------
    host_peers : HostPeers
        The ranks of this host.
    rank, size : int
        This rank, and how many there are.
    """

    def __cinit__(self, HostPeers host_peers, int rank, int size):
        cdef int32_t i
        self.host_peers = host_peers
        self.size = size
        self.ranks = <sleeper_t*>calloc(size, sizeof(sleeper_t))
        if self.ranks == NULL:
            raise MemoryError(f"no memory for the doorbells of {size} ranks")
        for i in range(size):
            self.ranks[i].doorbell = host_peers.doorbell_of(i)
        if self.ranks[rank].doorbell == NULL:
            self.ranks[rank].doorbell = &self.unshared
        self.own = self.ranks[rank].doorbell
        for i in range(size):
            self.has_far_ranks |= self.ranks[i].doorbell == NULL

    def __dealloc__(self):
        free(self.ranks)

    cdef void ring_peers(self, const peer_t* peers) noexcept nogil:
        """Wake ranks that were sent something and are not polling.

        A rank that polls has seen it by now. But it may have polled for the last time just before: it is looked at
        again until it sleeps, sends something itself, or has looked for messages since.
        """
        cdef int32_t i
        cdef sleeper_t* sleeper
        store32(&self.are_unrung, 0)
        for i in range(self.size):
            sleeper = &self.ranks[i]
            # Cleared before the looks are compared: what is sent meanwhile sets it again.
            if load32(&sleeper.is_unrung) == 0 or swap32(&sleeper.is_unrung, 0) == 0:
                continue
            if peek_int(&peers[i].under_way) == 0 and load32(&sleeper.doorbell.looks) - peek32(&sleeper.looks) > 1:
                continue
            if load32(&sleeper.doorbell.awake):
                store32(&sleeper.is_unrung, 1)
                store32(&self.are_unrung, 1)
            else:
                ring_doorbell(sleeper.doorbell)
