"""Starts the jobs of a group and reads their rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping

from lapse import _mpi_loader
from lapse.bench._groups import Group, Job
from lapse.bench._job import MARK
from lapse.bench._rows import Row
from lapse.bench.hosts import network as emulated

#: Prefixes of the variables by which a launcher tells a process its rank: a nested job must not see them.
_OF_A_LAUNCHER = ("PMI_", "PMIX_", "HYDI_", "HYDRA_", "OMPI_COMM_WORLD_", "MPI_LOCAL")

_RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


class JobError(Exception):
    """A job failed or timed out."""


def ranks_around() -> tuple[int, int]:
    """The rank of this process and the number of ranks, as a launcher has set them; 0 and 1 without a launcher."""
    rank, size = (
        next((os.environ[name] for name in names if os.environ.get(name, "").isdecimal()), None)
        for names in (_RANK_VARIABLES, _SIZE_VARIABLES)
    )
    return int(rank or 0), int(size or 1)


def environment(changes=()) -> dict[str, str]:
    """The environment of a job: that of this process without a launcher's variables, plus `changes`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_LAUNCHER)}
    return {**_mpi_loader.OPENMPI_ENVIRONMENT, **own, "PYTHONUNBUFFERED": "1", **dict(changes)}


def command(ranks: int, program: list[str], launcher: tuple[str, ...] = ()) -> list[str]:
    """The command that runs Python with the arguments `program` on so many ranks.

    Raises
    ------
    JobError
        If there is no `mpirun` beside the MPI of this build.
    """
    start = [sys.executable, *program]
    if ranks <= 1 and not launcher:
        return start
    mpirun = _mpi_loader.launcher_path()
    if mpirun is None:
        raise JobError(
            f"no mpirun found beside the library of {_mpi_loader.describe_build()}, with which Lapse was built"
        )
    return [mpirun, *launcher, "-n", str(ranks), *start]


def rows_of(group: Group, number: int, job: Job, extent: str, options: Mapping[str, object]) -> Iterator[Row]:
    """Run one job of a group and yield its rows as they arrive; its other output goes to the standard error.

    Raises
    ------
    JobError
        If it fails or takes too long.
    """
    own = json.dumps(dict(options), default=str)
    program = ["-m", "lapse.bench._job", group.name, str(number), own, *([extent] if extent else [])]
    process = subprocess.Popen(
        command(job.ranks, program, job.launcher),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment(job.env),
        start_new_session=True,
    )
    overdue = threading.Timer(job.timeout, _end, (process,))
    overdue.start()
    try:
        for line in process.stdout:
            if line.startswith(MARK):
                yield Row.from_dict(json.loads(line[len(MARK) :]))
            else:
                print(line, end="", file=sys.stderr)
        status = process.wait()
        if status != 0:
            why = (
                f"timed out after {job.timeout:.0f} s" if overdue.finished.is_set() else f"exited with status {status}"
            )
            raise JobError(f"{group.name} on {max(job.ranks, 1)} ranks {why}")
    finally:
        overdue.cancel()
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen) -> None:
    """Terminate a job and all its ranks."""
    for number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def run_on_hosts(
    hosts: emulated.Network, ranks_per_host: int, program: list[str], dilation: float, limit: float, what: str = ""
) -> str:
    """Run a program on every emulated host in dilated time; returns what it prints.

    Parameters
    ----------
    hosts
        Entered already.
    limit
        Seconds.
    what
        The beginning of an error's text: what failed or took too long.

    Raises
    ------
    JobError
        If it fails or takes too long.
    """
    with emulated.started(
        hosts.command(ranks_per_host, program),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
        env=emulated.environment(dilation, environment()),
    ) as process:
        try:
            printed, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise JobError(f"{what}timed out after {limit:g} s") from None
    if process.returncode != 0:
        raise JobError(f"{what}exited with status {process.returncode}")
    return printed
