"""Floor 0. What an uncaught exception of one rank does to its job: it ends on all ranks, and is reported once.

Without this the other ranks would wait for ever: MPI_Finalize, which the interpreter calls at its end, waits for them,
and MPICH's launcher does not notice a process that ends before it has initialized MPI. `python -m mpi4py` does the
same, for those who ask for it.

An exception that the other ranks know of (they have been told, or have raised it together with this rank) does not end
them at once: they print a line and end by themselves, or are ended after a while. So is a rank that leaves without an
exception that is printed, but with a status that says that it has failed, as by `sys.exit(3)`.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import os
import stat
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from lapse.base import slurm

ABORT_DELAY = 0.3  # seconds until the launcher has read the last lines of stderr; what it has not, an abort discards
GRACE_SECONDS = 10  # for the other ranks to end
LITTLE_MEMORY = 64  # MB, of a limited address space: what an MPI or a thread asks for at once is less
MAX_LINE = 300  # characters of another rank's error

_ORIGIN = "_lapse_origin"  # attribute of an exception that all ranks know: the rank that reports it

Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


class _Ending:
    """The end of this process by an uncaught exception."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.before: Hook = sys.excepthook
        self.error: BaseException | None = None

    def report(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Print an exception, as `sys.excepthook`: in one piece, or one line if another rank reports it."""
        if os.getpid() == self.process:
            self.error = error
        origin = getattr(error, _ORIGIN, None)
        if origin is not None and origin != _rank():
            _print(f"lapse: rank {_rank()} ends: {_one_line(error)}\n")
        elif self.before is not sys.__excepthook__:
            self.before(kind, error, trace)
        else:
            _print_whole(kind, error, trace)

    def end_job(self) -> None:
        """At the exit of the interpreter, after the servers."""
        if self.error is None or os.getpid() != self.process:
            return
        MPI: Any = sys.modules.get("mpi4py.MPI")
        if MPI is None or not MPI.Is_initialized():
            _print(f"lapse: rank {_rank()} ends the job by this exception\n")
            _abort_by_launcher()
        elif MPI.Is_finalized() or MPI.COMM_WORLD.size == 1:
            return
        elif getattr(self.error, _ORIGIN, None) is None:
            _print(f"lapse: rank {_rank()} ends the job by this exception\n")
            time.sleep(ABORT_DELAY)
            MPI.COMM_WORLD.Abort(1)
        else:
            _wait_for_the_end_of_the_other_ranks(MPI)


def install(ranks: int, loaded_library: Callable[[], ctypes.CDLL]) -> None:
    """Let an uncaught exception of this process, or an exit with an error, end its job, if it has several ranks.

    Parameters
    ----------
    ranks
    loaded_library
        Returns the MPI library of this process, or raises an OSError.
    """
    if ranks > 1 and not is_made_by_multiprocessing():
        from lapse.base import _exits

        _exits.tell_refused_memory(_rank(), LITTLE_MEMORY)
        _take_over_the_end_of_mpi(loaded_library)
        ending = _Ending()
        sys.excepthook = ending.report
        atexit.register(ending.end_job)


def _take_over_the_end_of_mpi(loaded_library: Callable[[], ctypes.CDLL]) -> None:
    """Finalize MPI in place of mpi4py, which does not know whether the process has failed.

    Not if mpi4py was told to do it, or not to, and not if it has begun before this package could ask it.
    """
    from lapse.base import _exits
    import mpi4py

    if "mpi4py.MPI" in sys.modules or mpi4py.rc.finalize is not None or not _exits.KNOWS_STATUS:
        return
    mpi4py.rc.finalize = False
    process = os.getpid()

    def finalize_behind_python() -> None:
        MPI: Any = sys.modules.get("mpi4py.MPI")
        if os.getpid() != process or MPI is None or not MPI.Is_initialized() or MPI.Is_finalized():
            return
        try:
            library = loaded_library()
        except OSError:  # another one than that of the build, which only a program without a server may have
            MPI.Finalize()
            return
        finalize, is_finalized = _address(library.MPI_Finalize), _address(library.MPI_Finalized)
        if not _exits.finalize_at_exit(finalize, is_finalized, _rank(), GRACE_SECONDS):
            MPI.Finalize()

    # Before the handlers of the servers, hence called behind them. The C library calls its handlers in the same way, so
    # that this one, which registers itself as late as possible, comes before those of the MPI.
    atexit.register(finalize_behind_python)


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def is_made_by_multiprocessing() -> bool:
    """Whether this process is a child that `multiprocessing` has made."""
    process: Any = sys.modules.get("multiprocessing.process")  # which every such child has
    return process is not None and process.parent_process() is not None


def note_known(error: BaseException, rank: int) -> None:
    """All ranks know of an exception, which `rank` reports if nobody catches it."""
    with contextlib.suppress(Exception):  # one without a dictionary
        if getattr(error, _ORIGIN, None) is None:
            setattr(error, _ORIGIN, rank)


def _rank() -> int:
    MPI: Any = sys.modules.get("mpi4py.MPI")
    if MPI is not None and MPI.Is_initialized() and not MPI.Is_finalized():
        return MPI.COMM_WORLD.rank
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


def _one_line(error: BaseException) -> str:
    try:
        first = f"{type(error).__name__}: {error}".splitlines()[0]
    except Exception:
        return type(error).__name__
    return first if len(first) <= MAX_LINE else f"{first[:MAX_LINE]} ..."


def _print(text: str) -> None:
    """Write a text in one piece, so that it is not mixed with that of other ranks."""
    with contextlib.suppress(Exception):  # stderr may be closed; the end must come all the same
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        sys.stderr.write(text)
        sys.stderr.flush()


def _print_whole(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    try:
        text = "".join(traceback.format_exception(kind, error, trace))
    except Exception:  # raised by the exception's own code
        sys.__excepthook__(kind, error, trace)
    else:
        _print(text)


def _abort_by_launcher() -> None:
    """End the job of a process that has not initialized MPI, in the words of the launcher's own protocol.

    That of MPICH listens at a socket, by version 1 of the process management interface; that of Open MPI ends the job
    when a process ends with an error; Slurm has a command.
    """
    descriptor = os.environ.get("PMI_FD", "")
    if slurm.tasks() > 1:
        time.sleep(ABORT_DELAY)
        slurm.end_tasks()
        return
    with contextlib.suppress(OSError):
        if descriptor.isdecimal() and stat.S_ISSOCK(os.fstat(int(descriptor)).st_mode):
            time.sleep(ABORT_DELAY)
            os.write(int(descriptor), b"cmd=abort exitcode=1\n")
            time.sleep(ABORT_DELAY)


def _wait_for_the_end_of_the_other_ranks(MPI: Any) -> None:
    """Finalize MPI, which waits for the others; after a while end this process, and with it the job."""
    with contextlib.suppress(Exception):
        faulthandler.dump_traceback_later(GRACE_SECONDS, exit=True)
    MPI.Finalize()
    faulthandler.cancel_dump_traceback_later()
