"""What all tests share: the deadline of a test, and the notes for `tests/run.py`."""

import faulthandler
import os
import signal

import pytest

import lapse  # noqa: F401  (before mpi4py.MPI: it chooses the MPI library)
from notes import FOLDER, PROCESS, RANK, note, note_outcome

DEADLINE = float(os.environ.get("LAPSE_TEST_DEADLINE", 60))

#: Seconds between the stacks of a rank and its end: the other ranks are to show theirs too.
GRACE = 3.0

_STACKS = pytest.StashKey()


def pytest_configure(config):
    """Open the file for the stacks; pytest replaces sys.stderr, so the real one is kept."""
    stacks = FOLDER / f"{PROCESS}.stacks" if FOLDER else os.dup(2)
    config.stash[_STACKS] = open(stacks, "w")  # noqa: SIM115  (open to the end of the process)
    faulthandler.enable(config.stash[_STACKS])
    if config.pluginmanager.hasplugin("hypothesispytest"):  # the same examples on all ranks
        from hypothesis import settings

        settings.register_profile("lapse", deadline=None, derandomize=True, database=None)
        settings.load_profile("lapse")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Run a test; when its time is over, show the stacks of all threads and end the process.

    Neither needs the GIL, for a test may hang in compiled code: faulthandler has a thread of its
    own, and the alarm that nobody handles is left to the kernel. Under `mpirun` the launcher then
    ends the other ranks.
    """
    seconds = _deadline_of(item)
    note(f"{PROCESS}.running", item.nodeid)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.dump_traceback_later(seconds, file=item.config.stash[_STACKS])
    signal.setitimer(signal.ITIMER_REAL, seconds + GRACE)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        note(f"{PROCESS}.running", "")


def _deadline_of(item):
    marker = item.get_closest_marker("deadline")
    return float(marker.args[0]) if marker else DEADLINE


def pytest_collection_modifyitems(config, items):
    """Where processes share the tests out, those that may take longest come first, so that none is left with one."""
    if hasattr(config, "workerinput"):
        items.sort(key=_deadline_of, reverse=True)


def pytest_collection_finish(session):
    """Note how many tests there are, so that a run that ends early is told from a whole one."""
    if RANK == 0:
        note("collected", str(len(session.items)))


def pytest_runtest_logreport(report):
    """Note the outcome of a test."""
    note_outcome(report)
