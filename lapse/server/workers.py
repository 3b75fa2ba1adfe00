"""Floor 5. The workers of this rank: their slots, and the threads of a run."""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lapse.base.checks import brief
from lapse.sampling._sampler import Sampler
from lapse.worker._waiter import warn_of_dropped
from lapse.worker._worker import Worker, new_worker, retire
from lapse.worker.group import WorkerGroup


class Workers:
    """The workers of one rank. At any time they are in one run, lent to one caller, or idle.

    Parameters
    ----------
    group : WorkerGroup
        What they have in common.
    samplers : list of Sampler or None
        One for each worker slot.
    """

    def __init__(self, group: WorkerGroup, samplers: list[Sampler | None]) -> None:
        self._group = group
        self._failure = group.comm.failure
        self.samplers = samplers
        self._slots_taken = threading.Lock()
        self._retired: list[Worker] = []  # those whose operations a failure left unfinished

    def __len__(self) -> int:
        return len(self.samplers)

    def run(self, fn: Callable[..., Any], args: tuple) -> list[Any]:
        """Call `fn(worker, *args)` in one thread for each worker and return the results; see `Server.run`."""
        with self._taking_slots("run"), self._helping():
            results: list[Any] = [None] * len(self)
            threads = [
                threading.Thread(target=self._work, args=(slot, results, fn, args), name=f"lapse-worker-{slot}")
                for slot in range(len(self))
            ]
            try:
                for thread in threads:
                    thread.start()  # raises a RuntimeError where the system allows no more threads
                _join_all(threads)
            except BaseException as error:  # also a KeyboardInterrupt: the workers' next calls raise
                self._failure.report(error)
                _join_all(threads)
                raise
            if self._failure.has_failed:
                raise self._failure.error()
            return results

    def _work(self, slot: int, results: list[Any], fn: Callable[..., Any], args: tuple) -> None:
        worker = None
        try:
            worker = self._new_worker(slot)
            results[slot] = _called(fn, worker, args)
            warn_of_dropped(worker)
            worker.wait_all()
            self._group.collectives.barrier(worker, "the end of run")
        except BaseException as error:
            self._failure.report(error, self._group.first_id + slot)
        finally:
            if worker is not None:
                self._retire(worker)

    @contextlib.contextmanager
    def lend(self) -> Iterator[Worker]:
        """Give the only worker of this rank to the calling thread; see `Server.worker`."""
        with self._taking_slots("worker"), self._helping():
            worker = self._new_worker(0)
            try:
                yield worker
                warn_of_dropped(worker)
                worker.wait_all()
            except BaseException as error:
                if is_failure(error):
                    self._failure.report(error, worker.id)
                else:
                    worker.wait_all()
                raise
            finally:
                self._retire(worker)

    def new_control(self) -> Worker:
        """The server's own worker, on the last worker slot."""
        return new_worker(self._group, len(self), any_thread=True)

    def _new_worker(self, slot: int) -> Worker:
        return new_worker(self._group, slot, sampler=self.samplers[slot])

    def _retire(self, worker: Worker) -> None:
        retire(worker)
        if self._failure.has_failed:
            self._retired.append(worker)  # messages may still be written to its buffers

    @contextlib.contextmanager
    def _taking_slots(self, what: str) -> Iterator[None]:
        if not self._slots_taken.acquire(blocking=False):
            raise RuntimeError(f"{what}() while this rank's workers are at work in another run() or worker()")
        try:
            yield
        finally:
            self._slots_taken.release()

    @contextlib.contextmanager
    def _helping(self) -> Iterator[None]:
        """Threads that share large calls run inside the block."""
        try:
            self._group.threads.start()
        except RuntimeError as error:
            self._failure.report(error)
            raise
        try:
            yield
        finally:
            self._group.threads.stop()

    def check_can_rest(self, what: str) -> None:
        """Raise when a worker might wait in a barrier for the one that calls: it would never come to rest."""
        if self._slots_taken.locked() and len(self) > 1:
            raise RuntimeError(f"{what} while {len(self)} workers of a rank are at work: call it between two runs")

    def release(self) -> None:
        """Let go of buffers that messages could have been written to before its end."""
        self._retired.clear()


def is_failure(error: BaseException) -> bool:
    """Whether an exception that leaves a with block ends the server on all ranks; that of `sys.exit(0)` does not."""
    return not (isinstance(error, SystemExit) and error.code in (0, None))


def _join_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        while thread.is_alive():  # which one that was not started is not
            thread.join(0.05)  # in steps, so that Ctrl-C is seen


def _called(fn: Callable[..., Any], worker: Worker, args: tuple) -> Any:
    if not callable(fn):
        raise TypeError(f"run needs a function, which it calls as fn(worker, *args), not {brief(fn)}")
    result = fn(worker, *args)
    if inspect.isgeneratorfunction(fn) or inspect.iscoroutinefunction(fn):
        result.close()  # else Python warns of a coroutine
        raise TypeError(
            f"{brief(fn)} has not been carried out: it gives a {type(result).__name__}, which only iterating or "
            "awaiting would do; give run a plain function, without yield and async"
        )
    return result
