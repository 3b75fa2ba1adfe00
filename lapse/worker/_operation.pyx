"""Floor 4. The Python handle of one asynchronous call."""

import sys

cimport cython
from libc.stdint cimport INT64_MAX, int64_t

from lapse.communication._failure cimport is_broken
from lapse.messaging._operations cimport complete
from lapse.worker._slot_operations cimport give_back, is_finished, new_operation
from lapse.worker._waiter cimport may_call
from lapse.base._sync cimport load, now
from lapse.base._types cimport (CLOSED, FAILED, GRADIENT, LOCALIZE, LOCATE, PULL, PUSH, RENDEZVOUS, SET, TIMED_OUT)

_KIND_NAMES = {PULL: "pull", PUSH: "push", SET: "set", GRADIENT: "apply_gradients", LOCALIZE: "localize",
               LOCATE: "owner", RENDEZVOUS: "collective call"}


_NO_VALUES = "an Operation has no values yet: operation.wait() returns them, as in kv.pull(keys).wait()"


@cython.freelist(64)
cdef class Pending:
    """A call from its start until its worker has let go of its arrays."""

    cdef bint is_done(self) noexcept:
        # Only in the worker's own thread, whose spare operations it adds to.
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


@cython.freelist(64)
cdef class Operation:
    """One asynchronous call of a worker, for that worker's thread.

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
        self.fills_out = False
        if self.pending is not None and self.pending.c != NULL:
            self.finish(timeout)
        self.pending = None
        return self.result

    cdef int finish(self, timeout) except -1:
        cdef Waiter waiter = self.waiter
        cdef Pending pending = self.pending
        cdef int64_t deadline = INT64_MAX
        cdef int status
        if waiter.retired:  # a failed run left it unfinished
            waiter.raise_status(FAILED if is_broken(waiter.comm.failure) else CLOSED)
        waiter.check_thread()
        if pending.is_done():
            return 0
        if timeout is not None:
            deadline = now() + <int64_t>(max(0.0, min(float(timeout), 1e9)) * 1e9)
        with nogil:
            status = waiter.block_on_operation(pending.c, deadline)
        if status == TIMED_OUT:
            raise TimeoutError(f"a {_KIND_NAMES[pending.c.kind]} of {pending.c.count} keys did not finish within "
                               f"{timeout} s; it continues and can be waited for again")
        pending.is_done()
        return 0

    def test(self):
        """Whether `wait` would return or raise at once. Makes progress; never blocks.

        Raises
        ------
        RuntimeError
            In another thread than the worker's, or in a forked child.
        """
        cdef Waiter waiter = self.waiter
        cdef Pending pending = self.pending
        if pending is None or pending.c == NULL or waiter.retired:
            return True
        waiter.check_thread()
        if not pending.is_done():
            with nogil:
                waiter.comm.wait(waiter.worker_slot, is_finished, pending.c, 0)
        if pending.is_done():
            self.pending = None
            self.fills_out = False
            return True
        return bool(is_broken(waiter.comm.failure) or not waiter.comm.is_running)

    def __dealloc__(self):
        if self.fills_out and self.pending is not None and self.pending.c != NULL:
            note_dropped(self.waiter, self.pending)

    def __getattr__(self, name):
        raise AttributeError(f"no attribute {name!r}: {_NO_VALUES}")

    def __array__(self, *args, **options):
        raise TypeError(_NO_VALUES)

    def __getitem__(self, index):
        raise TypeError(_NO_VALUES)

    def __iter__(self):
        raise TypeError(_NO_VALUES)

    def __repr__(self):
        return "<lapse.Operation: done>" if self.pending is None else repr(self.pending)


cdef int note_dropped(Waiter waiter, Pending pending) except -1:
    """Nobody holds the handle of a pull into an array of the caller any more: if it is not done, keep the line."""
    if waiter is None or waiter.dropped_at is not None or not may_call(waiter) or is_finished(pending.c):
        return 0
    frame = sys._getframe()
    waiter.dropped_at = frame.f_code.co_filename, frame.f_lineno
    return 0


cdef Operation new_handle(Waiter waiter, operation_t* c, result, kept, bint fills_out=False):
    """The handle of a started operation; NULL is one that is done already."""
    cdef Operation operation = Operation.__new__(Operation)
    cdef Pending pending
    operation.waiter = waiter
    operation.result = result
    if c != NULL:
        pending = Pending.__new__(Pending)
        pending.c = c
        pending.kept = kept
        operation.pending = pending
        operation.fills_out = fills_out
        waiter.handles.append(pending)
    return operation


cdef int release_finished(Waiter waiter) except -1:
    """Let go of the arrays of operations that are done: looks at two, since each call adds at most one."""
    cdef Pending pending
    cdef int _i
    for _i in range(min(2, len(waiter.handles))):
        pending = waiter.handles.popleft()
        if not pending.is_done():
            waiter.handles.append(pending)
    return 0


cdef int release_all_finished(Waiter waiter) except -1:
    cdef Py_ssize_t _i
    for _i in range(len(waiter.handles)):
        release_finished(waiter)
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
    complete(operation.pending.c, 1)
