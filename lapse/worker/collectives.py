"""Floor 4. Calls in which all workers of all ranks, or all ranks, take part.

First the workers of a rank meet; the last one to arrive continues for all of them and exchanges data with the other
ranks by the server's own messages, never by MPI collectives, so that a rank which has failed or is in another call is
an error instead of a hang. Every call has a name that is sent along, so that workers in different calls are detected.
"""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lapse.base.error_text import text_of, with_type
from lapse.base.uncaught import note_known
from lapse.communication._mail import MAX_LETTER_BYTES
from lapse.errors import LapseError
from lapse.worker._operation import Operation, finish_rendezvous, open_rendezvous
from lapse.worker._waiter import Waiter, name_call, receive, send_queued

if TYPE_CHECKING:
    from lapse._comm import Comm

#: Arrays of more elements for each rank are not combined by rank 0: every rank combines a part of them.
PART_LENGTH = 4096

_OPERATORS = {"sum": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum}


class _Rendezvous:
    """One collective call of the workers of this rank."""

    def __init__(self, what: str):
        self.what = what
        self.values: dict[int, Any] = {}  # by worker id
        self.waiting: list[Operation] = []  # operations of the workers that arrived before the last one
        self.result: Any = None
        self.error: Exception | None = None

    def outcome(self) -> Any:
        """What `meet` returns or raises."""
        if self.error is not None:
            raise self.error
        return self.result


