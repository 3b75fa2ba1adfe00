"""Floor 1. How replicated keys are synchronized: the choices of the user."""

import sys
from dataclasses import dataclass

import numpy as np

from lapse.base.checks import check_float, check_int


@dataclass(frozen=True)
class Replication:
    """How the replicas of the replicated keys are synchronized, in the background.

    A rank sends what was pushed to its replicas to the keys' homes, in *rounds* of its own; the homes send the
    sums to all ranks. A round begins when its time has come **or** when enough was pushed, whichever is first.

    Parameters
    ----------
    syncs_per_second : float
        Rounds that begin by time. 0: none.
    max_pending : int, optional
        A round also begins when this rank has pushed so many key positions to replicas since the last one. A worker
        whose rank is ahead by more than twice as many waits (bounded staleness): sums of updates that were computed
        from stale values diverge when only time paces the rounds, and the faster the program, the worse. Without it,
        and with `syncs_per_second=0`, replicas are synchronized on demand only (`Worker.wait_replica_sync`).
    threshold : float
        The change of a key is not sent while its L2 norm is smaller.
    average : bool
        Scale each rank's change by 1 / ranks.
    clip : float
        Scale a change down to at most `clip` times the running mean of the norms of this rank's changes, after 1000
        of them. 0: never.

    Raises
    ------
    TypeError
        When an argument has the wrong type.
    ValueError
        When a number is negative or not finite, or `max_pending` is below 1.

    Notes
    -----
    Each rank scales its own change before it is sent. In the phase of `Worker.setup` all changes are sent, whatever
    their norm, and none is scaled. Replication of hot spots is that of Renz-Wieland et al., *NuPS: A Parameter Server
    for Machine Learning with Non-Uniform Parameter Access*, SIGMOD 2022; bounded staleness that of Ho et al., *More
    Effective Distributed ML via a Stale Synchronous Parallel Parameter Server*, NIPS 2013.
    """

    syncs_per_second: float = 5
    max_pending: int | None = None
    threshold: float = 0.0
    average: bool = False
    clip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("syncs_per_second", "threshold", "clip"):
            object.__setattr__(self, name, check_float(getattr(self, name), name, 0, sys.float_info.max))
        if not isinstance(self.average, (bool, np.bool_)):
            raise TypeError(f"average must be True or False, not {self.average!r}")
        object.__setattr__(self, "average", bool(self.average))
        if self.max_pending is not None:
            object.__setattr__(self, "max_pending", check_int(self.max_pending, "max_pending", 1, 2**61))
