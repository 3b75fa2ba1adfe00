"""Floor 4. The Python handle of one asynchronous call."""

cimport cython
from libc.stdint cimport INT64_MAX, int64_t

from lapse.communication._failure cimport is_broken
from lapse.messaging._operations cimport complete
from lapse.worker._slot_operations cimport give_back, is_finished, new_operation
from lapse.base._sync cimport load, now
from lapse.base._types cimport (CLOSED, FAILED, LOCALIZE, LOCATE, PULL, PUSH, RENDEZVOUS, SET, TIMED_OUT)

_KIND_NAMES = {PULL: "pull", PUSH: "push", SET: "set", LOCALIZE: "localize", LOCATE: "owner",
               RENDEZVOUS: "collective call"}


@cython.freelist(64)
cdef class Operation:
    """One asynchronous call of a worker.

    Examples
    --------
    >>> operation = kv.pull([1, 2, 3])      # doctest: +SKIP
    >>> values = operation.wait()           # doctest: +SKIP
    """

    def __init__(self):
        raise TypeError("operations are created by the calls of a Worker")

    def wait(self, timeout=None):
        """Block until the call has taken effect.

        Parameters
        ----------
        timeout : float, optional
            Seconds; no limit by default.

        Returns
        -------
        object
            What a pull gives: its values, or the `out` that was passed; None for the other calls.
            Waiting again returns the same at once.

        Raises
        ------
        TimeoutError
            After `timeout` seconds. The operation continues and can be waited for again.
        RemoteError, ClosedError
            If the server failed or ended before this call took effect.
        RuntimeError
            In another thread than the worker's, or in a forked child.
        """
        cdef int64_t deadline = INT64_MAX
        cdef int status
        if self.is_done():
            return self.result
        if self.waiter.retired:  # a failed run left it unfinished
            self.waiter.raise_status(FAILED if is_broken(self.waiter.comm.failure) else CLOSED)
        self.waiter.check_thread()
        if timeout is not None:
            deadline = now() + <int64_t>(max(0.0, min(float(timeout), 1e9)) * 1e9)
        with nogil:
            status = self.waiter.block_on_operation(self.c, deadline)
        if status == TIMED_OUT:
            raise TimeoutError(f"a {_KIND_NAMES[self.c.kind]} of {self.c.count} keys did not finish within "
                               f"{timeout} s; it continues and can be waited for again")
        self.is_done()
        return self.result

    def test(self):
        """Whether `wait` would return or raise at once. Makes progress; never blocks or raises."""
        cdef Waiter waiter = self.waiter
        if self.is_done():
            return True
        with nogil:
            waiter.comm.wait(waiter.worker_slot, is_finished, self.c, 0)
        return self.is_done() or is_broken(waiter.comm.failure) or not waiter.comm.is_running

    cdef bint is_done(self) noexcept:
        if self.c != NULL and is_finished(self.c):
            give_back(self.c)
            self.c = NULL
            self.kept = None
        return self.c == NULL

    def __repr__(self):
        if self.c == NULL:
            return "<lapse.Operation: done>"
        return (f"<lapse.Operation: {_KIND_NAMES[self.c.kind]} of {self.c.count} keys, "
                f"{load(&self.c.pending)} unfinished>")


cdef Operation new_handle(Waiter waiter, operation_t* c, result, kept):
    """The handle of a started operation; NULL is one that is done already."""
    cdef Operation operation = Operation.__new__(Operation)
    operation.waiter = waiter
    operation.c = c
    operation.result = result
    operation.kept = kept
    if c != NULL:
        waiter.handles.append(operation)
    return operation


cdef int release_finished(Waiter waiter) except -1:
    """Let go of the arrays of operations that are done, oldest first."""
    while waiter.handles and (<Operation>waiter.handles[0]).is_done():
        waiter.handles.popleft()
    return 0


# An operation that is finished by another worker of the rank ----------------------------------------------------------

def open_rendezvous(Waiter waiter):
    """An operation to wait for until another thread calls `finish_rendezvous`."""
    cdef operation_t* c = new_operation(waiter.worker_slot, RENDEZVOUS, 1, NULL)
    if c == NULL:
        raise MemoryError("no memory for a collective call")
    return new_handle(waiter, c, None, None)


def finish_rendezvous(Operation operation):
    """Wake the worker that waits for it, from whichever thread."""
    complete(operation.c, 1)
