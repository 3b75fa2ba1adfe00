"""Floor 4. Threads of a rank that share the work of one large call with the thread that makes it; see the `.pxd`."""

import threading

from lapse.base._sync cimport (fence, fetch_add, fetch_add32, futex_wait, futex_wake, load, load32, pause, sched_yield,
                               sleep_for, store, store32, swap32)

cdef enum:
    SPINS = 1000                # of a caller for the helpers that are in their last piece
    YIELDS = 100
    NAP = 20_000                # ns, afterwards
    LONG_SLEEP = 1_000_000_000  # ns, of a helper without work: a bound, should a system lose a wake


cdef class CallThreads:
    """The helping threads of one rank. They run while its workers do, and sleep without work.

    Parameters
    ----------
    per_call : int
        Threads of a call, with the one that makes it.
    """

    def __init__(self, int per_call):
        self.per_call = per_call
        self.threads = []

    def start(self):
        """Start the helpers; raises a RuntimeError where the system allows no more threads."""
        store32(&self.offer.is_ending, 0)
        try:
            for number in range(1, self.per_call):
                thread = threading.Thread(target=self._help, name=f"lapse-call-{number}", daemon=True)
                thread.start()
                self.threads.append(thread)
        except BaseException:
            self.stop()
            raise
        self.helpers = len(self.threads)

    def stop(self):
        """End the helpers."""
        self.helpers = 0
        store32(&self.offer.is_ending, 1)
        fetch_add32(&self.offer.rings, 1)
        futex_wake(&self.offer.rings, len(self.threads))
        while self.threads:
            self.threads.pop().join()

    def _help(self):
        with nogil:
            help_until_the_end(&self.offer)

    cdef void share(self, int64_t pieces, piece_t carry_out, void* work) noexcept nogil:
        cdef offer_t* offer = &self.offer
        cdef int64_t number
        if pieces < 2 or self.helpers == 0 or swap32(&offer.is_taken, 1):
            for number in range(pieces):
                carry_out(work, number)
            return
        offer.pieces, offer.carry_out, offer.work = pieces, carry_out, work
        store(&offer.next_piece, 0)
        store32(&offer.is_open, 1)
        fetch_add32(&offer.rings, 1)
        futex_wake(&offer.rings, min(self.helpers, <int>pieces - 1))
        take_pieces(offer)
        store32(&offer.is_open, 0)
        fence()
        wait_until_none_is_active(offer)
        store32(&offer.is_taken, 0)


cdef void take_pieces(offer_t* offer) noexcept nogil:
    cdef int64_t number = fetch_add(&offer.next_piece, 1)
    while number < offer.pieces:
        offer.carry_out(offer.work, number)
        number = fetch_add(&offer.next_piece, 1)


cdef void wait_until_none_is_active(offer_t* offer) noexcept nogil:
    """Return when no helper is in a piece. It may have lost its core to another thread."""
    cdef int64_t turn = 0
    while load(&offer.active):
        if turn < SPINS:
            pause()
        elif turn < SPINS + YIELDS:
            sched_yield()
        else:
            sleep_for(NAP)
        turn += 1


cdef void help_until_the_end(offer_t* offer) noexcept nogil:
    cdef uint32_t heard
    while True:
        heard = load32(&offer.rings)
        if load32(&offer.is_ending):
            return
        fetch_add(&offer.active, 1)
        fence()
        if load32(&offer.is_open):
            take_pieces(offer)
        fetch_add(&offer.active, -1)
        futex_wait(&offer.rings, heard, LONG_SLEEP)
