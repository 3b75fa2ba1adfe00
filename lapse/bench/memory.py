"""Group ``memory``: what a key costs beyond its value, and how long a large server takes to start.

Bytes are the growth of the process (its resident set), minus the values. The design allows 8 bytes for each key of the
key space, 32 more for each key that is held here, and 4 more for each key if lengths differ. A value that was never
written takes no memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from lapse.bench._groups import NORMAL, Context, Group, Job
from lapse.bench._rows import Row, at_most
from lapse.bench._timing import interleaved

ALLOWED = "what the design allows: 8 for each key, 32 for each key here, 4 for each length"
WRITING = "writing as many entries of 8 bytes, one after another, into fresh memory"


def run(context: Context) -> Iterator[Row]:
    """One measurement per process: memory that an earlier one has freed would cost the next one nothing."""
    lengths, _, values = context.job.name.partition(", ")
    if values:
        yield _measure_bytes(context, 300_000 if context.quick else 3_000_000, lengths, values == "written")
    else:
        yield _measure_start(context, 100_000 if context.quick else 10_000_000)


def resident_bytes() -> int:
    """The resident set of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _measure_bytes(context: Context, num_keys: int, lengths: str, written: bool) -> Row:
    import lapse

    with lapse.Server(10, _lengths(10, lengths)[0]) as server, server.worker() as kv:
        _write_all(server, kv)  # takes the memory that only a first server allocates
    before = resident_bytes()
    given, values = _lengths(num_keys, lengths)
    with lapse.Server(num_keys, given) as server, server.worker() as kv:
        del given
        if written:
            _write_all(server, kv)
        grown = resident_bytes() - before
    beyond = (grown - (values if written else 0)) / num_keys
    allowed = 8.0 + 32 + (4 if lengths == "variable" else 0)
    return context.row(
        "memory",
        {"keys": num_keys, "lengths": lengths, "values": "written" if written else "never written"},
        beyond,
        allowed,
        unit="bytes/key",
        reference_name=ALLOWED,
        target=at_most(1.0),
    )


def _lengths(num_keys: int, kind: str):
    """Lengths of values, 16 or 16 on average, and the bytes of all values."""
    import numpy as np

    if kind == "uniform":
        return 16, 16 * 4 * num_keys
    lengths = np.random.default_rng(0).choice([8, 16, 24], num_keys)
    return lengths, 4 * int(lengths.sum())


def _write_all(server, kv, block: int = 1000) -> None:
    """Write every key, in blocks: the process would keep the memory of large temporary arrays."""
    import numpy as np

    for first in range(0, server.num_keys, block):
        keys = np.arange(first, min(first + block, server.num_keys))
        kv.set(keys, np.ones(int(np.sum(server.value_length(keys))), dtype=np.float32)).wait()


def _measure_start(context: Context, num_keys: int) -> Row:
    import numpy as np

    import lapse

    def start() -> float:
        begin = time.perf_counter()
        with lapse.Server(num_keys, 100):
            return time.perf_counter() - begin

    def write() -> float:
        begin = time.perf_counter()
        np.empty(num_keys, dtype=np.uint64).fill(1)
        return time.perf_counter() - begin

    found = interleaved({"ours": start, "write": write}, context.rounds(5))
    return context.row(
        "start",
        {"keys": num_keys, "lengths": "uniform", "values": "never written"},
        found["ours"],
        found["write"],
        unit="s",
        reference_name=WRITING,
    )


GROUPS = (
    Group(
        "memory",
        "bytes per key beyond the values, and the start of a large server",
        run,
        (
            Job(name="uniform, never written", when=NORMAL),
            Job(name="uniform, written", when=NORMAL),
            Job(name="variable, never written", when=NORMAL),
            Job(name="variable, written"),
            Job(name="start"),
        ),
    ),
)
