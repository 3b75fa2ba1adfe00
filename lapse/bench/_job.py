"""The program of each process of a job: calls the group's function; rank 0 prints the rows for the parent program.

``python -m lapse.bench._job GROUP NUMBER OPTIONS [quick|full]`` (options of the group, in JSON)
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import traceback
from collections.abc import Iterator

from lapse.base.uncaught import ABORT_DELAY
from lapse.bench._groups import Context, load

#: Starts the lines that are rows; all other output is for the user.
MARK = "LAPSE-BENCH-ROW "


def main(argv: list[str]) -> None:
    """Run one job of one group in this process."""
    name, number, options, *extent = argv
    group = load()[name]
    job = group.jobs[int(number)]
    rank, ranks = _place() if job.ranks else (0, 0)
    if ranks != job.ranks:
        sys.exit(f"this job needs {job.ranks} ranks, but runs on {ranks}: does mpirun belong to another MPI?")
    if not job.ranks:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # it may have started jobs itself
    context = Context(group, job, "quick" in extent, "full" in extent, rank, ranks, json.loads(options))
    with _ending_together(ranks):
        for row in group.run(context):
            if rank == 0:
                print(MARK + json.dumps(row.as_dict()), flush=True)


def _world():
    from lapse import _mpi_loader

    return _mpi_loader.load().COMM_WORLD


def _place() -> tuple[int, int]:
    world = _world()
    return world.rank, world.size


@contextlib.contextmanager
def _ending_together(ranks: int) -> Iterator[None]:
    """An error on one rank terminates all: the others might wait for it forever."""
    try:
        yield
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        if ranks < 2:
            sys.exit(1)
        time.sleep(ABORT_DELAY)
        _world().Abort(1)


if __name__ == "__main__":
    main(sys.argv[1:])
