"""Floor 5. The life of a server on one rank: creation, worker threads, counters, the end.

All ranks create it together. Whatever ends it (an exception in a worker, a rank that leaves, an
error of MPI) is told to all ranks, and every later call raises it.
"""

import atexit
import contextlib
import os
import pathlib
import sys
import threading
import time
import traceback
import weakref

import numpy as np
from mpi4py import MPI

from lapse import _mpi_loader
from lapse.server import checkpoint
from lapse.worker._arrays import convert_keys, outside
from lapse._comm import Comm
from lapse.sampling._draws import Table
from lapse.protocol._protocol import Protocol
from lapse.sampling._sampling import Sampler
from lapse.storage._host_peers import HostPeers
from lapse._store import Store
from lapse.worker._worker import clear_counters, new_worker, sum_counters
from lapse.server.advice import warn_of_binding, warn_of_network_module
from lapse.server.arguments import agree, raise_first
from lapse.server.collectives import Collectives, ignore
from lapse.errors import ClosedError, CommError, LapseError, RemoteError
from lapse.server.host import Host
from lapse.options.initializers import as_initializer

LEAVING_SECONDS = 10  # how long an interpreter that ends with an open server waits for the others

_TRAFFIC = ("messages_sent", "bytes_sent", "messages_received", "bytes_received")
_RELOCATIONS = ("relocations_in", "relocations_out", "relocations_passed_on")
_REPLICAS = ("replica_syncs", "replica_keys_sent")

_WAITED = "waited_nanoseconds"  # kept with the counters, but a time

