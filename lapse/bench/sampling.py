"""Group ``sampling``: random keys, drawn by the server, and their values, by scheme.

All ranks draw at once, in C, uniformly over all keys: a sample is prepared while the one before it is pulled, in
batches. The reference is a pull of as many keys that are local: the cost of reading values when nothing has to be drawn
or fetched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lapse.bench._groups import NORMAL, Context, Group, Job
from lapse.bench._rows import Row
from lapse.bench._timing import interleaved

LOCAL_PULL = "pulls of as many random keys that are on this rank"
LENGTH, BATCH = 100, 100
SCHEMES = {"naive": {}, "preloc": {}, "pool": {"reuse": 16}, "local": {}}


def run(context: Context) -> Iterator[Row]:
    """Both ways to reach another rank's values."""
    ways = {"messages": False} if context.quick else {"messages": False, "shared memory": True}
    for way, shared_memory in ways.items():
        yield from _measure_way(context, way, shared_memory)


def _measure_way(context: Context, way: str, shared_memory: bool) -> Iterator[Row]:
    """A server for each scheme, all open at once, so that they can be measured in turns."""
    import lapse

    num_keys = 2_000 if context.quick else 100_000
    with contextlib.ExitStack() as stack:
        turns, servers = {}, {}
        for scheme, options in SCHEMES.items():
            sampling = lapse.Sampling(scheme, lapse.Uniform(0, num_keys), **options)
            server = stack.enter_context(lapse.Server(num_keys, LENGTH, sampling=sampling, shared_memory=shared_memory))
            server.initialize(range(num_keys), lapse.Constant(1.0))
            kv = stack.enter_context(server.worker())
            servers[scheme] = server
            turns[scheme] = _sampler(context, kv)
        turns["local pull"] = _puller(context, kv, server)
        found = interleaved(turns, context.rounds(11), warm_ups=0 if context.quick else 1)
        for scheme in SCHEMES:
            stats = servers[scheme].stats()
            local = f"{100 * stats['sampled_local'] / stats['sampled_keys']:.0f}%"
            yield context.row(
                scheme,
                {"values by": way, "batch": BATCH, "length": LENGTH, "local": local},
                found[scheme],
                found["local pull"],
                unit="M samples/s per rank",
                reference_name=LOCAL_PULL,
                note="(more is better)",
            )


def _count(context: Context) -> int:
    """Samples per measurement; prepared 10 * `BATCH` at a time."""
    return 1000 if context.quick else 20_000


def _sampler(context: Context, kv):
    import numpy as np

    from lapse.bench import _kernel

    keys, values = np.empty(BATCH, dtype=np.int64), np.empty((BATCH, LENGTH), dtype=np.float32)
    count = _count(context)

    def draw() -> float:
        kv.barrier()
        begin, end = _kernel.sample(kv, count, 10 * BATCH, keys, values)
        kv.barrier()
        return count / (end - begin) * 1e3

    return draw


def _puller(context: Context, kv, server):
    import numpy as np

    from lapse.bench import _kernel

    values = np.empty((BATCH, LENGTH), dtype=np.float32)
    count = _count(context)
    rng = np.random.default_rng(kv.id)

    def pull() -> float:
        keys = rng.choice(server.local_keys(), count)
        kv.barrier()
        begin, end = _kernel.access(kv, _kernel.PULL, keys, BATCH, values)
        kv.barrier()
        return count / (end - begin) * 1e3

    return pull


GROUPS = (Group("sampling", "samples per second by scheme, all ranks at once", run, (Job(2), Job(4, NORMAL))),)
