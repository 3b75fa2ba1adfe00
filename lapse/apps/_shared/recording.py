"""What ``--report`` shows besides the figures of each epoch: what each rank did, and where hot keys were.

Nothing is collected without ``--report``: what this module asks costs messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import lapse
    from mpi4py.MPI import Intracomm

#: Keys whose places are recorded, at most.
MOST_KEYS = 24


@dataclass
class RankFigures:
    """What a rank has counted in an epoch.

    Attributes
    ----------
    counters
        Those of `Server.stats`.
    times
        Seconds of its mean worker, by what it did.
    bytes_sent_to
        By rank.
    """

    counters: dict[str, int]
    times: dict[str, float]
    bytes_sent_to: list[int]


@dataclass
class HotKeys:
    """Keys that are used much.

    Attributes
    ----------
    names
        What the report calls them.
    keys
        The keys.
    is_replicated
        Of each.
    """

    names: list[str]
    keys: list[int]
    is_replicated: list[bool]

    @classmethod
    def of(cls, named: Sequence[tuple[str, int]], replicated: np.ndarray) -> HotKeys:
        """The first of these keys, the most used ones first; `replicated` has all that are."""
        some = [int(key) for _, key in named[:MOST_KEYS]]
        return cls([name for name, _ in named[:MOST_KEYS]], some, np.isin(some, replicated).tolist())


@dataclass
class Recording:
    """The epochs of this process, on rank 0; the other ranks have none.

    Attributes
    ----------
    epochs
        Of each epoch: its number, the figures of each rank, and the owner of each hot key at its end.
    hot_keys
        None: the application names none.
    """

    epochs: list[dict] = field(default_factory=list)
    hot_keys: HotKeys | None = None

    def add(self, comm: Intracomm, server: lapse.Server, epoch: int, times: dict[str, float]) -> None:
        """Record an epoch after its training, before counters are reset. Collective."""
        mine = RankFigures(server.stats(), times, server.bytes_sent_to().tolist())
        ranks = comm.gather(asdict(mine))
        if comm.rank == 0 and ranks is not None:
            owners = np.asarray(server.owner(self.hot_keys.keys)).tolist() if self.hot_keys is not None else []
            self.epochs.append({"epoch": epoch, "ranks": ranks, "owners": owners})
