"""Tests under `mpirun`: one outcome for all ranks, reported by rank 0.

A test ends with a rendezvous of all ranks, in which they exchange their reports. What failed on one
rank has failed on all. Where one rank does not come, the deadline of the test ends the job.
"""

import os
import sys
import time

import pytest
from _pytest.runner import runtestprotocol

from notes import PROCESS, note

#: Seconds after which a rank whose test failed tells so by itself: the others may be stuck.
PATIENCE = 5.0

_COMM = pytest.StashKey()
_collect_errors = []


def pytest_configure(config):
    """With ``--with-mpi``, open a communicator for the rendezvous."""
    if config.getoption("--with-mpi"):
        from mpi4py import MPI

        config.stash[_COMM] = MPI.COMM_WORLD.Dup()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """Silence the reports of all ranks but one."""
    comm = session.config.stash.get(_COMM, None)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if comm is not None and comm.rank != 0 and reporter is not None:
        reporter._tw._file = open(os.devnull, "w")  # noqa: SIM115  (open to the end of the process)


def pytest_collection_modifyitems(items):
    """Everything in this folder is a test under MPI, marked or not."""
    for item in items:
        if "tests/mpi/" in item.nodeid and item.get_closest_marker("mpi") is None:
            item.add_marker(pytest.mark.mpi)


def pytest_collectreport(report):
    """Keep what could not be collected, for rank 0 to show."""
    if report.failed:
        _collect_errors.append(report.longreprtext)


def pytest_collection_finish(session):
    """Make sure that all ranks run the same tests in the same order."""
    comm = session.config.stash.get(_COMM, None)
    if comm is None:
        return
    everyone = comm.allgather((_collect_errors, [item.nodeid for item in session.items]))
    errors = [f"[rank {rank}]\n" + "\n".join(texts) for rank, (texts, _) in enumerate(everyone) if texts]
    if errors and not _collect_errors:
        pytest.exit("another rank could not collect the tests\n" + "\n".join(errors), returncode=2)
    if any(tests != everyone[0][1] for _, tests in everyone):
        pytest.exit("the ranks have collected different tests", returncode=2)


def pytest_runtest_setup(item):
    """Skip a test that is marked ``mpi(max_size=N)`` where there are more ranks."""
    comm = item.config.stash.get(_COMM, None)
    limit = min((m.kwargs.get("max_size", sys.maxsize) for m in item.iter_markers("mpi")), default=sys.maxsize)
    if comm is not None and comm.size > limit:
        pytest.skip(f"rank count: at most {limit}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Run the test on this rank, meet the others, and report what came out of it on all."""
    comm = item.config.stash.get(_COMM, None)
    if comm is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    mine = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in _meet(comm, item.config, mine):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _meet(comm, config, mine):
    """Exchange the reports of all ranks; return one report per phase of the test."""
    _await_others(comm, mine)
    packed = [config.hook.pytest_report_to_serializable(config=config, report=r) for r in mine]
    everyone = [
        [config.hook.pytest_report_from_serializable(config=config, data=data) for data in rank]
        for rank in comm.allgather(packed)
    ]
    phases = ("setup", "call", "teardown")
    by_phase = [
        {rank: report for rank, reports in enumerate(everyone) for report in reports if report.when == phase}
        for phase in phases
    ]
    return [_merge(reports, comm.size) for reports in by_phase if reports]


def _await_others(comm, mine):
    """Wait, asleep, until all ranks are here; after a while, say if this rank's test has failed."""
    request = comm.Ibarrier()
    start, told = time.monotonic(), False
    while not request.Test():
        waited = time.monotonic() - start
        if waited > PATIENCE and not told:
            told = True
            _tell_failures(comm.rank, mine)
        time.sleep(min(0.02, 0.0005 + waited / 10))


def _tell_failures(rank, reports):
    text = "".join(
        f"[rank {rank}] {report.nodeid} failed, while other ranks go on\n{report.longreprtext}\n"
        for report in reports
        if report.failed
    )
    note(f"{PROCESS}.failure", text)
    if text:
        os.write(2, text.encode())


def _merge(reports, size):
    """Merge the reports of one phase: a failure anywhere is one, as is a skip not everywhere."""
    merged = reports[min(reports)]
    failed = {rank: report for rank, report in reports.items() if report.failed}
    skipped = [rank for rank, report in reports.items() if report.skipped]
    if failed:
        merged = failed[min(failed)]
        merged.longrepr = _tracebacks(failed, size)
    elif skipped and len(skipped) != len(reports):
        merged.outcome = "failed"
        merged.longrepr = f"skipped on ranks {skipped} only, of {size}"
    return merged


def _tracebacks(failed, size):
    """Show each traceback once, with the ranks that have it."""
    ranks_by_text = {}
    for rank, report in failed.items():
        ranks_by_text.setdefault(report.longreprtext, []).append(str(rank))
    return "\n".join(f"[rank {', '.join(ranks)} of {size}]\n{text}" for text, ranks in ranks_by_text.items())
