"""Floor 4. The initialization phase, which all workers of all ranks enter and leave together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lapse.worker._worker import Worker
    from lapse.worker.group import WorkerGroup


class SetupPhase:
    """A context manager; see `Worker.setup`.

    Parameters
    ----------
    group : WorkerGroup
    worker : Worker
    """

    def __init__(self, group: WorkerGroup, worker: Worker):
        self._group = group
        self._worker = worker

    def __enter__(self) -> None:
        self._switch(True, "the start of setup", "the beginning of the setup phase")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._switch(False, "the end of setup", "the reset of statistics")
        else:  # it ends the run, or all workers catch it: the phase is over in any case
            self._group.protocol.enter_setup(False)

    def _switch(self, inside: bool, what: str, then: str) -> None:
        """Deliver what was pushed before, meet, let one worker of the rank switch, meet again."""
        group, worker = self._group, self._worker
        worker.wait_all()
        worker.wait_replica_sync()
        group.collectives.barrier(worker, what)
        if worker.id == group.first_id:
            group.protocol.enter_setup(inside)
            if not inside:
                group.counters.reset()
        group.collectives.barrier(worker, then)
