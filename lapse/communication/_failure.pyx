"""Floor 3. The failure of a server: the first error on any rank ends it on all ranks."""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

import os
import re
import traceback

from lapse.base._sync cimport drop_latch, fetch_add32, load32, now, ring_doorbell, store32, take_latch
from lapse.base._types cimport FAILURE_GRACE_SECONDS
from lapse.messaging._operations cimport ring_worker_slot
from lapse.messaging._senders cimport send_failure, send_leaving

from lapse.base.error_text import text_of
from lapse.base.uncaught import note_known
from lapse.errors import CommError, LapseError, RemoteError

#: From a failure to the end of the ranks that do not react to it, in seconds.
GRACE_SECONDS = FAILURE_GRACE_SECONDS

#: Of an error's text, as other ranks get it.
MAX_TEXT_BYTES = 8192

_ORIGIN = re.compile(r"rank (\d+)(?:, worker (\d+))?\b")

cdef bint forked = False


def _after_fork():
    global forked
    forked = True


os.register_at_fork(after_in_child=_after_fork)


cdef class Failure:
    """Whether, where and by which error the server has failed, as this rank knows it.

    Parameters
    ----------
    protocol : Protocol
        The rank's outboxes and worker slots.
    host_peers : HostPeers
        The ranks of this host, whose threads may wait for each other's latches.
    """

    def __cinit__(self, Protocol protocol, HostPeers host_peers):
        self.protocol = protocol
        self.state = &protocol.c.rank
        self.host_peers = host_peers

    def __dealloc__(self):
        free(self.text)

    # From C -------------------------------------------------------------------------------------------

    cdef void fail_with(self, const char* text) noexcept nogil:
        """Fail by an error of this rank."""
        self.fail(self.state.rank, text, strlen(text))

    cdef void fail(self, int32_t origin, const char* text, int64_t size) noexcept nogil:
        """Keep an error, tell all other ranks of it and wake all waiting threads; does nothing if there is one."""
        take_latch(&self.latch)
        if load32(&self.is_set):
            drop_latch(&self.latch)
            return
        self.keep_text(text, size)
        self.origin = origin
        self.since = now()
        self.send_to_all(text, size)
        store32(&self.is_set, 1)
        self.host_peers.tell_failure()
        drop_latch(&self.latch)
        self.wake_waiting_threads()
        self.wake_communication_thread()

    cdef void keep_text(self, const char* text, int64_t size) noexcept nogil:
        self.text = <char*>malloc(size + 1)
        if self.text != NULL:
            memcpy(self.text, text, size)
            self.text[size] = 0

    cdef void send_to_all(self, const char* text, int64_t size) noexcept nogil:
        # Outboxes that hold the last message already drop this one.
        cdef int32_t i
        for i in range(self.state.size):
            if i != self.state.rank:
                send_failure(&self.state.outboxes[i], self.origin, text, size)

    cdef void note_leaver(self, int32_t rank) noexcept nogil:
        self.leaver = rank
        fetch_add32(&self.leavers, 1)
        self.wake_waiting_threads()

    cdef bint is_overdue(self) noexcept nogil:
        """Whether the failure is so old that nobody waits for ranks and callers any longer."""
        return load32(&self.is_set) and now() - self.since > FAILURE_GRACE_SECONDS * <int64_t>1000000000

    cdef void wake_waiting_threads(self) noexcept nogil:
        cdef int32_t i
        for i in range(self.state.num_worker_slots):
            ring_worker_slot(&self.state.worker_slots[i])

    cdef void wake_communication_thread(self) noexcept nogil:
        ring_doorbell(self.state.worker_slots[0].doorbell)

    # From Python --------------------------------------------------------------------------------------

    def report(self, error, worker_id=None):
        """Tell all ranks of an exception of this rank, unless it only repeats what ended the server already.

        Parameters
        ----------
        error : BaseException
            Whatever its text is, or if it has none: this never raises.
        worker_id : int, optional
            The worker that raised it; None if no worker did.
        """
        if forked:  # the parent, whose memory of the host this process shares, goes on
            return
        if load32(&self.is_set):
            if self.own_error is None and not isinstance(error, LapseError):
                self.own_error = error
            return
        self.own_error = error
        note_known(error, self.state.rank)
        origin = f"rank {self.state.rank}" + ("" if worker_id is None else f", worker {worker_id}")
        self._tell(f"{origin}: {_described(error, worker_id)}")

    def error(self):
        """The exception that every call raises now; whoever asks counts as knowing of the failure.

        Returns
        -------
        BaseException
            This rank's own, if it raised one; `CommError` if its communication failed; else `RemoteError`.
        """
        if self.own_error is not None:
            return self.own_error
        leaver = self.first_leaver
        if not load32(&self.is_set) and leaver is not None:
            self._tell(f"rank {leaver} ended its program with the server open, without close()")
            return self._remote_error(self._text())
        store32(&self.is_known, 1)
        text = self._text()
        if self.origin == self.state.rank and not text.startswith("rank "):
            error = CommError(f"rank {self.origin}: {text}")
            note_known(error, self.origin)
            return error
        return self._remote_error(text if text.startswith("rank ") else f"rank {self.origin}: {text}")

    def raise_if_set(self):
        """Raise `error()` if this server has failed, or another rank has left it."""
        if is_broken(self):
            raise self.error()

    def say_leaving(self):
        """Tell all ranks that this rank's interpreter ends with the server open."""
        cdef int32_t i
        self.is_leaving = True
        for i in range(self.state.size):
            if i != self.state.rank:
                send_leaving(&self.state.outboxes[i], self.state.rank)
        self.wake_communication_thread()

    @property
    def has_failed(self):
        """Whether there is a failure; to ask for that does not count as knowing of it."""
        return bool(load32(&self.is_set))

    @property
    def all_are_leaving(self):
        """Whether the interpreters of all other ranks have ended with the server open."""
        return <int32_t>load32(&self.leavers) == self.state.size - 1

    @property
    def first_leaver(self):
        """A rank that has left while this one works on, or None."""
        return self.leaver if load32(&self.leavers) and not self.is_leaving else None

    def _tell(self, text):
        """Fail by an error that a caller of this rank knows of."""
        cdef bytes data = _encoded(text)
        cdef const char* pointer = data
        cdef int64_t size = len(data)
        store32(&self.is_known, 1)
        with nogil:
            self.fail(self.state.rank, pointer, size)

    def _remote_error(self, text):
        origin = _ORIGIN.match(text)
        rank, worker = origin.groups() if origin else (self.origin, None)
        error = RemoteError(text, int(rank), None if worker is None else int(worker))
        note_known(error, error.rank)
        return error

    def _text(self):
        return "out of memory" if self.text == NULL else (<bytes>self.text).decode(errors="replace")


def _described(error, worker_id):
    """An exception as the last line of its traceback shows it, or its type if it cannot be shown."""
    if isinstance(error, SystemExit) and worker_id is None:
        return text_of(error, lambda error: f"SystemExit: {error.code}")
    return text_of(error, lambda error: "".join(traceback.format_exception_only(type(error), error)).strip())


def _encoded(text):
    """A text as bytes, whatever is in it, not longer than other ranks accept."""
    data = text.encode(errors="backslashreplace").replace(b"\0", b"\\x00")  # which would end it
    if len(data) <= MAX_TEXT_BYTES:
        return data
    cut = data[:MAX_TEXT_BYTES].decode(errors="ignore")
    return f"{cut} ... ({len(data)} bytes)".encode()