class Collectives:
    """The collective calls of one rank.

    Parameters
    ----------
    comm : lapse._comm.Comm
    rank, size : int
    workers : int
        Of this rank.
    """

    def __init__(self, comm: Comm, rank: int, size: int, workers: int):
        self._comm = comm
        self._rank = rank
        self._size = size
        self._workers = workers
        self._lock = threading.Lock()
        self._rendezvous: _Rendezvous | None = None

    def meet(self, worker: Waiter, what: str, value: Any, combine: Callable[[list[Any]], Any]) -> Any:
        """Wait for all workers of all ranks in the call named `what`; combine what each gives.

        `combine` takes a list of values, first those of a rank's workers by id, then those of all
        ranks by rank, and is called by one of them. An exception that it raises is raised by all workers.
        """
        return self._meet(worker, what, value, lambda values: self.exchange(worker, what, values, combine, combine))

    def _meet(self, worker: Waiter, what: str, value: Any, go_on: Callable[[list[Any]], Any]) -> Any:
        """Wait for the workers of this rank; the last one goes on for all of them, with their values by id."""
        name_call(worker, what)
        with self._lock:
            rendezvous = self._join(worker, what, value)
            is_last = len(rendezvous.values) == self._workers
            if is_last:
                self._rendezvous = None
            else:
                operation = open_rendezvous(worker)
                rendezvous.waiting.append(operation)
        if not is_last:
            operation.wait()
            return rendezvous.outcome()
        values = [rendezvous.values[id] for id in sorted(rendezvous.values)]
        try:
            rendezvous.result = go_on(values)
        except Exception as error:
            if self._comm.failure.has_failed:  # which all of them raise
                raise
            rendezvous.error = error
        for operation in rendezvous.waiting:
            finish_rendezvous(operation)
        return rendezvous.outcome()

    def _join(self, worker: Waiter, what: str, value: Any) -> _Rendezvous:
        if self._rendezvous is None:
            self._rendezvous = _Rendezvous(what)
        rendezvous = self._rendezvous
        if rendezvous.what != what:
            others = ", ".join(map(str, sorted(rendezvous.values)))
            raise self._mismatch(
                worker,
                f"worker {worker.id} is at {what}, but on the same rank worker {others} waits in {rendezvous.what}",
            )
        rendezvous.values[worker.id] = value
        return rendezvous

    def exchange(
        self,
        worker: Waiter,
        what: str,
        value: Any,
        combine: Callable[[list[Any]], Any],
        prepare: Callable[[Any], Any] | None = None,
    ) -> Any:
        """As `meet`, for one caller on each rank, whose value is first changed by `prepare`.

        Whatever fails on a rank (to prepare, to combine, to send the value) is raised on all of them, so that none
        waits for one that does not come.
        """
        if self._size > 1:
            name_call(worker, what)
        own, own_error = _attempt(lambda: value if prepare is None else prepare(value))
        if self._rank != 0:
            self._post(worker, [0], what, own, own_error)
            result, error = self._letter_of(worker, 0, what)
        else:
            letters = [self._letter_of(worker, rank, what) for rank in range(1, self._size)]
            result, error = _combined([(own, own_error), *letters], combine)
            if self._size > 1:
                self._post(worker, range(1, self._size), what, result, error)
        if own_error is not None:
            note_known(own_error, self._rank)
            raise own_error
        if error is not None:
            raise note_rank(error, 0)
        return result

    def _post(self, worker: Waiter, ranks: Iterable[int], what: str, value: Any, error: Exception | None) -> None:
        """Send a value or an error; an error as well if the value cannot be sent."""
        data, problem = _attempt(lambda: pickle.dumps((what, value, _portable(error))))
        if problem is None and len(data) > MAX_LETTER_BYTES:
            problem = _too_large(what, len(data))
        if problem is not None:
            data = pickle.dumps((what, None, _portable(problem)))
        for rank in ranks:
            self._comm.mail.post(rank, data)
        send_queued(worker)
        if problem is not None and self._rank == 0:
            raise problem

    def attempt(self, worker: Waiter, what: str, fn: Callable[..., Any], *args: Any) -> list[Any]:
        """Call `fn` on every rank, one caller on each; what fails on any rank fails on all of them.

        Returns
        -------
        list
            The results by rank.

        Raises
        ------
        Exception
            The one of the first rank that had one, by its kind and text.
        """
        result, own_error = _attempt(lambda: fn(*args))
        outcomes = self.exchange(worker, what, (result, _portable(own_error)), list)
        for rank, (_, error) in enumerate(outcomes):
            if error is not None:
                if rank == self._rank and own_error is not None:
                    note_known(own_error, rank)
                    raise own_error
                raise note_rank(error, rank)
        return [result for result, _ in outcomes]

    def _letter_of(self, worker: Waiter, rank: int, what: str) -> tuple[Any, Exception | None]:
        """The value or error that a rank has posted."""
        data = receive(worker, rank)
        letter, problem = _attempt(lambda: pickle.loads(data))
        if problem is not None:  # such as a class that only the other rank has
            text = text_of(problem, with_type)
            return None, LapseError(f"rank {self._rank} cannot read what rank {rank} sent: {text}")
        there, value, error = letter
        if there != what:
            raise self._mismatch(worker, f"rank {self._rank} is at {what}, but rank {rank} is at {there}")
        return value, error

    def _mismatch(self, worker: Waiter, text: str) -> LapseError:
        """The workers in the other call can never continue, so the server fails on all ranks."""
        error = LapseError(f"{text}: all workers of all ranks must make the same collective calls")
        self._comm.failure.report(error, worker.id if worker.id >= 0 else None)
        return error

    def barrier(self, worker: Waiter, what: str = "barrier") -> None:
        """Wait for all workers of all ranks."""
        self.meet(worker, what, None, ignore)

    def allreduce(self, worker: Waiter, x: Any, op: str) -> Any:
        """Combine numbers or arrays of all workers; see `Worker.allreduce`."""
        if op not in _OPERATORS:
            raise ValueError(f"op is {op!r}, but must be one of {', '.join(map(repr, _OPERATORS))}")
        array = np.asarray(x)
        if array.dtype == bool and op in ("sum", "prod"):
            array = array.astype(np.int64)  # counts, as numpy.sum does
        what = f"allreduce(op={op!r})"
        if self._size > 1 and array.size >= PART_LENGTH * self._size and array.dtype.kind in "biufc":
            what = f"allreduce(op={op!r}) of a large array"
            result = self._meet(worker, what, array, lambda values: self._reduce_in_parts(worker, what, values, op))
        else:
            result = self.meet(worker, what, array, functools.partial(_reduce, op))
        if np.ndim(x) == 0 and not isinstance(x, np.ndarray):
            return result.item() if type(x) in (bool, int, float, complex) else result[()]
        return result.copy()

    def _reduce_in_parts(self, worker: Waiter, what: str, arrays: list[np.ndarray], op: str) -> np.ndarray:
        """Combine large arrays of all ranks: each rank a part, which it sends to all others.

        So each rank sends and receives about two arrays, however many ranks there are. (Thakur, Rabenseifner and Gropp,
        *Optimization of Collective Communication Operations in MPICH*, IJHPCA 19(1), 2005: reduce-scatter, then
        allgather; here each by direct messages.) Elements are combined in the order of ranks.
        """
        own, error = _attempt(lambda: _check_size(what, _reduce(op, arrays)))
        parts = [None] * self._size if own is None else np.array_split(own.reshape(-1), self._size)
        others = [rank for rank in range(self._size) if rank != self._rank]
        name_call(worker, what)
        shape = None if own is None else own.shape
        for rank in others:
            self._post(worker, [rank], what, (shape, parts[rank]), error)
        given = {rank: self._letter_of(worker, rank, what) for rank in others}
        given[self._rank] = ((shape, parts[self._rank]), error)
        part, error = _combined([given[rank] for rank in range(self._size)], functools.partial(_reduce_parts, op))
        self._post(worker, others, what, part, error)
        letters = {rank: self._letter_of(worker, rank, what) for rank in others}
        letters[self._rank] = (part, error)
        combined, error = _combined([letters[rank] for rank in range(self._size)], np.concatenate)
        if error is not None:
            raise error
        return combined.reshape(shape)


