"""Floor 4. What one worker thread may ask for, from Python and, as the C-level door, from kernels."""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memset

import collections
import os
import sys

import numpy as np

from lapse.worker._arrays import as_key_buffer, as_out, as_room, as_values, last_occurrences, outside
from lapse.sampling._sampling import new_sample
from lapse.base.checks import check_int
from lapse.errors import ClosedError

cimport numpy as cnp

from lapse.worker._arrays cimport as_keys
from lapse.communication._failure cimport is_broken
from lapse.messaging._operations cimport complete
from lapse.protocol._protocol cimport ask, ask_location, localize
from lapse.protocol._replication cimport begin_round_if_due, mark, note_pushes, replication_t, runs_ahead
from lapse.sampling._sampling cimport LOCAL, POOL, PRELOC, Sample
from lapse._store cimport access_batch, find_unreachable, is_reachable, tally_t, value_bytes
from lapse.base._sync cimport fetch_add, fetch_add32, load, load32, now
from lapse.base._types cimport (CLOSED, FAILED, INTERRUPTED, LOCALIZE, RENDEZVOUS, NO_MEMORY, OK, PULL, PUSH, SET, SYNC, TIMED_OUT,
                           LOCATE, counters_t)

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident() noexcept nogil

cnp.import_array()

cdef int64_t CHUNK_BYTES = 1 << 20          # of values per part of a call; the limit of bytes in flight is tested between
cdef Py_ssize_t KEYS_LOOKED_AT = 1 << 16    # of a localize in one go
cdef int64_t MAX_PREPARED = <int64_t>1 << 40
cdef int64_t SIGNAL_EVERY = 50000000        # nanoseconds between looks for signals
cdef int64_t REPORT_AFTER = 60000000000     # a wait this long is reported once
cdef bint forked = False

_KIND_NAMES = {PULL: "pull", PUSH: "push", SET: "set", LOCALIZE: "localize", LOCATE: "owner", RENDEZVOUS: "collective call",
               SYNC: "synchronisation of replicas"}


def _after_fork():
    global forked
    forked = True


os.register_at_fork(after_in_child=_after_fork)


# Conditions to wait for -----------------------------------------------------------------------------------

cdef bint is_finished(void* operation) noexcept nogil:
    return load(&(<operation_t*>operation).pending) == 0


cdef bint nothing_unfinished(void* worker_slot) noexcept nogil:
    return load(&(<worker_slot_t*>worker_slot).unfinished) == 0


cdef bint is_rank_at_rest(void* comm) noexcept nogil:
    cdef int32_t i
    for i in range((<Comm>comm).num_worker_slots):
        if load(&(<Comm>comm).worker_slots[i].unfinished):
            return False
    return True


cdef bint has_room(void* protocol) noexcept nogil:
    return load(&(<protocol_t*>protocol).rank.flow.over_limit) <= 0


cdef bint keeps_pace(void* replication) noexcept nogil:
    return not runs_ahead(<replication_t*>replication)


cdef struct mail_wait_t:
    void* comm
    int32_t source


cdef bint has_mail(void* what) noexcept nogil:
    cdef mail_wait_t* wanted = <mail_wait_t*>what
    return (<Comm>wanted.comm).has_mail(wanted.source)


# Operations ------------------------------------------------------------------------------------------------

@cython.freelist(64)
cdef class Operation:
    """One asynchronous call of a worker.

    Examples
    --------
    >>> operation = kv.pull([1, 2, 3])      # doctest: +SKIP
    >>> values = operation.wait()           # doctest: +SKIP
    """

    def __init__(self):
        raise TypeError("operations come from the calls of a Worker")

    def wait(self, timeout=None):
        """Block until the call has taken effect.

        Parameters
        ----------
        timeout : float, optional
            Seconds; without it there is no limit.

        Returns
        -------
        object
            What a pull gives: its values, or the `out` that was passed; None for the other calls.
            Waiting again returns the same at once.

        Raises
        ------
        TimeoutError
            After `timeout` seconds. The operation goes on and can be waited for again.
        RemoteError, ClosedError
            Where the server has failed or ended before this call took effect.
        RuntimeError
            In another thread than the worker's, or in a forked child.
        """
        cdef int64_t deadline = INT64_MAX
        cdef Worker worker = self.worker
        cdef int status
        if self.is_done():
            return self.result
        if worker.retired:  # a failed run left it unfinished
            worker.raise_status(FAILED if is_broken(worker.comm.failure) else CLOSED)
        worker.check_thread()
        if timeout is not None:
            deadline = now() + <int64_t>(max(0.0, min(float(timeout), 1e9)) * 1e9)
        with nogil:
            status = worker.block(is_finished, self.c, deadline)
        if status == TIMED_OUT:
            raise TimeoutError(f"a {_KIND_NAMES[self.c.kind]} of {self.c.count} keys did not finish within {timeout} s; "
                               "wait again to go on")
        self.is_done()
        return self.result

    def test(self):
        """Whether `wait` would return, or raise, at once. Makes progress, blocks never, raises nothing."""
        cdef Worker worker = self.worker
        if self.is_done():
            return True
        with nogil:
            worker.comm.wait(worker.worker_slot, is_finished, self.c, 0)
        return self.is_done() or is_broken(worker.comm.failure) or not worker.comm.is_running

    def _complete(self):
        """Finish a collective call's operation, from whichever thread."""
        complete(self.c, 1)

    cdef bint is_done(self) noexcept:
        if self.c != NULL and is_finished(self.c):
            self.worker.give_back(self.c)
            self.c = NULL
            self.kept = None
        return self.c == NULL

    def __repr__(self):
        if self.c == NULL:
            return "<lapse.Operation: done>"
        return f"<lapse.Operation: {_KIND_NAMES[self.c.kind]} of {self.c.count} keys, {load(&self.c.pending)} under way>"


cdef Operation new_handle(Worker worker, operation_t* c, result, kept):
    cdef Operation operation = Operation.__new__(Operation)
    operation.worker = worker
    operation.c = c
    operation.result = result
    operation.kept = kept
    if c != NULL:
        worker.open_operations.append(operation)
    return operation


