"""Floor 5. The life of a server on one rank: creation, worker threads, counters, the end.

All ranks create it together. Whatever ends it (an exception in a worker, a rank that leaves, an
error of MPI) is told to all ranks, and every later call raises it.
"""

import contextlib
import threading

import numpy as np
from mpi4py import MPI

from lapse import _mpi_loader
from lapse.errors import ClosedError, CommError
from lapse.options.initializers import as_initializer
from lapse.server import save_load
from lapse.server.arguments import agree
from lapse.server.assembly import assemble, start
from lapse.server.rank_calls import RankCalls
from lapse.server.shutdown import Shutdown
from lapse.server.workers import Workers, is_failure
from lapse.worker._arrays import convert_keys, outside
from lapse.worker._counters import Counters
from lapse.worker.collectives import Collectives
from lapse.worker.group import WorkerGroup


class Server:
    """The part of a parameter server that runs on this rank. Created by all ranks together.

    Parameters
    ----------
    num_keys : int
        Keys are the integers 0 .. num_keys - 1; at most 2**32 - 2.
    value_lengths : int or array_like of int
        Elements per value: one number for all keys, or one for each, shape (num_keys,).
    dtype : {"float32", "float64"}
    workers : int
        Worker threads of this rank; may differ from rank to rank.
    replicated_keys : array_like of int, optional
        Keys of which every rank holds a replica: pulls and pushes of them are local, and replicas are synchronised
        in the background. For the few that all ranks use all the time; `choose_hot_spots` finds them. All other keys
        are relocated on request.
    replication : Replication, optional
        How replicas are synchronised; by default 5 times a second.
    sampling : Sampling, optional
        How `Worker.prepare_sample` and `Worker.pull_sample` draw keys; without it they raise.
    shared_memory : bool, optional
        Whether ranks of one host reach each other's values directly, without messages: what one of them owns is local
        to all. By default what the environment variable LAPSE_SHARED_MEMORY (0 or 1) says, else True; 0 forbids it in
        any case. Ranks of other hosts always send messages.
    max_in_flight : int
        Bytes of this rank's own unanswered operations per destination, above which calls block.
    comm : mpi4py.MPI.Intracomm, optional
        The ranks; by default MPI.COMM_WORLD. It is duplicated, so that messages never meet others.
    seed : int
        Of initial values and of the workers' generators.

    Raises
    ------
    ValueError, TypeError
        For arguments out of range; also, naming rank and argument, where the ranks' arguments differ.
    MemoryError
        Where the directory or the address range for the values cannot be had.
    CommError
        Where MPI does not grant MPI_THREAD_MULTIPLE.

    Notes
    -----
    Values start at zero. Keys move between ranks as in Renz-Wieland et al., *Dynamic Parameter
    Allocation in Parameter Servers*, PVLDB 13(12), 2020. What a worker reads of a replicated key are all updates of
    its own rank, and those of other ranks up to the last synchronisation.

    Examples
    --------
    >>> with lapse.Server(num_keys=10, value_lengths=3) as server:     # doctest: +SKIP
    ...     with server.worker() as kv:
    ...         kv.push([1, 5], np.ones((2, 3), "f4")).wait()
    ...         values = kv.pull([1, 5]).wait()
    """

    def __init__(
        self,
        num_keys,
        value_lengths,
        dtype="float32",
        workers=1,
        replicated_keys=None,
        replication=None,
        sampling=None,
        *,
        shared_memory=None,
        max_in_flight=64 << 20,
        comm=None,
        seed=0,
    ):
        if comm is None:
            comm = MPI.COMM_WORLD
            _mpi_loader.check_launcher(comm.size)
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm must be an mpi4py intracommunicator, not {type(comm).__name__}")
        given = dict(
            num_keys=num_keys,
            value_lengths=value_lengths,
            dtype=dtype,
            workers=workers,
            replicated_keys=replicated_keys,
            replication=replication,
            sampling=sampling,
            shared_memory=shared_memory,
            max_in_flight=max_in_flight,
            seed=seed,
        )
        arguments, self._worker_counts = agree(comm, given)
        self._seed, self._sampling = arguments.seed, arguments.sampling
        self._comm_given = comm
        self._lock = threading.Lock()  # one call of the server's own at a time
        self._create(comm, arguments)

    def _create(self, comm, arguments):
        parts = assemble(comm, arguments, self._first_id)
        self._store, self._protocol, self._comm = parts.store, parts.protocol, parts.comm
        self._sharing = parts.sharing
        collectives = Collectives(self._comm, comm.rank, comm.size, self.workers)
        self._counters = Counters(self._comm, self._protocol)
        group = WorkerGroup(
            self._comm,
            self._store,
            self._protocol,
            collectives,
            self._counters,
            self.seed,
            self._first_id,
            self.num_workers,
        )
        self._workers = Workers(group, parts.samplers)
        self._calls = RankCalls(self._workers.new_control(), collectives, self._workers, comm.rank, comm.size)
        start(comm, parts)
        self._shutdown = Shutdown(self._comm, parts.communicator, comm, self._calls)

    # What it is ------------------------------------------------------------------------------------------

    @property
    def num_keys(self):
        """Keys are 0 .. num_keys - 1."""
        return self._store.num_keys

    @property
    def dtype(self):
        """The `numpy.dtype` of all values."""
        return self._store.dtype

    @property
    def seed(self):
        """The seed of initial values and generators."""
        return self._seed

    @property
    def sampling(self):
        """The `Sampling` that was passed, or None."""
        return self._sampling

    @property
    def rank(self):
        """This rank's number in `comm`."""
        return self._comm_given.rank

    @property
    def size(self):
        """The number of ranks."""
        return self._comm_given.size

    @property
    def comm(self):
        """The communicator that was passed."""
        return self._comm_given

    @property
    def sharing_ranks(self):
        """The ranks of this host that reach each other's values without messages, this one among them: a list of int.

        All of the host, where shared memory is not forbidden; of each LAPSE_SHARED_MEMORY_RANKS neighbours, where that
        environment variable asks for smaller groups (such as the ranks of one socket).
        """
        return list(self._sharing)

    @property
    def workers(self):
        """Worker threads of this rank."""
        return self._worker_counts[self.rank]

    @property
    def num_workers(self):
        """Worker threads of all ranks."""
        return sum(self._worker_counts)

    @property
    def _first_id(self):
        """The number of this rank's first worker."""
        return sum(self._worker_counts[: self.rank])

    def value_length(self, keys):
        """Elements per value.

        Parameters
        ----------
        keys : int or array_like of int

        Returns
        -------
        int or numpy.ndarray of int64
            Of the shape of `keys`.

        Raises
        ------
        IndexError, TypeError
            For a key outside the range; for keys that are not integers.
        """
        keys = self._as_keys(keys)
        lengths = self._store.value_length(keys)
        return int(lengths) if keys.ndim == 0 else lengths

    def __repr__(self):
        state = "closed" if self._shutdown.is_done else "failed" if self._comm.failure.has_failed else "open"
        return f"<lapse.Server: {self.num_keys} keys, rank {self.rank} of {self.size}, {self.workers} workers, {state}>"

    # Workers ------------------------------------------------------------------------------------

    def run(self, fn, *args):
        """Call `fn(worker, *args)` in every worker thread of every rank. Collective.

        Ends when every worker of every rank has returned and all operations have taken effect.

        Parameters
        ----------
        fn : callable
        *args
            Passed on; the threads share these objects.

        Returns
        -------
        list
            What this rank's workers returned, in worker order.

        Raises
        ------
        BaseException
            An exception of a worker of this rank.
        RemoteError
            Where a worker of another rank raised one: names rank, worker and message. The server has
            then failed: every later call but `close` raises the same.
        """
        self._check_open()
        return self._workers.run(fn, args)

    @contextlib.contextmanager
    def worker(self):
        """A context manager that gives one `Worker` to the calling thread, for scripts with `workers=1`.

        At its end all operations of the worker have taken effect. An exception inside is told to all
        ranks, as in `run`.

        Raises
        ------
        ValueError
            Where this rank has more than one worker: use `run`.
        """
        self._check_open()
        if self.workers != 1:
            raise ValueError(f"worker() is for workers=1, but this rank has {self.workers}: use run(fn)")
        with self._workers.lend() as worker:
            yield worker

    # Values ----------------------------------------------------------------------------------------------

    def initialize(self, keys, init):
        """Set where values begin, without messages: every rank fills what it holds. Collective.

        Parameters
        ----------
        keys : array_like of int
            The same on all ranks.
        init : Normal, UniformValues, Constant or callable
            A function is called as `fn(keys, rng)` for one key at a time, `keys` of shape (1,), with a
            `numpy.random.Generator` of that key's own, and returns the value's elements. Values depend
            on (seed, key) only, not on the number of ranks.

        Raises
        ------
        IndexError, TypeError, ValueError
            For keys outside the range, an `init` of no known kind, values of another length.
        """
        self._check_open()
        init = as_initializer(init)
        keys = np.unique(self._as_keys(keys))
        with self._lock:
            self._calls.come_to_rest("initialize")
            self._fill(keys[self._store.is_here(keys)], init)
            self._calls.exchange("the end of initialize")

    def _fill(self, keys, init, block=4096):
        lengths = self._store.value_length(keys)
        for length in np.unique(lengths):
            group = keys[lengths == length]
            for first in range(0, len(group), block):
                part = group[first : first + block]
                values = init.values(part, int(length), self.seed).astype(self.dtype)
                self._store.fill(part, values.reshape(-1))

    def save(self, path, metadata=None):
        """Write all values into a folder, every rank those that it owns. Collective.

        The values are those after all operations that were issued before the call; nobody may use the server
        during it: call it between two runs, or from `run` or `worker` where ranks have one worker. A save that is killed or fails at whatever moment leaves the one before it as it was; a save that
        succeeds deletes it. Files in the folder that are not Lapse's are left alone.

        Parameters
        ----------
        path : path-like
            The same on all ranks, on a file system that all of them see. It is made where it is missing, its
            parent is not.
        metadata : dict, optional
            Anything that fits into JSON, to be had back from `load`. That of rank 0 counts.

        Raises
        ------
        OSError, CheckpointError, ValueError, TypeError
            On every rank, where something cannot be written on one; the server can be used as before.

        Notes
        -----
        The format is described in `lapse.server.checkpoint`; the `safetensors` package reads the files.
        """
        self._check_open()
        with self._lock:
            save_load.save(self._calls, self._store, path, metadata)

    def load(self, path):
        """Read what `save` wrote, with any number of ranks; values go where their keys are now. Collective.

        Every value of the server is replaced; where the checkpoint has none, by zeros.

        Parameters
        ----------
        path : path-like
            As it was given to `save`.

        Returns
        -------
        dict
            The metadata that was given to `save`.

        Raises
        ------
        FileNotFoundError
            On every rank, where there is no complete checkpoint.
        CheckpointError
            On every rank, where the checkpoint is damaged or of a server with other keys, lengths or dtype; the
            values are then as they were before. (An OSError of a disk that fails while values are read may leave
            some replaced and others not.)
        """
        self._check_open()
        with self._lock:
            return save_load.load(self._calls, self._store, path)

    def owner(self, keys):
        """The rank that owns each key now, as its home knows it. Not collective.

        Parameters
        ----------
        keys : int or array_like of int

        Returns
        -------
        int or numpy.ndarray of int64
            Of the shape of `keys`. A key that is on its way counts to the rank that it goes to.

        Raises
        ------
        IndexError, TypeError
            As in `Worker.pull`.
        """
        self._check_open()
        with self._lock:
            owners = self._calls.owner(keys)
        return int(owners) if owners.ndim == 0 else owners

    def local_keys(self):
        """The keys that this rank owns at this moment: a sorted int64 array."""
        self._check_open()
        return self._store.local_keys()

    # Counters ------------------------------------------------------------------------------------------------

    def stats(self, all_ranks=False):
        """Counters since the last reset.

        Parameters
        ----------
        all_ranks : bool
            Sum over all ranks; collective then.

        Returns
        -------
        dict of str to int
            Key positions pulled, pushed, localized and sampled, how many of them locally, relocations, messages
            and bytes. What was not `_local` and not `_in_transit` was remote. `replica_syncs`: rounds in which this
            rank sent changes of replicas; `replica_keys_sent`: values that it sent for that, as contributions to
            homes and as sums to the other ranks.
        """
        self._check_open()
        counters = self._counters.read()
        if all_ranks:
            with self._lock:
                counters = self._calls.exchange("stats", counters, _sum_by_name)
        return counters

    def seconds_waited(self, all_ranks=False):
        """The time that workers have spent waiting for operations since the last `reset_stats`, added up.

        Barriers do not count.

        Parameters
        ----------
        all_ranks : bool
            Of the workers of all ranks; collective then.

        Returns
        -------
        float
        """
        self._check_open()
        seconds = self._counters.seconds_waited()
        if all_ranks:
            with self._lock:
                seconds = self._calls.exchange("seconds_waited", seconds, sum)
        return seconds

    def reset_stats(self):
        """Let this rank's counters start at zero."""
        self._check_open()
        self._counters.reset()

    # The end ----------------------------------------------------------------------------------------------------

    def close(self):
        """Finish what is under way and stop. Collective; calling it again does nothing.

        Raises
        ------
        RemoteError
            Where another rank failed instead of closing. This server is closed all the same.
        """
        if self._shutdown.is_done or self._shutdown.is_in_child:
            return
        try:
            if not self._comm.failure.has_failed:
                with self._lock:
                    self._calls.close()
        except BaseException as error:  # also a KeyboardInterrupt while waiting for the others
            self._comm.failure.report(error)
            raise
        finally:
            self._shutdown.stop()

    def __enter__(self):
        if self._shutdown.is_done:
            raise ClosedError("the server is closed")
        return self  # one that has failed meanwhile is closed at the end of the block

    def __exit__(self, kind, error, trace):
        if error is not None and is_failure(error) and not self._shutdown.is_done and not self._shutdown.is_in_child:
            self._comm.failure.report(error)
        self.close()

    def _check_open(self):
        if self._shutdown.is_done:
            raise ClosedError("the server is closed")
        self._calls.check_thread()
        self._comm.failure.raise_if_set()

    def _as_keys(self, keys):
        keys = convert_keys(keys, self.num_keys)
        for key in (keys.min(), keys.max()) if keys.size else ():
            if not 0 <= key < self.num_keys:
                raise IndexError(outside(key, self.num_keys))
        return keys


def _sum_by_name(dictionaries):
    return {name: sum(counters[name] for counters in dictionaries) for name in dictionaries[0]}
