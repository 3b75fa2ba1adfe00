"""Group ``host-peers``: keys of another rank of this host, reached through shared memory, against the rank's own keys.

Two ranks; the second waits in a barrier. The same calls in C pull, push or set keys that this rank owns, and as many
that rank 1 owns, in turns. The column "shared" is the share of the other rank's keys that was reached without a
message, according to the server's counters.
"""

from __future__ import annotations

from collections.abc import Iterator

from lapse.bench._groups import NORMAL, Context, Group, Job
from lapse.bench._rows import Row, at_most
from lapse.bench._timing import interleaved

OWN = "the same call with keys that this rank owns"
COPY = "rows copied one after another by memcpy in C"
LENGTH = 100
#: Of another rank's key against an own one.
TARGET = at_most(1.5)


def run(context: Context) -> Iterator[Row]:
    """One server of 40 MB, half of it on each rank; rank 0 measures."""
    import lapse

    num_keys = 2_000 if context.quick else 100_000
    with lapse.Server(num_keys, LENGTH, shared_memory=True) as server, server.worker() as kv:
        server.initialize(range(num_keys), lapse.Constant(1.0))
        if context.rank == 0:
            yield from _measure(context, server, kv)
        kv.barrier()


def _measure(context: Context, server, kv) -> Iterator[Row]:
    import numpy as np

    own = server.local_keys()
    others = np.flatnonzero(
        server.owner(np.arange(server.num_keys)) == 1
    )  # as many as own keys: the caches are as full
    # Each page of another rank's memory is mapped at the first access, as the own ones were when they were filled.
    kv.pull(others).wait()
    array = np.ones((server.num_keys, LENGTH), dtype=np.float32)
    for batch in (1, 100):
        for kind in ("pull",) if context.quick else ("pull", "push", "set"):
            yield from _compare(context, server, kv, kind, batch, own, others, array)


def _compare(context: Context, server, kv, kind: str, batch: int, own, others, array) -> Iterator[Row]:
    """Own keys against a copy of rows, and the other rank's keys against own ones."""
    import numpy as np

    from lapse.bench import _kernel

    number = {"pull": _kernel.PULL, "push": _kernel.PUSH, "set": _kernel.SET}[kind]
    counted = "pulled" if kind == "pull" else "pushed"
    values = np.ones((batch, LENGTH), dtype=np.float32)
    rng = np.random.default_rng(batch)
    share = batch * (2 if context.quick else 20_000 // batch)
    position = [0]
    seen = {"keys": 0, "shared": 0}

    def access(keys, share: int) -> float:
        # the keys of a batch differ, as `set` requires: parts of a permutation
        chosen = np.resize(rng.permutation(keys)[: len(keys) // batch * batch], share)
        begin, end = _kernel.access(kv, number, chosen, batch, values)
        return (end - begin) / share

    # without shared memory, by messages, as many keys would take minutes
    by_time = int((1e6 if context.quick else 20e6) / access(others, 20 * batch)) // batch * batch
    share = max(batch, min(share, by_time))

    def access_others() -> float:
        before = server.stats()
        taken = access(others, share)
        after = server.stats()
        seen["keys"] += share
        seen["shared"] += after[f"{counted}_shared"] - before[f"{counted}_shared"]
        return taken

    def copy() -> float:
        position[0] = (position[0] + share) % len(array)
        begin, end = _kernel.copy_rows(array, position[0], share, values)
        return (end - begin) / share

    found = interleaved({"own": lambda: access(own, share), "other": access_others, "copy": copy}, context.rounds(15))
    parameters = {"batch": batch, "length": LENGTH}
    yield context.row(
        kind, {"keys": "own", **parameters}, found["own"], found["copy"], unit="ns/key", reference_name=COPY
    )
    shared = f"{100 * seen['shared'] / seen['keys']:.0f}%"
    yield context.row(
        kind,
        {"keys": "other's", **parameters, "shared": shared},
        found["other"],
        found["own"],
        unit="ns/key",
        reference_name=OWN,
        target=TARGET,
    )


GROUPS = (
    Group(
        "host-peers",
        "keys of another rank of this host through shared memory, against the rank's own",
        run,
        (Job(2), Job(4, NORMAL)),
    ),
)