# Workers ------------------------------------------------------------------------------------------------------

cdef class Worker:
    """What one worker thread may ask for. Comes from `Server.run` or `Server.worker`.

    Every call returns an `Operation`; `wait` makes it synchronous. A call blocks only where the
    server's `max_in_flight` is reached. Keys are integers, sequences, or arrays or tensors of any
    integer dtype and shape; values are of the server's dtype.

    Attributes
    ----------
    id : int
        Global number, 0 .. num_workers - 1.
    rank : int
    num_workers : int
        Over all ranks.
    """

    def __init__(self):
        raise TypeError("workers come from Server.run or Server.worker")

    # Life --------------------------------------------------------------------------------------------------

    def _retire(self):
        """End the use of this worker: finished operations let go of their arrays."""
        self.sweep()
        self.retired = True
        if self.sampler is not None:
            self.sampler.close_all()
        self.nothing = None  # it refers to this worker

    def check_thread(self):
        if forked:
            raise RuntimeError("a worker cannot be used in a forked child: MPI does not survive a fork; start ranks with mpirun")
        if not self.any_thread and PyThread_get_thread_ident() != self.thread:
            raise RuntimeError(f"worker {self.id} belongs to another thread: give each thread a worker of its own "
                               "(Server(workers=N) and run)")

    cdef int enter(self) except -1:
        if self.retired:
            raise ClosedError(f"worker {self.id} was used after its run")
        if forked or (not self.any_thread and PyThread_get_thread_ident() != self.thread):
            self.check_thread()
        if load32(&self.comm.ending):
            self.raise_status(CLOSED)
        if is_broken(self.comm.failure):
            self.raise_status(FAILED)
        self.sweep()
        return 0

    cdef object begin(self, keys):
        """What every call with keys begins with: may it be made, and are they keys?"""
        cdef cnp.ndarray key_array
        self.enter()
        key_array = as_keys(keys, self.store.num_keys)
        self.first_bad_key(<const key_t*>cnp.PyArray_DATA(key_array), cnp.PyArray_SIZE(key_array))
        return key_array

    cdef int sweep(self) except -1:
        """Let go of the operations that are done, oldest first."""
        while self.open_operations and (<Operation>self.open_operations[0]).is_done():
            self.open_operations.popleft()
        return 0

    # The primitives ----------------------------------------------------------------------------------------

    def pull(self, keys, out=None):
        """Read values.

        Parameters
        ----------
        keys : int or array_like of int
            Repeated keys are allowed.
        out : array, tensor or buffer, optional
            Where to put the values: the server's dtype, C-contiguous, of the result's shape or 1-D.
            Complete only after `wait`.

        Returns
        -------
        Operation
            Its `wait` gives the values: shape `keys.shape + (length,)` where all values have one
            length, else 1-D, one value after another in key order; or `out` itself.

        Raises
        ------
        IndexError, TypeError, ValueError
            Before anything is sent: a key outside the range; keys that are not integers or an `out` of
            another dtype; an `out` of another size, read-only or not contiguous.
        """
        cdef cnp.ndarray key_array, array
        cdef operation_t* c = NULL
        cdef const key_t* pointer
        cdef Py_ssize_t count
        cdef char* target
        key_array = <cnp.ndarray>self.begin(keys)
        pointer = <const key_t*>cnp.PyArray_DATA(key_array)
        count = cnp.PyArray_SIZE(key_array)
        if out is None:
            array = out = np.empty(self.shape_for(key_array), dtype=self.dtype)
        else:
            array = as_out(out, self.dtype, self.shape_for(key_array), self.elements_for(key_array))
        target = <char*>cnp.PyArray_DATA(array)
        with nogil:
            self.check(self.start(PULL, pointer, count, target, NULL, &c))
        return new_handle(self, c, out, array)

    def push(self, keys, updates):
        """Add to values. Each occurrence of a repeated key counts.

        Parameters
        ----------
        keys : int or array_like of int
        updates : array_like
            Of the server's dtype, shape `keys.shape + (length,)` or 1-D with as many elements. May be
            reused when this returns.

        Returns
        -------
        Operation
            Done when the updates have taken effect at the keys' owners.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `pull`, before anything is sent.
        """
        return self._change(PUSH, keys, updates, "updates")

    def set(self, keys, values):
        """Replace values. Of a repeated key only the last occurrence is carried out.

        Parameters and errors as in `push`.
        """
        cdef cnp.ndarray key_array
        key_array = <cnp.ndarray>self.begin(keys)
        if cnp.PyArray_SIZE(key_array) > 1:
            flat = np.asarray(key_array).reshape(-1)
            last = last_occurrences(flat)
            if len(last) < len(flat):
                values = as_values(values, self.dtype, self.shape_for(key_array), self.elements_for(key_array), "values")
                keys, values = flat[last], self._rows(flat, values, last)
        return self._change(SET, keys, values, "values")

    def _rows(self, keys, values, chosen):
        """The values at the chosen positions, one after another."""
        if self.length >= 0:
            return np.ascontiguousarray(values.reshape(len(keys), self.length)[chosen])
        lengths = self.store_object.value_length(keys)
        parts = np.split(values.reshape(-1), np.cumsum(lengths))
        return np.concatenate([parts[position] for position in chosen])

    def _change(self, int kind, keys, given, name):
        cdef cnp.ndarray key_array, array
        cdef operation_t* c = NULL
        cdef const key_t* pointer
        cdef Py_ssize_t count
        cdef const char* source
        key_array = <cnp.ndarray>self.begin(keys)
        pointer = <const key_t*>cnp.PyArray_DATA(key_array)
        count = cnp.PyArray_SIZE(key_array)
        array = as_values(given, self.dtype, self.shape_for(key_array), self.elements_for(key_array), name)
        source = <const char*>cnp.PyArray_DATA(array)
        with nogil:
            self.check(self.start(kind, pointer, count, NULL, source, &c))
        return self.nothing if c == NULL else new_handle(self, c, None, None)

    def localize(self, keys):
        """Ask for keys to be moved to this rank.

        When the operation is done each key has arrived here once: access is local until another
        rank asks for it. Keys that are here already count as arrived, as do those of a rank of this host that shares
        memory: they are as near, and stay where they are.

        Parameters
        ----------
        keys : int or array_like of int

        Returns
        -------
        Operation

        Raises
        ------
        IndexError, TypeError
            As in `pull`.
        MemoryError
            Where there is no room for the keys' arrival.
        """
        cdef cnp.ndarray key_array
        cdef operation_t* c = NULL
        cdef const key_t* pointer
        cdef Py_ssize_t count
        key_array = <cnp.ndarray>self.begin(keys)
        pointer = <const key_t*>cnp.PyArray_DATA(key_array)
        count = cnp.PyArray_SIZE(key_array)
        with nogil:
            self.check(self.start_localize(pointer, count, &c))
        return self.nothing if c == NULL else new_handle(self, c, None, None)

    def pull_if_local(self, keys, out):
        """Read values into `out` if all of them are here at this moment; never communicates.

        Parameters
        ----------
        keys : int or array_like of int
        out : array, tensor or buffer
            As in `pull`. Untouched where the result is False.

        Returns
        -------
        bool
        """
        cdef cnp.ndarray key_array, row
        cdef const key_t* pointer
        cdef Py_ssize_t count, i
        cdef int64_t misses
        cdef tally_t tally
        cdef char* target
        cdef int64_t* offsets = NULL
        key_array = <cnp.ndarray>self.begin(keys)
        pointer = <const key_t*>cnp.PyArray_DATA(key_array)
        count = cnp.PyArray_SIZE(key_array)
        array = as_out(out, self.dtype, self.shape_for(key_array), self.elements_for(key_array))
        for i in range(count):
            if not is_reachable(self.store, pointer[i]):
                return False
        # A key may leave between the look and the copy: what is copied becomes visible only as a whole.
        row = np.empty(array.size, dtype=self.dtype)
        target = <char*>cnp.PyArray_DATA(row)
        with nogil:
            self.check(make_scratch(self.worker_slot, count))
            if self.length < 0:
                offsets = self.new_offsets(pointer, count)
                if offsets == NULL:
                    self.check(NO_MEMORY)
            misses = access_batch(self.store, PULL, pointer, count, offsets, target, self.worker_slot.missed, &tally)
            free(offsets)
        if misses == 0:
            array.reshape(-1)[:] = row
        return misses == 0

    def is_local(self, keys):
        """Whether each key can be read without a message at this moment: a bool array of the keys' shape.

        It is then owned or replicated here, or owned by a rank of this host that shares memory.
        """
        cdef cnp.ndarray key_array
        key_array = <cnp.ndarray>self.begin(keys)
        return self.store_object.is_reachable(np.asarray(key_array).reshape(-1)).reshape(np.shape(key_array))

    # Samples ---------------------------------------------------------------------------------------------------

    def prepare_sample(self, count):
        """Announce that keys will be drawn, as the server's `Sampling` says. Nobody waits for anything.

        Parameters
        ----------
        count : int
            How many keys can be pulled.

        Returns
        -------
        Sample
            A handle for `pull_sample`, of this worker alone. It ends with `finish_sample`, with the
            worker, or when nobody holds it any more.

        Raises
        ------
        RuntimeError
            Where the server was made without `sampling`.
        TypeError, ValueError
            For a count that is not an integer, or is negative.
        MemoryError
            Where there is no room for the keys.
        """
        cdef Py_ssize_t number_of_keys
        cdef int64_t number
        self.enter()
        self.check_sampling()
        number_of_keys = check_int(count, "count", 0, MAX_PREPARED)
        self.sampler.close_dropped()
        with nogil:
            number = self.prepare_sample_of(number_of_keys)
        return new_sample(self.sampler, number)

    def pull_sample(self, handle, n, keys=None, out=None):
        """Read the values of the next keys of a sample.

        Parameters
        ----------
        handle : Sample
            From this worker's `prepare_sample`.
        n : int
            How many; at most what is left of the sample.
        keys : int64 array or buffer of n elements, optional
            Where to put the keys. Complete when this returns.
        out : array, tensor or buffer, optional
            Where to put the values, as in `pull`. Where lengths vary it must have room for n times the
            longest value.

        Returns
        -------
        Operation
            Its `wait` gives (keys, values): keys of shape (n,), values of shape (n, length), or where
            lengths vary 1-D, one value after another; `keys` and `out` themselves where they were
            passed, but only the part of `out` that was filled where lengths vary.

        Raises
        ------
        ValueError
            For more keys than are left; a handle that is finished, or is not of this worker; buffers
            of another size, read-only or not contiguous.
        RuntimeError, TypeError
            Where the server was made without `sampling`; for buffers of another dtype, an `n` that is
            not an integer.
        """
        cdef cnp.ndarray key_array, array
        cdef operation_t* c = NULL
        cdef key_t* key_target
        cdef char* target
        cdef Py_ssize_t count
        cdef int64_t number
        self.enter()
        number = self.number_of(handle)
        count = check_int(n, "n", 0, MAX_PREPARED)
        if count > self.left_of(number):
            self.sampler.refuse(number, count)
        if keys is None:
            keys = np.empty(count, dtype=np.int64)
        key_array = as_key_buffer(keys, count)
        if self.length >= 0:
            shape = (count, self.length)
            out = np.empty(shape, dtype=self.dtype) if out is None else out
            array = as_out(out, self.dtype, shape, count * self.length)
        else:
            room = count * (value_bytes_at_most(self.store) // self.store.itemsize)
            array = np.empty(room, dtype=self.dtype) if out is None else as_room(out, self.dtype, room)
        key_target = <key_t*>cnp.PyArray_DATA(key_array)
        target = <char*>cnp.PyArray_DATA(array)
        with nogil:
            self.pull_sample_of(number, count, key_target, target, &c)
        if self.length < 0:
            out = np.asarray(array).reshape(-1)[:self.elements_for(key_array)]
        return new_handle(self, c, (keys, out), (key_array, array))

    def finish_sample(self, handle):
        """Drop what is left of a sample.

        Raises
        ------
        ValueError
            For a handle that is finished already, or is not of this worker.
        """
        self.enter()
        self.finish_sample_of(self.number_of(handle))

    def number_of(self, handle):
        """The number of a handle, which must be one of this worker."""
        self.check_sampling()
        if not isinstance(handle, Sample):
            raise ValueError(f"{handle!r} is not a sample: prepare_sample gives one")
        if (<Sample>handle).sampler is not self.sampler:
            raise ValueError(f"{handle!r} is of another worker or server: a worker pulls what it has prepared itself")
        return (<Sample>handle).number

    def left_of(self, int64_t number):
        """How many keys a sample of this worker has left."""
        cdef sample_t* sample = self.sampler.find(number)
        if sample == NULL:
            self.sampler.refuse(number, 0)
        return sample.left

    # Waiting ---------------------------------------------------------------------------------------------------

    def wait(self, *operations):
        """Wait for operations: the result of one, or the list of the results of several."""
        if len(operations) == 1:
            return operations[0].wait()
        return [operation.wait() for operation in operations]

    def wait_all(self):
        """Wait for everything that this worker has issued.

        Raises
        ------
        RemoteError
            Where the server has failed meanwhile.
        """
        self.enter()
        with nogil:
            self.wait_everything()
        self.sweep()

    # With all workers of all ranks --------------------------------------------------------------------------------

    def barrier(self):
        """Wait until all workers of all ranks are here. Does not wait for operations.

        Raises
        ------
        RemoteError, LapseError
            Where a worker returned, or is in another collective call, instead.
        """
        self.enter()
        self.server._collectives.barrier(self)

    def allreduce(self, x, op="sum"):
        """Combine a number or array of every worker of every rank; also a barrier.

        Parameters
        ----------
        x : number or array_like
            Of the same shape everywhere.
        op : {"sum", "prod", "min", "max"}

        Returns
        -------
        number or numpy.ndarray
            The same for all workers.

        Raises
        ------
        ValueError
            For another `op`, or shapes that differ.
        """
        self.enter()
        return self.server._collectives.allreduce(self, x, op)

    def wait_replica_sync(self):
        """Return when every update that has reached this rank's replicas is in every rank's replica.

        Whatever pace and threshold `Replication` asks for. Where nothing is replicated, and on one rank, that is
        at once.

        Raises
        ------
        RemoteError, ClosedError
            Where the server has failed or ended meanwhile.
        """
        self.enter()
        with nogil:
            self.sync_replicas()

    def setup(self):
        """The initialisation phase: a context manager, collective over all workers.

        Inside, workers bring values to where they begin; updates reach replicas unscaled and whatever their size.
        At its end all operations are done, all replicas agree, and statistics start at zero.

        Examples
        --------
        >>> with kv.setup():                # doctest: +SKIP
        ...     if kv.id == 0:
        ...         kv.set(keys, start)
        """
        self.enter()
        return self.server._setup(self)

    @property
    def rng(self):
        """A `numpy.random.Generator` seeded by (the server's seed, `id`)."""
        if self.generator is None:
            self.generator = np.random.default_rng([self.server.seed, self.id])
        return self.generator

    def __repr__(self):
        return f"<lapse.Worker {self.id} of {self.num_workers}, rank {self.rank}>"

    # For the modules above ----------------------------------------------------------------------------------------

    def _owner(self, keys):
        """The rank that owns each key, as its home knows it: an int array of the keys' shape."""
        cdef cnp.ndarray key_array
        cdef int32_t[::1] view
        cdef operation_t* c = NULL
        cdef const key_t* pointer
        cdef Py_ssize_t count
        cdef char* target
        key_array = <cnp.ndarray>self.begin(keys)
        pointer = <const key_t*>cnp.PyArray_DATA(key_array)
        count = cnp.PyArray_SIZE(key_array)
        owners = np.empty(count, dtype=np.int32)
        target = <char*>cnp.PyArray_DATA(<cnp.ndarray>owners)
        with nogil:
            self.check(self.start_locate(pointer, count, target, &c))
        new_handle(self, c, owners, owners).wait()
        return owners.astype(np.int64).reshape(np.shape(key_array))

    def _open_rendezvous(self):
        """An operation that whoever completes the collective call finishes."""
        cdef operation_t* c = self.new_operation(RENDEZVOUS, 1, NULL)
        if c == NULL:
            raise MemoryError("no memory for a collective call")
        return new_handle(self, c, None, None)

    def _receive(self, int source):
        """Wait for the next mail from a rank."""
        cdef mail_wait_t wanted
        wanted.comm = <void*>self.comm
        wanted.source = source
        with nogil:
            self.block(has_mail, &wanted, INT64_MAX)
        return self.comm.take_mail(source)

    def _wait_for_rank(self):
        """Wait for everything that any worker of this rank has issued."""
        with nogil:
            self.block(is_rank_at_rest, <void*>self.comm, INT64_MAX)

    def _nudge(self):
        """Send what is queued."""
        with nogil:
            self.comm.nudge(self.worker_slot, 0, True)

    def shape_for(self, cnp.ndarray keys):
        if self.length < 0:
            return (self.elements_for(keys),)
        return np.shape(keys) + (self.length,)

    def elements_for(self, cnp.ndarray keys):
        if self.length < 0:
            return int(self.store_object.value_length(np.asarray(keys).reshape(-1)).sum())
        return cnp.PyArray_SIZE(keys) * self.length

    # The C-level door ---------------------------------------------------------------------------------------------

    cdef int pull_keys(self, const key_t* keys, Py_ssize_t count, void* out,
                       operation_t** operation) except -1 nogil:
        self.first_bad_key(keys, count)
        return self.check(self.start(PULL, keys, count, <char*>out, NULL, operation))

    cdef int push_keys(self, const key_t* keys, Py_ssize_t count, const void* updates,
                       operation_t** operation) except -1 nogil:
        self.first_bad_key(keys, count)
        return self.check(self.start(PUSH, keys, count, NULL, <const char*>updates, operation))

    cdef int set_keys(self, const key_t* keys, Py_ssize_t count, const void* values,
                      operation_t** operation) except -1 nogil:
        self.first_bad_key(keys, count)
        return self.check(self.start(SET, keys, count, NULL, <const char*>values, operation))

    cdef int localize_keys(self, const key_t* keys, Py_ssize_t count, operation_t** operation) except -1 nogil:
        self.first_bad_key(keys, count)
        return self.check(self.start_localize(keys, count, operation))

    cdef int wait_for(self, operation_t* operation) except -1 nogil:
        if operation == NULL:
            return 0
        self.block(is_finished, operation, INT64_MAX)
        self.give_back(operation)
        return 0

    cdef bint test_for(self, operation_t* operation) noexcept nogil:
        # The handle stays the caller's: wait_for gives it back.
        return operation == NULL or self.comm.wait(self.worker_slot, is_finished, operation, 0) != TIMED_OUT

    cdef int sync_replicas(self) except -1 nogil:
        cdef replication_t* replication = &self.protocol.replication
        cdef operation_t* operation
        cdef int64_t full_rounds_before = load(&replication.full_rounds)
        cdef bint covered = False
        if self.store.replicas.count == 0:
            return 0
        while not covered:
            operation = self.new_operation(SYNC, 1, NULL)
            if operation == NULL:
                return self.check(NO_MEMORY)
            fetch_add(&operation.pending, self.store.size)
            self.check(mark(replication, operation, full_rounds_before, &covered))
            complete(operation, 1)
            self.detach(operation)  # it finds its end there also where this wait does not come to it
            self.block(is_finished, operation, INT64_MAX)
        return 0

    cdef void hold_messages(self) noexcept nogil:
        self.holds_messages = True

    cdef void release_messages(self) noexcept nogil:
        self.holds_messages = False
        self.comm.nudge(self.worker_slot, 0, True)

    cdef inline void nudge(self, int64_t keys) noexcept nogil:
        if not self.holds_messages:
            self.comm.nudge(self.worker_slot, keys, False)

    cdef int wait_everything(self) except -1 nogil:
        self.block(nothing_unfinished, self.worker_slot, INT64_MAX)
        return 0

    cdef void cancel(self, operation_t* operation) noexcept nogil:
        # Nobody waits for it any more, and nothing is written to its buffer from now on.
        if operation != NULL:
            self.comm.cancel(operation)
            self.let_go(operation, NULL)

    cdef int64_t prepare_sample_of(self, Py_ssize_t count) except -1 nogil:
        cdef int64_t number
        cdef int status
        self.check_sampling()
        if count < 0 or count > MAX_PREPARED:
            with gil:
                check_int(count, "count", 0, MAX_PREPARED)
        number = self.sampler.open(count)
        if number < 0:
            self.check(NO_MEMORY)
        status = self.fill_sample(self.sampler.find(number))
        if status != OK:
            self.sampler.close(self.sampler.find(number))
        self.check(status)
        return number

    cdef int pull_sample_of(self, int64_t sample, Py_ssize_t count, key_t* keys, void* out,
                            operation_t** operation) except -1 nogil:
        cdef sample_t* found = self.find_sample(sample, count)
        cdef counters_t counted
        cdef int status
        memset(&counted, 0, sizeof(counters_t))
        self.counters = &counted
        self.sampler.hand_out(found, self.store, keys, count)
        if self.sampler.scheme == LOCAL:
            status = self.start_local(keys, count, <char*>out, operation)
        else:
            status = self.start(PULL, keys, count, <char*>out, NULL, operation)
        self.counters = &self.worker_slot.counters
        self.counters.sampled_keys += counted.pulled_keys
        self.counters.sampled_local += counted.pulled_local
        return self.check(status)

    cdef int choose_sample_of(self, int64_t sample, Py_ssize_t count, key_t* keys) except -1 nogil:
        cdef sample_t* found = self.find_sample(sample, count)
        cdef Py_ssize_t i
        cdef int64_t here = 0
        self.sampler.hand_out(found, self.store, keys, count)
        for i in range(count):
            if self.sampler.scheme == LOCAL:
                here += self.sampler.find_here(self.store, &keys[i], NULL)
            else:
                here += is_reachable(self.store, keys[i])
        self.counters.sampled_keys += count
        self.counters.sampled_local += here
        return 0

    cdef sample_t* find_sample(self, int64_t sample, Py_ssize_t count) except NULL nogil:
        cdef sample_t* found
        self.check_sampling()
        found = self.sampler.find(sample)
        if found == NULL or count < 0 or count > found.left:
            with gil:
                self.sampler.refuse(sample, count)
        return found

    cdef int finish_sample_of(self, int64_t sample) except -1 nogil:
        cdef sample_t* found
        self.check_sampling()
        found = self.sampler.find(sample)
        if found == NULL:
            with gil:
                self.sampler.refuse(sample, 0)
        self.sampler.close(found)
        return 0

    # How a call starts --------------------------------------------------------------------------------------------

    cdef int may_start(self, operation_t** operation) noexcept nogil:
        """Why a call cannot be made now; OK where it can. It has no handle yet."""
        if operation != NULL:
            operation[0] = NULL
        if is_broken(self.comm.failure):
            return FAILED
        if load32(&self.comm.ending):
            return CLOSED
        self.reuse_detached()
        return OK

    cdef int start(self, int kind, const key_t* keys, Py_ssize_t count, char* out, const char* given,
                   operation_t** operation) noexcept nogil:
        """Carry out what can be done here, and ask other ranks for the rest, in chunks."""
        cdef operation_t* begun = NULL
        cdef int64_t* offsets = NULL
        cdef Py_ssize_t first = 0, end
        cdef Py_ssize_t step = CHUNK_BYTES if self.length < 0 else max(1, CHUNK_BYTES // <int64_t>self.store.slabs[0].row_bytes)
        cdef int status = self.may_start(operation)
        if status != OK:
            return status
        if kind == PUSH and self.store.replicas.count and self.protocol.replication.max_pending:
            step = min(step, self.protocol.replication.max_pending)  # whether to wait is looked at before each chunk
        if self.length < 0:
            offsets = self.new_offsets(keys, count)
            if offsets == NULL:
                return NO_MEMORY
        while first < count and status == OK:
            end = chunk_end(offsets, first, count, step)
            status = self.start_chunk(&begun, kind, keys, first, end, offsets, out, given, count)
            first = end
        if begun != NULL:
            if kind == PULL:
                offsets = NULL  # they are the operation's now
                if status != OK:
                    self.comm.cancel(begun)  # the caller raises, and lets go of `out`
            self.settle(begun, operation if status == OK else NULL)
        self.nudge(count)
        free(offsets)
        return status

    cdef int start_chunk(self, operation_t** operation, int kind, const key_t* keys, Py_ssize_t first,
                         Py_ssize_t end, int64_t* offsets, char* out, const char* given,
                         Py_ssize_t count) noexcept nogil:
        cdef int64_t misses
        cdef tally_t tally
        cdef Py_ssize_t size = end - first
        cdef const int64_t* chunk_offsets = NULL if offsets == NULL else offsets + first
        cdef size_t shift = 0 if offsets != NULL else first * self.store.slabs[0].row_bytes
        cdef counters_t* counters = self.counters
        cdef int status
        if not has_room(self.protocol):
            status = self.make_room()
            if status != OK:
                return status
        if kind == PUSH and runs_ahead(&self.protocol.replication):
            status = self.wait_for_round()
            if status != OK:
                return status
        if make_scratch(self.worker_slot, size) != OK:
            return NO_MEMORY
        tally.shared = tally.replicated = 0
        misses = access_batch(self.store, kind, keys + first, size, chunk_offsets,
                              (out if kind == PULL else <char*>given) + shift, self.worker_slot.missed, &tally)
        if tally.replicated:
            status = note_pushes(&self.protocol.replication, tally.replicated)
            if status != OK:
                return status
        if kind == PULL:
            counters.pulled_keys += size
            counters.pulled_local += size - misses
            counters.pulled_shared += tally.shared
        else:
            counters.pushed_keys += size
            counters.pushed_local += size - misses
            counters.pushed_shared += tally.shared
        if misses == 0:
            return OK
        if operation[0] == NULL:
            operation[0] = self.new_operation(kind, count, out)
            if operation[0] == NULL:
                return NO_MEMORY
            if kind == PULL:
                operation[0].offsets = offsets
        return self.ask_elsewhere(operation[0], keys, first, misses, offsets, given)

    cdef int ask_elsewhere(self, operation_t* operation, const key_t* keys, Py_ssize_t first, int64_t misses,
                           const int64_t* offsets, const char* given) noexcept nogil:
        cdef int64_t i, position, done = 0, parked = 0
        cdef const char* value = NULL
        cdef size_t row_bytes = self.store.slabs[0].row_bytes
        cdef counters_t* counters = self.counters
        cdef int status = OK
        fetch_add(&operation.pending, misses)
        for i in range(misses):
            position = first + self.worker_slot.missed[i]
            if given != NULL:
                value = given + (position * row_bytes if offsets == NULL else offsets[position])
            status = ask(self.protocol, operation, keys[position], <uint32_t>position, value, &done, &parked)
            if status != OK:
                complete(operation, misses - i)
                break
        complete(operation, done)
        if operation.kind == PULL:
            counters.pulled_local += done
            counters.pulled_in_transit += parked
        else:
            counters.pushed_local += done
            counters.pushed_in_transit += parked
        return status

    cdef int start_localize(self, const key_t* keys, Py_ssize_t count, operation_t** operation) noexcept nogil:
        cdef operation_t* begun = NULL
        cdef Py_ssize_t first = 0
        cdef int status = self.may_start(operation)
        if status != OK:
            return status
        self.counters.localize_keys += count
        while first < count and status == OK:
            status = self.localize_chunk(&begun, keys + first, min(count - first, KEYS_LOOKED_AT), count)
            first += KEYS_LOOKED_AT
        if begun != NULL:
            self.settle(begun, operation if status == OK else NULL)
            self.nudge(count)
        return status

    cdef int localize_chunk(self, operation_t** operation, const key_t* keys, Py_ssize_t size,
                            Py_ssize_t count) noexcept nogil:
        cdef int64_t misses, i, done = 0
        cdef int status = OK
        if make_scratch(self.worker_slot, size) != OK:
            return NO_MEMORY
        # A look without the latch: a key may leave at any moment anyway.
        misses = find_unreachable(self.store, keys, size, self.worker_slot.missed)
        self.counters.localize_local += size - misses
        if misses == 0:
            return OK
        if operation[0] == NULL:
            operation[0] = self.new_operation(LOCALIZE, count, NULL)
            if operation[0] == NULL:
                return NO_MEMORY
        for i in range(misses):
            if not has_room(self.protocol):
                status = self.make_room()
                if status != OK:
                    break
            fetch_add(&operation[0].pending, 1)
            status = localize(self.protocol, operation[0], keys[self.worker_slot.missed[i]], &done)
            if status != OK:
                complete(operation[0], 1)
                break
        complete(operation[0], done)
        self.counters.localize_local += done
        return status

    cdef int start_locate(self, const key_t* keys, Py_ssize_t count, char* out, operation_t** operation) noexcept nogil:
        cdef operation_t* begun = self.new_operation(LOCATE, count, out)
        cdef Py_ssize_t i
        cdef int64_t done = 0
        cdef int status = OK
        operation[0] = NULL
        if begun == NULL:
            return NO_MEMORY
        fetch_add(&begun.pending, count)
        for i in range(count):
            status = ask_location(self.protocol, begun, keys[i], <uint32_t>i, &done)
            if status != OK:
                complete(begun, count - i)
                break
        complete(begun, done)
        self.settle(begun, operation if status == OK else NULL)
        return status

    # How samples start ---------------------------------------------------------------------------------------------

    cdef int fill_sample(self, sample_t* sample) noexcept nogil:
        """Draw the keys of a sample ahead, where its scheme does so, and ask for them."""
        cdef int64_t filled = 0
        cdef int status = OK
        if self.sampler.scheme == PRELOC:
            self.sampler.draw(sample.keys, sample.prepared)
        elif self.sampler.scheme == POOL:
            while filled < sample.prepared and status == OK:
                if self.sampler.is_group_used_up():
                    self.sampler.begin_group()
                    status = self.localize_ahead(self.sampler.drawn, self.sampler.num_drawn)
                filled += self.sampler.take_positions(sample.keys + filled, sample.prepared - filled)
        else:
            return OK
        return status if status != OK else self.localize_ahead(sample.keys, sample.prepared)

    cdef int localize_ahead(self, const key_t* keys, int64_t count) noexcept nogil:
        """Localize without counting it: a sampled key counts where it is pulled."""
        cdef counters_t aside
        cdef int status
        self.counters = &aside
        status = self.start_localize(keys, count, NULL)
        self.counters = &self.worker_slot.counters
        return status

    cdef int start_local(self, key_t* keys, Py_ssize_t count, char* out, operation_t** operation) noexcept nogil:
        """As `start` for a pull whose keys are chosen among what is here."""
        cdef operation_t* begun = NULL
        cdef int64_t* offsets = NULL
        cdef Py_ssize_t first = 0, end
        cdef Py_ssize_t step = max(1, CHUNK_BYTES // <int64_t>value_bytes_at_most(self.store))
        cdef int status = self.may_start(operation)
        if status != OK:
            return status
        if self.length < 0:
            offsets = <int64_t*>malloc((count + 1) * sizeof(int64_t))
            if offsets == NULL:
                return NO_MEMORY
            offsets[0] = 0
        while first < count and status == OK:
            end = min(first + step, count)
            status = self.start_local_chunk(&begun, keys, first, end, offsets, out, count)
            first = end
        if begun == NULL:
            free(offsets)
            return status
        if status != OK:
            self.comm.cancel(begun)  # the caller raises, and lets go of `out`
        self.settle(begun, operation if status == OK else NULL)
        self.nudge(count)
        return status

    cdef int start_local_chunk(self, operation_t** operation, key_t* keys, Py_ssize_t first, Py_ssize_t end,
                               int64_t* offsets, char* out, Py_ssize_t count) noexcept nogil:
        cdef int64_t misses = 0, at
        cdef Py_ssize_t i
        cdef int status
        if not has_room(self.protocol):
            status = self.make_room()
            if status != OK:
                return status
        if make_scratch(self.worker_slot, end - first) != OK:
            return NO_MEMORY
        for i in range(first, end):
            at = i * self.store.slabs[0].row_bytes if offsets == NULL else offsets[i]
            if not self.sampler.find_here(self.store, &keys[i], out + at):
                self.worker_slot.missed[misses] = <uint32_t>(i - first)
                misses += 1
            if offsets != NULL:
                offsets[i + 1] = at + <int64_t>value_bytes(self.store, keys[i])
        self.counters.pulled_keys += end - first
        self.counters.pulled_local += end - first - misses
        if misses == 0:
            return OK
        if operation[0] == NULL:
            operation[0] = self.new_operation(PULL, count, out)
            if operation[0] == NULL:
                return NO_MEMORY
            operation[0].offsets = offsets
        return self.ask_elsewhere(operation[0], keys, first, misses, offsets, NULL)

    # Operations in C ---------------------------------------------------------------------------------------------

    cdef operation_t* new_operation(self, int kind, int64_t count, char* out) noexcept nogil:
        """One that is pending by a guard of 1, which `settle` takes away."""
        cdef operation_t* operation = self.worker_slot.spare
        if operation != NULL:
            self.worker_slot.spare = operation.next
        else:
            operation = <operation_t*>malloc(sizeof(operation_t))
            if operation == NULL:
                return NULL
        memset(operation, 0, sizeof(operation_t))
        operation.pending = 1
        operation.kind = <unsigned char>kind
        operation.count = count
        operation.out = out
        operation.worker_slot = self.worker_slot
        fetch_add(&self.worker_slot.unfinished, 1)
        return operation

    cdef void give_back(self, operation_t* operation) noexcept nogil:
        free(operation.offsets)
        operation.offsets = NULL
        operation.next = self.worker_slot.spare
        self.worker_slot.spare = operation

    cdef void settle(self, operation_t* operation, operation_t** handle) noexcept nogil:
        """Take the guard away, and let go of the operation."""
        complete(operation, 1)
        self.let_go(operation, handle)

    cdef void let_go(self, operation_t* operation, operation_t** handle) noexcept nogil:
        """Hand a started operation to the caller, or keep it until it is finished where nobody waits."""
        if is_finished(operation):
            self.give_back(operation)
        elif handle != NULL:
            handle[0] = operation
        else:
            self.detach(operation)

    cdef void detach(self, operation_t* operation) noexcept nogil:
        operation.next = NULL
        if self.worker_slot.detached == NULL:
            self.worker_slot.detached = operation
        else:
            self.worker_slot.last_detached.next = operation
        self.worker_slot.last_detached = operation

    cdef void reuse_detached(self) noexcept nogil:
        cdef operation_t* operation
        while self.worker_slot.detached != NULL and is_finished(self.worker_slot.detached):
            operation = self.worker_slot.detached
            self.worker_slot.detached = operation.next
            self.give_back(operation)

    cdef int64_t* new_offsets(self, const key_t* keys, Py_ssize_t count) noexcept nogil:
        """Where each value begins, in bytes, and the end of the last."""
        cdef int64_t* offsets = <int64_t*>malloc((count + 1) * sizeof(int64_t))
        cdef Py_ssize_t i
        if offsets != NULL:
            offsets[0] = 0
            for i in range(count):
                offsets[i + 1] = offsets[i] + <int64_t>value_bytes(self.store, keys[i])
        return offsets

    cdef int make_room(self) noexcept nogil:
        """Too many bytes are in flight: drive until there are fewer."""
        cdef int status = TIMED_OUT
        cdef int64_t began = now()
        while status == TIMED_OUT:
            status = self.comm.wait(self.worker_slot, has_room, self.protocol, SIGNAL_EVERY)
            if status == TIMED_OUT and self.is_interrupted():
                status = INTERRUPTED
        self.worker_slot.counters.waited_nanoseconds += now() - began
        return status

    cdef int wait_for_round(self) noexcept nogil:
        """This rank runs ahead of what the others know of it: drive until its next round has begun."""
        cdef replication_t* replication = &self.protocol.replication
        cdef int64_t began = now()
        cdef int status
        fetch_add32(&replication.waiting, 1)
        status = begin_round_if_due(replication)
        if status == OK:
            status = TIMED_OUT
        while status == TIMED_OUT:
            status = self.comm.wait(self.worker_slot, keeps_pace, replication, SIGNAL_EVERY)
            if status == TIMED_OUT and self.is_interrupted():
                status = INTERRUPTED
        fetch_add32(&replication.waiting, <uint32_t>-1)
        self.worker_slot.counters.waited_nanoseconds += now() - began
        return status

    cdef bint is_interrupted(self) noexcept with gil:
        """Whether a signal handler of Python raises; `raise_status` raises it again. For the main thread only."""
        try:
            PyErr_CheckSignals()
        except BaseException as error:
            self.interrupt = error
        return self.interrupt is not None

    # Waiting and errors ---------------------------------------------------------------------------------------------

    cdef int first_bad_key(self, const key_t* keys, Py_ssize_t count) except -1 nogil:
        cdef Py_ssize_t i
        for i in range(count):
            if <unsigned long long>keys[i] >= <unsigned long long>self.store.num_keys:
                with gil:
                    raise IndexError(outside(keys[i], self.store.num_keys))
        return 0

    cdef int block(self, ready_t ready, void* what, int64_t deadline) except -1 nogil:
        """Wait until `ready(what)`: OK, or TIMED_OUT at the deadline; raises where the server ended.

        In slices, between which the main thread looks for signals (in others that does nothing), holding no lock.
        """
        cdef int64_t began, time
        cdef bint counts, reported = False
        cdef int status
        if ready(what):
            return OK
        # When it is done, an operation may belong to somebody else already: its kind is read before.
        counts = ready != has_mail and not (ready == is_finished and (<operation_t*>what).kind == RENDEZVOUS)
        began = time = now()
        while True:
            status = self.comm.wait(self.worker_slot, ready, what, min(SIGNAL_EVERY, max(deadline - time, <int64_t>0)))
            if counts:
                self.worker_slot.counters.waited_nanoseconds += now() - time
            if status != TIMED_OUT:
                return self.check(status)
            time = now()
            if time >= deadline:
                return TIMED_OUT
            if self.is_interrupted():
                return self.check(INTERRUPTED)
            if not reported and time - began > REPORT_AFTER:
                reported = True
                with gil:
                    self.report_wait((time - began) / 1e9)

    def report_wait(self, seconds):
        names = [repr(operation) for operation in self.open_operations][:3]
        print(f"lapse: worker {self.id} on rank {self.rank} has waited {seconds:.0f} s"
              f" ({load(&self.worker_slot.unfinished)} operations unfinished: {', '.join(names) or 'none of Python'}); it goes on waiting",
              file=sys.stderr, flush=True)

    cdef int check_sampling(self) except -1 nogil:
        if self.sampler is None:
            with gil:
                raise RuntimeError("this server draws no samples: create it with "
                                   "Server(..., sampling=lapse.Sampling(scheme, distribution))")
        return 0

    cdef int check(self, int status) except -1 nogil:
        if status != OK:
            with gil:
                self.raise_status(status)
        return 0

    cdef int raise_status(self, int status) except -1:
        if status == NO_MEMORY:
            raise MemoryError("no memory for an operation's bookkeeping; what was not sent was not carried out")
        if status == INTERRUPTED:
            interrupt, self.interrupt = self.interrupt, None
            raise interrupt
        if status == CLOSED:
            raise ClosedError("the server is closed")
        raise self.comm.failure.error()


cdef inline size_t value_bytes_at_most(const store_t* store) noexcept nogil:
    return store.slabs[store.num_slabs - 1].row_bytes  # slabs are ordered by length


cdef int make_scratch(worker_slot_t* worker_slot, int64_t count) noexcept nogil:
    if worker_slot.missed_capacity >= count:
        return OK
    free(worker_slot.missed)
    worker_slot.missed_capacity = 0
    worker_slot.missed = <uint32_t*>malloc(count * sizeof(uint32_t))
    if worker_slot.missed == NULL:
        return NO_MEMORY
    worker_slot.missed_capacity = count
    return OK


cdef inline Py_ssize_t chunk_end(const int64_t* offsets, Py_ssize_t first, Py_ssize_t count, Py_ssize_t step) noexcept nogil:
    cdef Py_ssize_t end
    if offsets == NULL:
        return min(first + step, count)
    end = first + 1
    while end < count and end - first < step and offsets[end + 1] - offsets[first] <= CHUNK_BYTES:
        end += 1
    return end


def new_worker(server, Comm comm, Store store, int worker_slot, int first_id, int num_workers, bint any_thread,
               Sampler sampler=None):
    """The worker that sits on one of the rank's worker slots; the last one is the server's own."""
    cdef Worker worker = Worker.__new__(Worker)
    worker.server = server
    worker.comm = comm
    worker.store_object = store
    worker.store = &store.c
    worker.protocol = &comm.protocol.c
    worker.worker_slot = &comm.worker_slots[worker_slot]
    worker.counters = &worker.worker_slot.counters
    worker.sampler = sampler
    worker.open_operations = collections.deque()
    worker.dtype = store.dtype
    worker.length = store.length
    worker.thread = PyThread_get_thread_ident()
    worker.any_thread = any_thread
    worker.id = first_id + worker_slot if worker_slot < comm.num_worker_slots - 1 else -1
    worker.rank = store.c.rank
    worker.num_workers = num_workers
    worker.nothing = new_handle(worker, NULL, None, None)
    return worker


def sum_counters(Comm comm):
    """The counters of this rank's workers, by name, together. The server's own calls do not count."""
    total = collections.Counter()
    for i in range(comm.num_worker_slots - 1):
        total.update(<dict>comm.worker_slots[i].counters)
    return dict(total)


def clear_counters(Comm comm):
    for i in range(comm.num_worker_slots):
        memset(&comm.worker_slots[i].counters, 0, sizeof(counters_t))
