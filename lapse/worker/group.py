"""Floor 4. What the workers of one rank have in common."""

from __future__ import annotations

import dataclasses

from lapse._comm import Comm
from lapse._store import Store
from lapse.protocol._protocol import Protocol
from lapse.worker._call_threads import CallThreads
from lapse.worker._counters import Counters
from lapse.worker.collectives import Collectives
from lapse.worker.steps import Steps
from lapse.worker.streams import Streams


@dataclasses.dataclass(frozen=True)
class WorkerGroup:
    """The workers of one rank: what they work with, and who they are among those of all ranks.

    Parameters
    ----------
    comm, store, protocol, collectives, counters
        Of this rank.
    streams : Streams
        What they draw from.
    steps : Steps
        How many they have made with each table.
    threads : CallThreads
        Share their large calls.
    seed : int
    first_id : int
        The global number of this rank's first worker.
    num_workers : int
        Over all ranks.
    """

    comm: Comm
    store: Store
    protocol: Protocol
    collectives: Collectives
    counters: Counters
    streams: Streams
    steps: Steps
    threads: CallThreads
    seed: int
    first_id: int
    num_workers: int
