"""Floor 5. `Server`: what a user may ask of a parameter server as a whole.

All ranks create it together. Whatever makes it fail (an exception in a worker, a rank that leaves, an error of MPI)
is reported to all ranks, and every later call raises it.
"""

from __future__ import annotations  # help shows ArrayLike, not what it stands for

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from lapse import _mpi_loader
from lapse.communication._guard import waiting
from lapse.errors import ClosedError
from lapse.options.initializers import Initializer, as_initializer
from lapse.options.optimizers import Optimizer
from lapse.options.replication import Replication
from lapse.options.sampling import Sampling
from lapse.options.tables import Tables
from lapse.server import initialization, save_load
from lapse.server.arguments import agree
from lapse.server.assembly import assemble, start
from lapse.server.checkpoint import StrPath
from lapse.server.description import Description
from lapse.server.rank_calls import RankCalls
from lapse.server.shutdown import Shutdown, start_guard
from lapse.server.workers import Workers, is_failure
from lapse.worker._worker import Worker
from mpi4py import MPI


class Server(Description):
    """The part of a parameter server that runs on this rank. Created by all ranks together.

    Parameters
    ----------
    num_keys : int or Tables
        Keys are the integers 0 .. num_keys - 1; at most 2**32 - 2. Tables say how many, how long the values are, what
        they begin with, and what optimizers they have.
    value_lengths : int or array_like of int
        Elements per value: one number for all keys, or one for each key, shape (num_keys,). Not with tables.
    dtype : {"float32", "float64"}
        Of all values.
    workers : int
        Worker threads of this rank; may differ from rank to rank.
    replicated_keys : array_like of int, optional
        Keys of which every host holds a replica, in memory that its ranks share (a rank that shares memory with no
        other counts as a host): they are pulled and pushed locally, and the replicas are synchronized in the
        background. Meant for the few keys that all ranks use all the time; `choose_hot_spots` finds them. All other
        keys are relocated on request.
    replication : Replication, optional
        How replicas are synchronized; by default 5 times a second.
    sampling : Sampling, optional
        How `Worker.prepare_sample` and `Worker.pull_sample` draw keys; without it they raise.
    optimizer : lapse.optim.Optimizer, optional
        What `Worker.apply_gradients` does with gradients; without it they can only be pushed, which adds. Not with
        tables, which have their own.
    shared_memory : bool, optional
        Whether ranks of one host reach each other's values directly, without messages: what one of them owns is local
        to all. By default the environment variable LAPSE_SHARED_MEMORY (0 or 1) decides, and without it True. If the
        variable is 0, it is off in any case. Ranks of other hosts always send messages.
    threads_per_call : int
        Threads of this rank that share the work of one large call: the one that makes it, and helpers that sleep
        meanwhile. For ranks with more cores than workers; may differ from rank to rank. The changes of one call to a
        key that it has several times then take effect in any order.
    max_in_flight : int
        Bytes of this rank's own unanswered operations per destination above which calls block. A key counts with its
        value and 192 bytes, which is what it costs when each call has one key.
    comm : mpi4py.MPI.Intracomm, optional
        The ranks; by default MPI.COMM_WORLD. It is duplicated, so that messages cannot be mixed up with the caller's.
    seed : int
        Of initial values and of the workers' generators.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type or is out of range. A ValueError that names rank and argument when an
        argument of another rank is bad, or the ranks' arguments differ.
    MemoryError
        When the directory or the address range for the values cannot be allocated.
    CommError
        When MPI does not grant MPI_THREAD_MULTIPLE.
    RuntimeError
        When another launcher than MPI's own has started the ranks; in a forked child.

    Notes
    -----
    Values start at zero, those of tables with what their `init` says. Keys move between ranks as in Renz-Wieland et
    al., *Dynamic Parameter Allocation in Parameter Servers*, PVLDB 13(12), 2020. The value of a replicated key that a
    worker reads includes all updates of its own host, and those of other hosts up to the last synchronization; of
    gradients, those of all hosts up to then.

    Examples
    --------
    >>> with lapse.Server(num_keys=10, value_lengths=3) as server:     # doctest: +SKIP
    ...     with server.worker() as kv:
    ...         kv.push([1, 5], np.ones((2, 3), "f4")).wait()
    ...         values = kv.pull([1, 5]).wait()
    """

    def __init__(
        self,
        num_keys: int | Tables,
        value_lengths: ArrayLike | None = None,
        dtype: DTypeLike = "float32",
        workers: int = 1,
        replicated_keys: ArrayLike | None = None,
        replication: Replication | None = None,
        sampling: Sampling | None = None,
        *,
        optimizer: Optimizer | None = None,
        shared_memory: bool | None = None,
        threads_per_call: int = 1,
        max_in_flight: int = 64 << 20,
        comm: MPI.Intracomm | None = None,
        seed: int = 0,
    ) -> None:
        _mpi_loader.check_process()
        comm = MPI.COMM_WORLD if comm is None else comm
        if comm == MPI.COMM_WORLD:
            _mpi_loader.check_launcher(comm.size)
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm must be an mpi4py intracommunicator, not {type(comm).__name__}")
        given = {
            "num_keys": num_keys,
            "value_lengths": value_lengths,
            "dtype": dtype,
            "workers": workers,
            "replicated_keys": replicated_keys,
            "replication": replication,
            "sampling": sampling,
            "optimizer": optimizer,
            "shared_memory": shared_memory,
            "threads_per_call": threads_per_call,
            "max_in_flight": max_in_flight,
            "seed": seed,
        }
        start_guard()
        with waiting("the creation of a Server"):
            arguments, worker_counts = agree(comm, given)
            parts = assemble(comm, arguments, worker_counts)
        self._comm_given, self._sampling, self._tables = comm, arguments.sampling, arguments.tables
        self._optimizers = arguments.optimizers
        self._group, self._sharing = parts.group, parts.sharing
        self._store, self._failure = parts.group.store, parts.group.comm.failure
        self._lock = threading.Lock()  # one call of the server's own at a time
        self._workers = Workers(parts.group, parts.samplers)
        self._calls = RankCalls(self._workers.new_control(), parts.group.collectives, self._workers, comm)
        with waiting("the creation of a Server"):
            start(comm, parts)
        self._shutdown = Shutdown(parts.group.comm, parts.communicator, comm, self._calls)
        if self._tables is not None:
            with self._closing_after_an_error():
                self.initialize()

    def __repr__(self) -> str:
        state = "closed" if self._shutdown.is_done else "failed" if self._failure.has_failed else "open"
        return f"<lapse.Server: {self.num_keys} keys, rank {self.rank} of {self.size}, {self.workers} workers, {state}>"

    # Workers ------------------------------------------------------------------------------------

    def run(self, fn: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `fn(worker, *args)` in every worker thread of every rank. Collective.

        Returns when every worker of every rank has returned and all operations have taken effect.

        Parameters
        ----------
        fn : callable
        *args
            Passed to `fn`; the threads share these objects.

        Returns
        -------
        list
            What `fn` returned in this rank's workers, in worker order.

        Raises
        ------
        BaseException
            The exception of a worker of this rank.
        TypeError
            When `fn` is none, or has `yield` or `async`, so that a call would not carry it out.
        RemoteError
            When a worker of another rank raised an exception: names rank, worker and message, and has the attributes
            `rank` and `worker`. The server has then failed: every later call but `close` raises the same.
        """
        self._check_open()
        return self._workers.run(fn, args)

    @contextlib.contextmanager
    def worker(self) -> Iterator[Worker]:
        """A context manager that gives one `Worker` to the calling thread, for scripts with `workers=1`.

        At the end of the block all operations of the worker have taken effect. An exception inside is reported to
        all ranks, as in `run`.

        Raises
        ------
        ValueError
            When this rank has more than one worker: use `run`.
        """
        self._check_open()
        if self.workers != 1:
            raise ValueError(f"worker() is for workers=1, but this rank has {self.workers}: use run(fn)")
        with self._workers.lend() as worker:
            yield worker

    # Values ----------------------------------------------------------------------------------------------

    def initialize(
        self,
        keys: ArrayLike | None = None,
        init: Initializer | Callable[[np.ndarray, np.random.Generator], Any] | None = None,
    ) -> None:
        """Set initial values without messages: every rank fills the keys that it holds. Collective.

        Parameters
        ----------
        keys : array_like of int, optional
            The same on all ranks. Without keys and `init`, all tables begin as their `init` says.
        init : Normal, UniformValues, Constant, Columns, Vectorized, FromFile or callable, optional
            `Vectorized` calls a function for many keys at once, `Columns` gives columns different beginnings, and
            `FromFile` takes given vectors. A plain function is called as `fn(keys, rng)` for one key at a time, `keys`
            of shape (1,), with a `numpy.random.Generator` of that key's own, and returns the elements of the value:
            some 20 microseconds for each. Values depend on (seed, key) only, not on the number of ranks; the states of
            optimizers begin anew.

        Raises
        ------
        IndexError
            When a key is outside the range.
        TypeError
            When keys are not integers, or `init` is none of the above.
        ValueError
            When a function returns the wrong number of elements, or ranks pass different keys or initializers. As the
            other errors, it is raised on every rank.
        """
        self._check_open()

        def check() -> tuple[np.ndarray, Initializer]:
            if keys is None:
                raise TypeError("give both keys and init, or, for a server with tables, neither")
            return initialization.distinct(self._as_keys(keys)), as_initializer(init)

        with self._lock:
            if keys is None and init is None and self._tables is not None:
                initialization.initialize_tables(self._calls, self._store, self._tables, self.seed)
                self._group.steps.adopt({})
            else:
                initialization.initialize(self._calls, self._store, check, self.seed)

    def save(self, path: StrPath, metadata: dict[str, Any] | None = None, *, state: bool = True) -> None:
        """Write all values into a folder, every rank those that it owns. Collective.

        The values are those after all operations that were issued before the call. The server must not be used
        during the call: make it between two runs, or from `run` or `worker` if every rank has one worker. A save that
        fails or is killed leaves the checkpoint before it as it was; a save that succeeds deletes it. Files in the
        folder that were not written by Lapse are never deleted.

        Parameters
        ----------
        path : path-like
            The same on all ranks, on a file system that all of them see. The folder is created if it is missing, its
            parent is not.
        metadata : dict, optional
            Anything that can be written as JSON, and NumPy arrays; `load` returns it. That of rank 0 is saved.
        state : bool
            Whether the states of optimizers are saved. Without them a checkpoint can be loaded into a server with any
            optimizer, or none.

        The random streams of the workers (`Worker.rng`, and what samples are drawn from) are saved as well.

        Raises
        ------
        OSError, CheckpointError, ValueError, TypeError
            On every rank, when something cannot be written on one; the server can be used as before. What is wrong
            with the arguments is found first, and leaves nothing behind.

        Notes
        -----
        The format is described in `lapse.server.checkpoint`; the `safetensors` package reads the files.
        """
        self._check_open()
        with self._lock:
            save_load.save(self._calls, self._saved(), path, metadata, state)

    def load(self, path: StrPath) -> dict[str, Any]:
        """Read what `save` wrote, with any number of ranks; values go to where their keys are now. Collective.

        Every value of the server is replaced, by zeros if the checkpoint has none, and so is the state of its
        optimizer. If the checkpoint has no states (`save(state=False)`, or another server without optimizers), they
        begin anew. Tables may have more rows than in the checkpoint, and there may be new ones: what the checkpoint
        does not have begins as the table's `init` says, and rows keep their numbers. The random streams of the workers
        go on from where they were, if there are as many workers as then; else they begin anew, unlike those before.

        Parameters
        ----------
        path : path-like
            As it was passed to `save`.

        Returns
        -------
        dict
            The metadata that was passed to `save`.

        Raises
        ------
        FileNotFoundError
            On every rank, when there is no complete checkpoint.
        CheckpointError
            On every rank, when the checkpoint is damaged, of a server with other keys, lengths, dtype or tables, or has
            states of other optimizers; the
            values are then as they were before. (After an OSError of a disk that fails while values are read, some
            values may be replaced and others not.)
        """
        self._check_open()
        with self._lock:
            return save_load.load(self._calls, self._saved(), path)

    def _saved(self) -> save_load.Saved:
        return save_load.Saved(
            self._store, self._group.streams, self._group.steps, self._tables, self._optimizers, self.seed
        )

    def owner(self, keys: ArrayLike) -> int | np.ndarray:
        """The rank that owns each key now, as its home knows it. Not collective.

        Parameters
        ----------
        keys : int or array_like of int

        Returns
        -------
        int or numpy.ndarray of int64
            Of the shape of `keys`. A key that is being relocated belongs to the rank that it is sent to; a replicated
            key to its home.

        Raises
        ------
        IndexError, TypeError
            As in `Worker.pull`.
        """
        self._check_open()
        with self._lock:
            owners = self._calls.owner(keys)
        return int(owners) if owners.ndim == 0 else owners

    def local_keys(self) -> np.ndarray:
        """The keys that this rank owns at this moment: a sorted int64 array."""
        self._check_open()
        return self._store.local_keys()

    # Counters ------------------------------------------------------------------------------------------------

    def stats(self, all_ranks: bool = False) -> dict[str, int]:
        """What this rank has counted since the last reset.

        Parameters
        ----------
        all_ranks : bool
            Whether to sum over all ranks; the call is collective then.

        Returns
        -------
        dict of str to int
            =======================  =================================================================================
            name                     what is counted
            =======================  =================================================================================
            pulled_keys              key positions in pulls
            pulled_local             of these, those answered without leaving the rank, shared ones among them
            pulled_shared            of these, keys of another rank of this host, reached through shared memory
            pulled_in_transit        key positions in pulls that waited for an arriving key; not in `pulled_local`
            pushed_keys              key positions in pushes and sets
            pushed_local             as `pulled_local`
            pushed_shared            as `pulled_shared`
            pushed_in_transit        as `pulled_in_transit`
            localize_keys            key positions in localizes
            localize_local           of these, those that were local already
            relocations_in           keys that this rank has got from another rank
            relocations_out          keys that this rank has given to another rank
            relocations_passed_on    of these, keys that were given away as soon as they arrived
            replica_syncs            rounds in which this rank sent changes of replicas; of those that share memory only
                                     the first one does, for all of them
            replica_keys_sent        values sent in these rounds: changes to homes, and sums to the other hosts
            messages_sent            MPI messages, each with many operations
            bytes_sent               bytes in these
            messages_received        MPI messages
            bytes_received           bytes in these
            sampled_keys             keys that were drawn and pulled; they count in no other row
            sampled_local            of these, those answered without leaving the rank
            =======================  =================================================================================

            Key positions that were neither local nor in transit were remote.
        """
        self._check_open()
        counters = self._group.counters.read()
        return self._sum_over_ranks("stats", counters) if all_ranks else counters

    def seconds_waited(self, all_ranks: bool = False) -> float:
        """The total time that workers have spent waiting for operations and replication since the last reset.

        Waiting in barriers does not count.

        Parameters
        ----------
        all_ranks : bool
            Whether to sum over all ranks; the call is collective then.

        Returns
        -------
        float
        """
        times = self.waiting_times(all_ranks)
        return times["values"] + times["rounds"]

    def waiting_times(self, all_ranks: bool = False) -> dict[str, float]:
        """The seconds that workers have spent waiting since the last reset, by what they waited for.

        Parameters
        ----------
        all_ranks : bool
            Whether to sum over all ranks; the call is collective then.

        Returns
        -------
        dict of str to float
            "values": for operations; "rounds": for rounds of replication, at the bound of `Replication`'s pace or in
            `wait_replica_sync`; "meetings": for other workers, in barriers and other collective calls.
        """
        self._check_open()
        times = self._group.counters.waiting_times()
        return self._sum_over_ranks("waiting_times", times) if all_ranks else times

    def bytes_sent_to(self) -> np.ndarray:
        """The bytes of MPI messages that this rank has sent to each rank since the last reset. Not collective.

        Returns
        -------
        numpy.ndarray of int64
            Of shape (ranks,). Their sum is ``bytes_sent`` of `stats`; 0 for this rank itself, and for what was read and
            written in shared memory.
        """
        self._check_open()
        return self._group.counters.bytes_sent_to()

    def _sum_over_ranks(self, call: str, mine: dict) -> dict:
        """Add what this rank has counted to that of the others. Collective."""
        with self._lock:
            return self._calls.exchange(call, mine, _sum_by_name)

    def reset_stats(self) -> None:
        """Set this rank's counters to zero."""
        self._check_open()
        self._group.counters.reset()

    # The end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Finish all operations and stop. Collective; calling it again does nothing.

        Raises
        ------
        RemoteError
            When another rank failed instead of closing. This server is closed all the same.
        """
        if self._shutdown.is_done or self._shutdown.is_in_child:
            return
        try:
            if not self._failure.has_failed:
                with self._lock:
                    self._calls.close()
        except BaseException as error:  # also a KeyboardInterrupt while waiting for the others
            self._failure.report(error)
            raise
        finally:
            self._shutdown.stop()

    def __enter__(self) -> Server:
        if self._shutdown.is_done:
            raise ClosedError("the server is closed")
        return self  # one that has failed meanwhile is closed at the end of the block

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and is_failure(error) and not self._shutdown.is_done and not self._shutdown.is_in_child:
            self._failure.report(error)
        self.close()

    @contextlib.contextmanager
    def _closing_after_an_error(self) -> Iterator[None]:
        """A constructor that raises, on every rank, leaves nothing behind."""
        try:
            yield
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def _check_open(self) -> None:
        if self._shutdown.is_done:
            raise ClosedError("the server is closed")
        self._calls.check_thread()
        self._failure.raise_if_set()


def _sum_by_name(dictionaries: list[dict]) -> dict:
    return {name: sum(counters[name] for counters in dictionaries) for name in dictionaries[0]}