_open_servers = {}  # as an ordered set: in the order of creation
_silent_ranks = set()  # of MPI.COMM_WORLD; they did not answer a failure, and MPI_Finalize would wait for them for ever


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
        self._closed = True  # until everything exists
        self._own_error = None
        self._process = os.getpid()
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
        arguments, workers_by_rank = agree(comm, given)
        self._arguments = arguments
        self._workers = arguments["workers"]
        self._worker_counts = workers_by_rank
        self._comm_given = comm
        self._lock = threading.Lock()  # one call of the server's own at a time
        self._worker_slots_taken = threading.Lock()
        self._retired = []  # workers whose operations a failure left unfinished
        self._create(comm, arguments)
        del arguments["value_lengths"]  # the store has them in 4 bytes per key
        self._closed = False
        _open_servers[self] = None

    def _create(self, comm, arguments):
        host = Host(comm)
        try:
            self._agree_on(comm, self._make_store, comm, arguments, host)
            host_peers = host.make_host_peers() if comm.size > 1 else HostPeers()
            self._sharing = self._share(arguments, host, host_peers)
        finally:
            host.free()
        communicator = None
        if comm.size > 1:
            communicator = comm.Dup()
            communicator.Set_errhandler(MPI.ERRORS_RETURN)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        crowded = host.size * self._workers > cores
        warn_of_binding(comm, self._workers, cores)
        if -1 in host.places and comm.rank == 0:
            warn_of_network_module()
        self._communicator = communicator
        self._comm = self._agree_on(
            comm, Comm, self._protocol, communicator, self._workers, host_peers, crowded
        )
        fail = weakref.WeakMethod(self._fail)  # this server has the collective calls, they do not keep it
        self._collectives = Collectives(
            self._comm, comm.rank, comm.size, self._workers, lambda error, worker: fail()(error, worker)
        )
        self._control = new_worker(
            self, self._comm, self._store, self._workers, 0, self.num_workers, any_thread=True
        )
        try:
            self._agree_on(comm, self._comm.start)
        except BaseException:
            self._comm.abandon()
            raise
        self._zero = (0,) * len(_TRAFFIC + _RELOCATIONS + _REPLICAS)
        if communicator is not None:
            communicator.Barrier()  # every rank receives before any sends

    @staticmethod
    def _agree_on(comm, make, *args):
        """What `make(*args)` gives, if it succeeds on all ranks. Without memory or threads on one, all raise."""
        made, error = None, None
        try:
            made = make(*args)
        except (MemoryError, RuntimeError) as caught:
            error = caught
        raise_first(comm, error)
        return made

    def _make_store(self, comm, arguments, host):
        self._store = Store(
            arguments["num_keys"],
            arguments["value_lengths"],
            arguments["dtype"],
            comm.rank,
            comm.size,
            arguments["replicated_keys"],
            shareable=arguments["shared_memory"] and host.size > 1,
        )
        self._protocol = Protocol(self._store, arguments["max_in_flight"])
        self._protocol.manage_replicas(**_management(arguments["replication"]))
        self._samplers = self._make_samplers(arguments["sampling"])

    def _share(self, arguments, host, host_peers):
        """The ranks that reach this one's values without messages, and it theirs."""
        places = [host.place]
        if arguments["shared_memory"]:
            places = host.share_values(self._store, host_peers, arguments["sharing_ranks"])
        return sorted(host.places.index(place) for place in places)

    def _make_samplers(self, sampling):
        """One for each worker slot; they go on from one run to the next."""
        if sampling is None:
            return [None] * self._workers
        distribution = sampling.distribution
        table = Table(distribution.low, distribution.high, distribution.weights)
        ids = range(self._first_id, self._first_id + self._workers)
        return [Sampler(sampling, table, self.seed, worker) for worker in ids]

    # What it is ------------------------------------------------------------------------------------------

    @property
    def num_keys(self):
        """Keys are 0 .. num_keys - 1."""
        return self._arguments["num_keys"]

    @property
    def dtype(self):
        """The `numpy.dtype` of all values."""
        return self._arguments["dtype"]

    @property
    def seed(self):
        """The seed of initial values and generators."""
        return self._arguments["seed"]

    @property
    def sampling(self):
        """The `Sampling` that was passed, or None."""
        return self._arguments["sampling"]

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
        return self._workers

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
        state = "closed" if self._closed else "failed" if self._comm.has_failed else "open"
        return f"<lapse.Server: {self.num_keys} keys, rank {self.rank} of {self.size}, {self._workers} workers, {state}>"

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
        with self._taking_worker_slots("run"):
            results = [None] * self._workers
            threads = [
                threading.Thread(
                    target=self._work, args=(worker_slot, results, fn, args), name=f"lapse-worker-{worker_slot}"
                )
                for worker_slot in range(self._workers)
            ]
            for thread in threads:
                thread.start()
            try:
                _join_all(threads)
            except BaseException as error:  # KeyboardInterrupt: the workers' next calls raise
                self._fail(error, None)
                _join_all(threads)
                raise
            if self._comm.has_failed:
                raise self._failure_error()
            return results

    def _work(self, worker_slot, results, fn, args):
        worker = self._new_worker(worker_slot)
        try:
            results[worker_slot] = fn(worker, *args)
            worker.wait_all()
            self._collectives.barrier(worker, "the end of run")
        except BaseException as error:
            self._fail(error, worker)
        finally:
            self._retire(worker)

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
        if self._workers != 1:
            raise ValueError(
                f"worker() is for workers=1, but this rank has {self._workers}: use run(fn)"
            )
        with self._taking_worker_slots("worker"):
            worker = self._new_worker(0)
            try:
                yield worker
                worker.wait_all()
            except BaseException as error:
                if _is_an_end(error):
                    self._fail(error, worker)
                else:
                    worker.wait_all()
                raise
            finally:
                self._retire(worker)

    def _new_worker(self, worker_slot):
        return new_worker(
            self,
            self._comm,
            self._store,
            worker_slot,
            self._first_id,
            self.num_workers,
            any_thread=False,
            sampler=self._samplers[worker_slot],
        )

    def _retire(self, worker):
        worker._retire()
        if self._comm.has_failed:
            self._retired.append(worker)  # messages may still be written to its buffers

    @contextlib.contextmanager
    def _taking_worker_slots(self, what):
        if not self._worker_slots_taken.acquire(blocking=False):
            raise RuntimeError(
                f"{what}() while this rank's workers are at work: they are in another run() or worker()"
            )
        try:
            yield
        finally:
            self._worker_slots_taken.release()

    def _setup(self, worker):
        return _Setup(self, worker)

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
            self._come_to_rest("initialize")
            self._fill(keys[self._store.is_here(keys)], init)
            self._exchange("the end of initialize")

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
            self._attempt("the arguments of save", _check_save, path, metadata)
            paths = self._exchange("the path of save", os.fspath(path), list)
            if len(set(paths)) > 1:
                raise ValueError(f"save needs the same path on all ranks, not {', '.join(sorted(set(paths)))}")
            self._come_to_rest("save")
            step = self._attempt("a new step", self._on_rank_0, checkpoint.begin_step, path)[0]
            folder = os.path.join(path, step)
            try:
                files = self._attempt("the values of save", checkpoint.write_values, folder, self._store, self.rank)
                shape = checkpoint.shape_of(self._store)
                self._attempt(
                    "the end of save", self._on_rank_0, checkpoint.commit_step, path, step, shape, files, metadata or {}
                )
            except Exception:
                if self.rank == 0:
                    checkpoint.discard_step(path, step)
                raise
            self._attempt("tidying", self._on_rank_0, checkpoint.delete_other_steps, path, step)

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
            manifest = self._attempt("the manifest of load", self._on_rank_0, checkpoint.read_manifest, path)[0]
            self._attempt("the checks of load", self._check_checkpoint, path, manifest)
            self._come_to_rest("load")
            self._attempt("the values of load", checkpoint.read_values, path, manifest, self._store)
        return manifest["metadata"]

    def _check_checkpoint(self, path, manifest):
        checkpoint.check_shape(path, manifest, checkpoint.shape_of(self._store))
        checkpoint.check_files(path, manifest, self.rank, self.size)

    def _come_to_rest(self, what):
        """Wait until nothing is under way on any rank; then who is where stays as it is until somebody moves it."""
        self._attempt(f"the start of {what}", self._check_can_rest, what)
        self._control._wait_for_rank()  # a key that is on its way would be here and there, or nowhere
        self._control.wait_replica_sync()
        self._exchange(f"rest before {what}")

    def _check_can_rest(self, what):
        """A worker that waits in a barrier for the one that calls would never rest."""
        if self._worker_slots_taken.locked() and self._workers > 1:
            raise RuntimeError(f"{what} while {self._workers} workers of a rank are at work: call it between two runs")

    def _attempt(self, what, fn, *args):
        return self._collectives.attempt(self._control, what, fn, *args)

    def _on_rank_0(self, fn, *args):
        return fn(*args) if self.rank == 0 else None

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
            owners = self._control._owner(keys)
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
        counters = self._counters()
        if all_ranks:
            with self._lock:
                counters = self._exchange("stats", counters, _sum_by_name)
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
        seconds = sum_counters(self._comm)[_WAITED] / 1e9
        if all_ranks:
            with self._lock:
                seconds = self._exchange("seconds_waited", seconds, sum)
        return seconds

    def reset_stats(self):
        """Let this rank's counters start at zero."""
        self._check_open()
        clear_counters(self._comm)
        self._zero = self._running_counters()

    def _counters(self):
        counters = dict(sum_counters(self._comm))
        del counters[_WAITED]
        running = np.subtract(self._running_counters(), self._zero).tolist()
        counters.update(zip(_TRAFFIC + _RELOCATIONS + _REPLICAS, running))
        return counters

    def _running_counters(self):
        return (
            self._comm.traffic_counters()
            + self._protocol.relocations
            + self._protocol.replica_counters
        )

    # The end ----------------------------------------------------------------------------------------------------

    def close(self):
        """Finish what is under way and stop. Collective; calling it again does nothing.

        Raises
        ------
        RemoteError
            Where another rank failed instead of closing. This server is closed all the same.
        """
        if self._closed or os.getpid() != self._process:  # a forked child must not touch MPI
            return
        try:
            if not self._comm.has_failed:
                with self._lock:
                    self._control._wait_for_rank()
                    self._control.wait_replica_sync()
                    self._exchange("close")
        except BaseException as error:  # also a KeyboardInterrupt while waiting for the others
            self._fail(error, None)
            raise
        finally:
            self._stop()

    def _stop(self):
        self._closed = True
        _open_servers.pop(self, None)
        self._comm.say_bye()
        ended = self._comm.join(LEAVING_SECONDS + 5)
        if self._comm.has_failed:
            self._note_silent_ranks()
        self._retired.clear()
        if self._control is not None:
            self._control._retire()
        self._control = None  # it refers to this server, and the values' memory is to go with the last reference
        if ended and not self._comm.has_failed and self._communicator is not None:
            self._communicator.Free()

    def _note_silent_ranks(self):
        world = MPI.COMM_WORLD.group
        _silent_ranks.update(self._comm_given.group.Translate_ranks(self._comm.silent_peers, world))

    def __enter__(self):
        if self._closed:
            raise ClosedError("the server is closed")
        return self  # one that has failed meanwhile is closed at the end of the block

    def __exit__(self, kind, error, trace):
        if (
            error is not None
            and _is_an_end(error)
            and not self._closed
            and os.getpid() == self._process
        ):
            self._fail(error, None)
        self.close()

    def _say_leaving(self):
        """The interpreter ends and nobody called close."""
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        if error is not None:
            self._fail(error, None)
        elif not self._comm.has_failed:
            self._comm.say_leaving()

    def _leave(self):
        self._wait_for_leavers()
        if not self._comm.has_failed and self.rank == 0:
            print(
                "lapse: a server was still open at the end of the program: call close(), or use it in a with block",
                file=sys.stderr,
            )
        self._comm.say_bye()

    def _wait_for_leavers(self):
        deadline = time.monotonic() + LEAVING_SECONDS
        while not self._comm.all_are_leaving and not self._comm.has_failed:
            if time.monotonic() > deadline:
                print(
                    f"lapse: rank {self.rank} ended with an open server, and other ranks work on: the job is ended",
                    file=sys.stderr,
                    flush=True,
                )
                self._comm.abort()
            time.sleep(0.002)

    # Failure ------------------------------------------------------------------------------------------------------

    def _fail(self, error, worker):
        """Tell all ranks of an exception, unless it only repeats what ended the server already."""
        if self._comm.has_failed:
            if self._own_error is None and not isinstance(error, LapseError):
                self._own_error = error
            return
        if isinstance(error, SystemExit) and worker is None:
            described = f"SystemExit: {error.code}"
        else:
            described = "".join(traceback.format_exception_only(type(error), error)).strip()
        who = f"rank {self.rank}" + (f", worker {worker.id}" if worker is not None else "")
        self._own_error = error
        self._comm.report_failure(f"{who}: {described}")

    def _failure_error(self):
        """What every call raises now."""
        if self._own_error is not None:
            return self._own_error
        leaver = self._comm.first_leaver
        if not self._comm.has_failed and leaver is not None:
            self._comm.report_failure(
                f"rank {leaver} ended its program with the server open, without close()"
            )
            return RemoteError(self._comm.failure[1])
        rank, text = self._comm.failure
        if rank == self.rank and not text.startswith("rank "):
            return CommError(f"rank {rank}: {text}")
        return RemoteError(text if text.startswith("rank ") else f"rank {rank}: {text}")

    def _check_open(self):
        if self._closed:
            raise ClosedError("the server is closed")
        self._control.check_thread()
        if self._comm.has_failed or self._comm.first_leaver is not None:
            raise self._failure_error()

    def _as_keys(self, keys):
        keys = convert_keys(keys, self.num_keys)
        for key in (keys.min(), keys.max()) if keys.size else ():
            if not 0 <= key < self.num_keys:
                raise IndexError(outside(key, self.num_keys))
        return keys

    def _exchange(self, what, value=None, combine=ignore):
        return self._collectives.exchange(self._control, what, value, combine)


