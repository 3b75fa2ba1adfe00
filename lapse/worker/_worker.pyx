"""Floor 4. What one worker thread may ask for: the Python calls."""

import numpy as np

from lapse.worker._arrays import as_key_buffer, as_out, as_room, as_values, as_weights, last_occurrences, rows_at
from lapse.base.checks import check_float, check_int
from lapse.options.replication import Replication
from lapse.worker.setup_phase import SetupPhase

cimport numpy as cnp
from libc.float cimport DBL_MAX
from libc.math cimport NAN
from libc.stdint cimport UINT32_MAX

from lapse.sampling._sampler cimport Sampler, new_sample
from lapse._comm cimport Comm
from lapse.protocol._protocol cimport Protocol
from lapse.protocol._rank cimport rank_t
from lapse._store cimport Store, is_reachable
from lapse.worker._arrays cimport as_keys
from lapse.worker._caller cimport max_value_bytes
from lapse.worker._operation cimport Operation, new_handle, release_all_finished, release_finished
from lapse.worker._waiter cimport begin_waiter
from lapse.base._types cimport PUSH, SET, terms_t

cnp.import_array()


cdef class Worker(Door):
    """What one worker thread may ask for. Created by `Server.run` or `Server.worker`.

    Every call returns an `Operation`; `wait` makes it synchronous. A call blocks only if the
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
        raise TypeError("workers are created by Server.run or Server.worker")

    cdef int enter(self) except -1:
        """What every call begins with: may it be made?"""
        self.check_usable()
        return release_finished(self)

    cdef object begin(self, keys):
        """What every call with keys begins with: may it be made, and are they keys?"""
        cdef cnp.ndarray key_array
        self.enter()
        key_array = as_keys(keys, self.store.num_keys)
        self.first_bad_key(<const key_t*>cnp.PyArray_DATA(key_array), cnp.PyArray_SIZE(key_array))
        return key_array

    # The primitives ------------------------------------------------------------------------------------------------

    def pull(self, keys, out=None):
        """Read values.

        Parameters
        ----------
        keys : int or array_like of int
            Repeated keys are allowed.
        out : array, tensor or buffer, optional
            Receives the values: of the server's dtype, C-contiguous, of the result's shape or 1-D.
            Complete only after `wait`.

        Returns
        -------
        Operation
            Its `wait` gives the values: of shape `keys.shape + (length,)` if all values have one
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
        cdef bint fills_out = out is not None
        key_array = <cnp.ndarray>self.begin(keys)
        pointer = <const key_t*>cnp.PyArray_DATA(key_array)
        count = cnp.PyArray_SIZE(key_array)
        if out is None:
            array = out = np.empty(self.shape_for(key_array), dtype=self.dtype)
        else:
            array = as_out(out, self.dtype, self.shape_for(key_array), self.elements_for(key_array))
        target = <char*>cnp.PyArray_DATA(array)
        with nogil:
            self.check(self.start_pull(pointer, count, target, &c))
        return new_handle(self, c, out, array, fills_out)

    def push(self, keys, updates, weights=None):
        """Add to values. Each occurrence of a repeated key counts.

        Parameters
        ----------
        keys : int or array_like of int
        updates : array_like
            Of the server's dtype, shape `keys.shape + (length,)` or 1-D with as many elements. May be
            reused when this returns.
        weights : array_like of float32, optional
            For each key how much its update counts where replicas are combined adaptively, see `Replication`:
            the learning rate times the number of steps in it. By default 1.

        Returns
        -------
        Operation
            Done when the updates have taken effect at the keys' owners.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `pull`, before anything is sent.
        """
        return self.change(PUSH, self.begin(keys), updates, "updates", weights)

    def set(self, keys, values):
        """Replace values. Of a repeated key only the last occurrence is carried out.

        Parameters and errors as in `push`.
        """
        cdef cnp.ndarray key_array = <cnp.ndarray>self.begin(keys)
        if cnp.PyArray_SIZE(key_array) > 1:
            flat = np.asarray(key_array).reshape(-1)
            last = last_occurrences(flat)
            if len(last) < len(flat):
                values = as_values(values, self.dtype, self.shape_for(key_array), self.elements_for(key_array),
                                   "values")
                lengths = self.length if self.length >= 0 else self.store_object.value_length(flat)
                values = rows_at(values, lengths, last)
                key_array = flat[last]
        return self.change(SET, key_array, values, "values")

    def apply_gradients(self, keys, gradients, lr=None, step=None):
        """Take a step of each key's optimizer, where its value lies.

        The gradients of a key that is repeated are summed first, as torch does. A step takes effect exactly once,
        wherever the key is or moves to. Steps of several workers on one key are taken one after the other.

        Parameters
        ----------
        keys : int or array_like of int
        gradients : array_like
            Of the server's dtype, shape `keys.shape + (length,)` or 1-D with as many elements. May be
            reused when this returns.
        lr : float, optional
            The learning rate of this call; by default each optimizer's own.
        step : int, optional
            The number of the caller's step, from 1 on, for `lapse.optim.Adam`, which then corrects the bias as
            torch.optim.SparseAdam does. By default each value counts its own steps.

        Returns
        -------
        Operation
            Done when the steps have taken effect at the keys' owners.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `pull`, before anything is sent; also for a key without an optimizer, for an `lr` that is negative or
            not finite, and for a `step` below 1.
        """
        return self.apply(keys, gradients, lr, step, False)

    cdef object apply(self, keys, gradients, lr, step, bint are_distinct):
        """See `apply_gradients`; `are_distinct`: the caller knows that no key is repeated."""
        cdef cnp.ndarray key_array = <cnp.ndarray>self.begin(keys)
        cdef cnp.ndarray array
        cdef operation_t* c = NULL
        cdef const key_t* pointer = <const key_t*>cnp.PyArray_DATA(key_array)
        cdef Py_ssize_t count = cnp.PyArray_SIZE(key_array)
        cdef const char* source
        cdef terms_t terms
        terms.weight = NAN if lr is None else check_float(lr, "lr", 0.0, DBL_MAX)
        terms.step = 0 if step is None else check_int(step, "step", 1, UINT32_MAX)
        self.first_without_optimizer(pointer, count)
        array = as_values(gradients, self.dtype, self.shape_for(key_array), self.elements_for(key_array), "gradients")
        source = <const char*>cnp.PyArray_DATA(array)
        with nogil:
            self.check(self.start_gradients(pointer, count, source, terms, are_distinct, &c))
        return self.nothing if c == NULL else new_handle(self, c, None, None)

    cdef object change(self, int kind, keys, given, name, weights=None):
        cdef cnp.ndarray key_array = <cnp.ndarray>keys
        cdef cnp.ndarray array
        cdef operation_t* c = NULL
        cdef const key_t* pointer = <const key_t*>cnp.PyArray_DATA(key_array)
        cdef Py_ssize_t count = cnp.PyArray_SIZE(key_array)
        cdef const char* source
        cdef const float[::1] weight_view
        cdef const float* weight = NULL
        array = as_values(given, self.dtype, self.shape_for(key_array), self.elements_for(key_array), name)
        source = <const char*>cnp.PyArray_DATA(array)
        if weights is not None and count:
            weight_view = as_weights(weights, count)
            weight = &weight_view[0]
        with nogil:
            self.check(self.start_change(kind, pointer, count, source, weight, &c))
        return self.nothing if c == NULL else new_handle(self, c, None, None)

    def localize(self, keys):
        """Request that keys be moved to this rank.

        When the operation is done each key has arrived here once: access is local until another
        rank requests it. Keys that are here already, or at a rank that shares memory, count as arrived. A key that
        ranks take from each other before its use stays where it is for some calls (docs/protocol.md).

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
            If there is no memory for the keys' arrival.
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
            As in `pull`. Not written if the result is False.

        Returns
        -------
        bool
        """
        cdef cnp.ndarray key_array, row
        cdef const key_t* pointer
        cdef Py_ssize_t count, i
        cdef int64_t misses
        cdef char* target
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
            misses = self.read_if_here(pointer, count, target)
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

    # Samples -------------------------------------------------------------------------------------------------------

    def prepare_sample(self, count):
        """Announce that keys will be drawn, as the server's `Sampling` says. Does not wait for anything.

        Parameters
        ----------
        count : int
            How many keys can be pulled.

        Returns
        -------
        Sample
            A handle for `pull_sample`, of this worker alone. It ends with `finish_sample`, with the
            worker, or when nothing refers to it any more.

        Raises
        ------
        RuntimeError
            If the server was created without `sampling`.
        TypeError, ValueError
            If `count` is not an integer, or is negative.
        MemoryError
            If there is no memory for the keys.
        """
        cdef Py_ssize_t number_of_keys
        cdef int64_t number
        self.enter()
        self.check_sampling()
        number_of_keys = self.check_sample_size(count, "count")
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
            Receives the keys. Complete when this returns.
        out : array, tensor or buffer, optional
            Receives the values, as in `pull`. If lengths vary it must have room for n times the
            longest value.

        Returns
        -------
        Operation
            Its `wait` gives (keys, values): keys of shape (n,), values of shape (n, length), or, if
            lengths vary, 1-D, one value after another; `keys` and `out` themselves if they were
            passed, but only the part of `out` that was filled if lengths vary.

        Raises
        ------
        ValueError
            If `n` is more than is left; if the handle is finished, or belongs to another worker; for buffers
            of another size, read-only or not contiguous.
        RuntimeError, TypeError
            If the server was created without `sampling`; for buffers of another dtype, or an `n` that is
            not an integer.
        """
        cdef cnp.ndarray key_array, array
        cdef operation_t* c = NULL
        cdef key_t* key_target
        cdef char* target
        cdef Py_ssize_t count
        cdef int64_t number
        cdef bint fills_out = out is not None
        self.enter()
        self.check_sampling()
        number = self.sampler.number_of(handle)
        count = self.check_sample_size(n, "n")
        self.sampler.find_with(number, count)
        if keys is None:
            keys = np.empty(count, dtype=np.int64)
        key_array = as_key_buffer(keys, count)
        if self.length >= 0:
            shape = (count, self.length)
            out = np.empty(shape, dtype=self.dtype) if out is None else out
            array = as_out(out, self.dtype, shape, count * self.length)
        else:
            room = count * (max_value_bytes(self.store) // self.store.itemsize)
            array = np.empty(room, dtype=self.dtype) if out is None else as_room(out, self.dtype, room)
        key_target = <key_t*>cnp.PyArray_DATA(key_array)
        target = <char*>cnp.PyArray_DATA(array)
        with nogil:
            self.pull_sample_of(number, count, key_target, target, &c)
        if self.length < 0:
            out = np.asarray(array).reshape(-1)[:self.elements_for(key_array)]
        return new_handle(self, c, (keys, out), (key_array, array), fills_out)

    def finish_sample(self, handle):
        """Drop what is left of a sample.

        Raises
        ------
        ValueError
            If the handle is finished already, or belongs to another worker.
        """
        self.enter()
        self.check_sampling()
        self.finish_sample_of(self.sampler.number_of(handle))

    # Waiting -------------------------------------------------------------------------------------------------------

    def wait(self, *operations):
        """Wait for operations: the result of one, or the list of the results of several.

        Raises
        ------
        TypeError
            If one is something else, such as a list of operations: pass them as ``kv.wait(*operations)``.
        """
        for operation in operations:
            if not isinstance(operation, Operation):
                raise TypeError(f"wait takes operations, not {type(operation).__name__}: wait(*operations) for those "
                                "of a list, or operation.wait() for each")
        if len(operations) == 1:
            return operations[0].wait()
        return [operation.wait() for operation in operations]

    def wait_all(self):
        """Wait for everything that this worker has issued.

        Raises
        ------
        RemoteError
            If the server has failed meanwhile.
        """
        self.enter()
        with nogil:
            self.wait_everything()
        release_all_finished(self)
        self.dropped_at = None

    def wait_replica_sync(self):
        """Return when every update that has reached this rank's replicas is in every rank's replica.

        The pace and threshold of `Replication` do not matter. If nothing is replicated, and on one rank, that is
        at once.

        Raises
        ------
        RemoteError, ClosedError
            If the server has failed or ended meanwhile.
        """
        self.enter()
        with nogil:
            self.sync_replicas()

    def pace_rounds(self, syncs_per_second=0, max_pending=None, max_late=None):
        """Change when this host begins rounds of replicas, from now on; the other hosts join them.

        Ranks that share memory have one pace: what any of them has said last.

        Parameters
        ----------
        syncs_per_second, max_pending
            As of `Replication`.
        max_late : int, optional
            A worker also waits when more key positions than these have been pushed on its host while a round is under
            way.
            With 0 workers wait for the result of each round; the more, the more of the exchange is hidden behind
            computing, and the later its result. By default 1.5 times `max_pending`; needs `max_pending`.

        Raises
        ------
        TypeError, ValueError
            As from `Replication`; if `max_late` is given without `max_pending`.
        """
        self.enter()
        pace = Replication(syncs_per_second, max_pending)
        pending = pace.max_pending or 0
        if max_late is None:
            max_late = pending + pending // 2
        elif max_pending is None:
            raise ValueError(f"max_late is {max_late}, but there is no max_pending: nothing bounds rounds by work")
        self.group.protocol.pace_rounds(pace.interval, pending, check_int(max_late, "max_late", 0, 2**61))

    # With all workers of all ranks ---------------------------------------------------------------------------------

    def barrier(self):
        """Wait until all workers of all ranks are here. Does not wait for operations.

        Raises
        ------
        RemoteError, LapseError
            If a worker returned, or is in another collective call, instead.
        """
        self.enter()
        self.group.collectives.barrier(self)

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
        return self.group.collectives.allreduce(self, x, op)

    def setup(self):
        """The initialization phase: a context manager, collective over all workers.

        Inside, workers set initial values; updates reach replicas unscaled and whatever their size.
        At its end all operations are done, all replicas agree, and statistics start at zero.

        Examples
        --------
        >>> with kv.setup():                # doctest: +SKIP
        ...     if kv.id == 0:
        ...         kv.set(keys, start)
        """
        self.enter()
        return SetupPhase(self.group, self)

    @property
    def rng(self):
        """A `numpy.random.Generator` of this worker's own, seeded by (the server's seed, `id`).

        It goes on from one run to the next. `Server.save` saves where it is, and after `Server.load` with as many
        workers it goes on from there; with another number of workers it is a new one, unlike those before.
        """
        if self.generator is None:
            self.generator = self.group.streams.generator(self.id)
        return self.generator

    def __repr__(self):
        return f"<lapse.Worker {self.id} of {self.num_workers}, rank {self.rank}>"

    # What the Python calls share -----------------------------------------------------------------------------------

    cdef object shape_for(self, keys):
        if self.length < 0:
            return (self.elements_for(keys),)
        return np.shape(keys) + (self.length,)

    cdef object elements_for(self, keys):
        if self.length < 0:
            return int(self.store_object.value_length(np.asarray(keys).reshape(-1)).sum())
        return cnp.PyArray_SIZE(<cnp.ndarray>keys) * self.length


# For the server -------------------------------------------------------------------------------------------------------

def new_worker(group, int worker_slot, bint any_thread=False, Sampler sampler=None):
    """Create the worker of one of the rank's worker slots; the last slot is for the server's own calls."""
    cdef Worker worker = Worker.__new__(Worker)
    cdef Comm comm = group.comm
    cdef Store store = group.store
    cdef Protocol protocol = group.protocol
    cdef rank_t* state = &protocol.c.rank
    worker.group = group
    worker.comm = comm
    worker.store_object = store
    worker.store = &store.c
    worker.protocol = &protocol.c
    worker.worker_slot = &state.worker_slots[worker_slot]
    worker.sampler = sampler
    worker.threads = group.threads
    begin_waiter(worker)
    worker.dtype = store.dtype
    worker.length = store.length
    worker.any_thread = any_thread
    worker.id = group.first_id + worker_slot if worker_slot < state.num_worker_slots - 1 else -1
    worker.rank = store.c.rank
    worker.num_workers = group.num_workers
    worker.nothing = new_handle(worker, NULL, None, None)
    return worker


def retire(Worker worker):
    """End the use of a worker: finished operations let go of their arrays."""
    release_all_finished(worker)
    worker.retired = True
    worker.thread = 0
    if worker.sampler is not None:
        worker.sampler.close_all()
    worker.nothing = None  # it refers to this worker


def apply_distinct_gradients(Worker worker, keys, gradients, lr, step):
    """As `Worker.apply_gradients`, for keys of which none is repeated."""
    return worker.apply(keys, gradients, lr, step, True)


def count_step(Worker worker, str table):
    """The number of the step that a worker makes with a table now, from 1 on: see `lapse.worker.steps`."""
    return worker.group.steps.next(worker.id, table)


def find_owners(Worker worker, keys):
    """The rank that owns each key, as its home knows it: an int array of the keys' shape."""
    cdef cnp.ndarray key_array = <cnp.ndarray>worker.begin(keys)
    cdef operation_t* c = NULL
    cdef const key_t* pointer = <const key_t*>cnp.PyArray_DATA(key_array)
    cdef Py_ssize_t count = cnp.PyArray_SIZE(key_array)
    cdef char* target
    owners = np.empty(count, dtype=np.int32)
    target = <char*>cnp.PyArray_DATA(<cnp.ndarray>owners)
    with nogil:
        worker.check(worker.start_locate(pointer, count, target, &c))
    new_handle(worker, c, owners, owners).wait()
    return owners.astype(np.int64).reshape(np.shape(key_array))