def _attempt(fn: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What a function returns, or the exception that it raises."""
    try:
        return fn(), None
    except Exception as error:
        return None, error


def _combined(
    letters: list[tuple[Any, Exception | None]], combine: Callable[[list[Any]], Any]
) -> tuple[Any, Exception | None]:
    """What `combine` makes of the values by rank, or the first error among them, or its own."""
    for rank, (_, error) in enumerate(letters):
        if error is not None:
            return None, note_rank(error, rank)
    return _attempt(lambda: combine([value for value, _ in letters]))


def note_rank(error: Exception, rank: int) -> Exception:
    """Let the traceback of an exception, which all ranks raise, name the rank where it began."""
    note_known(error, rank)
    origin = f"(on rank {rank})"
    if hasattr(error, "add_note") and origin not in getattr(error, "__notes__", ()):  # from Python 3.11 on
        error.add_note(origin)
    return error


def _reduce(op: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"allreduce of different shapes: {', '.join(map(str, sorted(shapes)))}")
    return np.asarray(functools.reduce(_OPERATORS[op], arrays))


def _check_size(what: str, array: np.ndarray) -> np.ndarray:
    if array.nbytes > MAX_LETTER_BYTES:
        raise _too_large(what, array.nbytes)
    return array


def _too_large(what: str, size: int) -> ValueError:
    return ValueError(f"{what} exchanges {size} bytes, but at most {MAX_LETTER_BYTES} are possible: divide the array")


def _reduce_parts(op: str, given: Sequence[tuple[tuple[int, ...], np.ndarray]]) -> np.ndarray:
    shapes = {shape for shape, _ in given}
    if len(shapes) > 1:
        raise ValueError(f"allreduce of different shapes: {', '.join(map(str, sorted(shapes)))}")
    return np.asarray(functools.reduce(_OPERATORS[op], [part for _, part in given]))


def _portable(error: Exception | None) -> Exception | None:
    """An exception that survives a journey to another rank; others become a `LapseError` with their text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return LapseError(text_of(error, with_type)) if error is not None else None
    return error


def ignore(values: list[Any]) -> None:
    """Combine nothing: for calls that only wait."""
    return