class _Setup:
    """The initialisation phase; see `Worker.setup`."""

    def __init__(self, server, worker):
        self._server = server
        self._worker = worker

    def __enter__(self):
        self._switch(True, "the start of setup", "the beginning of the setup phase")

    def __exit__(self, kind, error, trace):
        if error is None:
            self._switch(False, "the end of setup", "the reset of statistics")
        else:  # it ends the run, or all workers catch it: the phase is over in any case
            self._server._protocol.enter_setup(False)

    def _switch(self, inside, what, then):
        """Deliver what was pushed before, meet, let one worker of the rank switch, meet again."""
        server, worker = self._server, self._worker
        worker.wait_all()
        worker.wait_replica_sync()
        server._collectives.barrier(worker, what)
        if worker.id == sum(server._worker_counts[: server.rank]):
            server._protocol.enter_setup(inside)
            if not inside:
                server.reset_stats()
        server._collectives.barrier(worker, then)


def _management(replication):
    """The choice of a user in the words of the protocol."""
    rate = replication.syncs_per_second
    return dict(
        interval=1 / rate if rate else 0.0,
        max_pending=replication.max_pending or 0,
        threshold=replication.threshold,
        average=replication.average,
        clip=replication.clip,
    )


def _check_save(path, metadata):
    pathlib.Path(path)  # a TypeError for what is no path
    if not isinstance(metadata, (dict, type(None))):
        raise TypeError(f"metadata must be a dict that fits into JSON, not {type(metadata).__name__}")


def _sum_by_name(dictionaries):
    return {name: sum(counters[name] for counters in dictionaries) for name in dictionaries[0]}


def _is_an_end(error):
    """Whether an exception ends the job; `sys.exit(0)` does not."""
    return not (isinstance(error, SystemExit) and error.code in (0, None))


def _join_all(threads):
    for thread in threads:
        while thread.is_alive():
            thread.join(0.05)  # in steps, so that Ctrl-C is seen


os.register_at_fork(after_in_child=_open_servers.clear)


@atexit.register
def _leave_open_servers():
    """One step for all servers before the next: other ranks may have opened them in another order."""
    servers = list(_open_servers)
    for step in (Server._say_leaving, Server._leave, Server._stop):
        for server in servers:
            step(server)
    if _silent_ranks:
        _end_job()


def _end_job():
    ranks = ", ".join(map(str, sorted(_silent_ranks)))
    print(f"lapse: no answer from rank {ranks} for {LEAVING_SECONDS} s after a failure: the job is ended", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0.3)  # until the launcher has read that
    MPI.COMM_WORLD.Abort(1)
