"""Group ``local``: access to keys of this rank, at the C level and from Python.

At the C level the reference is a copy of as many rows of an array of the same size, one after another; from Python it
is the NumPy operation that does the same to an array: `take`, `add.at`, and an assignment for `set`. The server has one
rank, hence no messages. Keys continue from one round to the next, so that a round does not find its rows in the cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lapse.bench._groups import Context, Group
from lapse.bench._rows import Row, at_least, at_most
from lapse.bench._timing import Sample, interleaved

COPY = "rows copied one after another by memcpy in C"
UNIFORM, ZIPF = "uniform", "Zipf"
KINDS = ("pull", "push", "set")

#: The equivalent NumPy operations on an array `table`.
NUMPY_NAMES = {
    "pull": "numpy.take(table, keys, axis=0, out=out)",
    "push": "numpy.add.at(table, keys, updates)",
    "set": "table[keys] = values",
}

ALL_BATCHES, ALL_LENGTHS, ALL_MEGABYTES = (1, 10, 100, 1000), (16, 100, 1000), (1, 40, 400)


@dataclass(frozen=True)
class Table:
    """The size of a server's values, and of the reference array."""

    megabytes: int
    length: int

    @property
    def num_keys(self) -> int:
        """The number of rows of that size; enough for batches of different keys."""
        return max(self.megabytes * 1_000_000 // (4 * self.length), 4000)


@dataclass(frozen=True)
class Case:
    """The conditions of some rows of the table, one for each kind of call."""

    batch: int
    keys: str = UNIFORM
    level: str = "C"
    workers: int = 1
    kinds: tuple[str, ...] = ("pull", "push")


#: Starting from batches of 100 keys with 100 elements each, one parameter is changed at a time.
_STANDARD = Table(40, 100)
NORMAL_CASES = {
    Table(1, 100): (Case(100),),
    Table(40, 16): (Case(100),),
    _STANDARD: (
        Case(100, kinds=KINDS),
        Case(1),
        Case(10),
        Case(1000),
        Case(100, ZIPF),
        Case(100, workers=2),
        Case(100, ZIPF, workers=2),
        Case(1, level="Python", kinds=KINDS),
        Case(100, level="Python", kinds=KINDS),
    ),
    Table(40, 1000): (Case(100),),
    Table(400, 100): (Case(100), Case(100, workers=2)),
}
QUICK_CASES = {Table(1, 16): (Case(10, kinds=KINDS), Case(10, ZIPF, workers=2), Case(10, level="Python", kinds=KINDS))}


def full_cases() -> dict[Table, tuple[Case, ...]]:
    """Every combination."""
    cases = tuple(
        Case(batch, keys, level, workers, KINDS)
        for level in ("C", "Python")
        for workers in (1, 2)
        for keys in (UNIFORM, ZIPF)
        for batch in ALL_BATCHES
        if (level, workers) != ("Python", 2)
    )
    return {Table(megabytes, length): cases for megabytes in ALL_MEGABYTES for length in ALL_LENGTHS}


#: By kind, level, batch and workers of the standard table with uniform keys.
TARGETS = {
    ("pull", "C", 100, 1): at_most(2.0),
    ("push", "C", 100, 1): at_most(2.5),
    ("pull", "C", 100, 2): at_least(1.6),
    ("push", "C", 100, 2): at_least(1.3),
    ("pull", "Python", 100, 1): at_most(2.0),
    ("pull", "Python", 1, 1): at_most(1.5),
}


def target(table: Table, case: Case, kind: str):
    """The target of a row, if it has one."""
    standard = table == _STANDARD and case.keys == UNIFORM
    return TARGETS.get((kind, case.level, case.batch, case.workers)) if standard else None


def run(context: Context) -> Iterator[Row]:
    """All tables, one server at a time."""
    cases = QUICK_CASES if context.quick else full_cases() if context.full else NORMAL_CASES
    for table, of_table in cases.items():
        for workers in (1, 2):
            chosen = [case for case in of_table if case.workers == workers]
            if chosen:
                yield from _measure_table(context, table, chosen, workers)


def _measure_table(context: Context, table: Table, cases: list[Case], workers: int) -> list[Row]:
    import lapse

    with lapse.Server(table.num_keys, table.length, workers=workers) as server:
        server.initialize(range(table.num_keys), lapse.Constant(1.0))
        return server.run(_measure_as_worker, context, table, cases, Team(workers))[0]


class Team:
    """Worker threads that measure together: in each step some of them run their loop and the others wait.

    Parameters
    ----------
    workers
        Number of threads.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.begins = threading.Barrier(workers)
        self.ended = threading.Barrier(workers)
        self.times = [None] * workers

    def seconds(self, number: int, loop: Callable[[], tuple[int, int]], of: tuple[int, ...]) -> float:
        """One step of worker `number`: those in `of` run their loop. Returns seconds from first start to last end."""
        self.begins.wait()
        self.times[number] = loop() if number in of else None
        self.ended.wait()
        begins, ends = zip(*(self.times[member] for member in of), strict=True)
        return (max(ends) - min(begins)) / 1e9


def _measure_as_worker(kv, context: Context, table: Table, cases: list[Case], team: Team) -> list[Row]:
    """The program of a worker thread; all return the same rows."""
    import numpy as np

    array = np.ones((table.num_keys, table.length), dtype=np.float32)
    rows = []
    for case in cases:
        for kind in case.kinds:
            measure = _from_python if case.level == "Python" else _in_c if team.workers == 1 else _by_both
            rows += measure(kv, context, table, case, kind, array, team)
    return rows


def _share(context: Context, table: Table, batch: int, max_keys: int) -> int:
    """Keys per measurement: some 10 milliseconds of work, a multiple of the batch."""
    values = 200 if context.quick else min(max_keys, max(2000, 8_000_000 // table.length))
    return batch * max(values // batch, 1)


def _parameters(table: Table, case: Case) -> dict:
    return {
        "level": case.level,
        "batch": case.batch,
        "length": table.length,
        "table": f"{table.megabytes} MB",
        "keys": case.keys,
    }


def _loop(kv, kind: str, stream, batch: int, length: int):
    """A function that pulls, pushes or sets the next keys in C and returns its start and end."""
    import numpy as np

    from lapse.bench import _kernel

    values = np.ones((batch, length), dtype=np.float32)
    number = {"pull": _kernel.PULL, "push": _kernel.PUSH, "set": _kernel.SET}[kind]
    return lambda: _kernel.access(kv, number, stream.take(), batch, values)


def _in_c(kv, context: Context, table: Table, case: Case, kind: str, array, team: Team) -> Iterator[Row]:
    import numpy as np

    from lapse.bench import _kernel
    from lapse.bench._keys import Stream

    share = _share(context, table, case.batch, 100_000)
    stream = Stream(case.keys, table.num_keys, share, seed=kv.id, distinct=case.batch if kind == "set" else 0)
    loop = _loop(kv, kind, stream, case.batch, table.length)
    out = np.empty((case.batch, table.length), dtype=np.float32)
    first = [0]

    def copy():
        first[0] = (first[0] + share) % table.num_keys
        return _kernel.copy_rows(array, first[0], share, out)

    def nanoseconds(function) -> float:
        begin, end = function()
        return (end - begin) / share

    found = interleaved({"ours": lambda: nanoseconds(loop), "copy": lambda: nanoseconds(copy)}, context.rounds(15))
    yield context.row(
        kind,
        _parameters(table, case),
        found["ours"],
        found["copy"],
        unit="ns/key",
        reference_name=COPY,
        target=target(table, case, kind),
    )


def _by_both(kv, context: Context, table: Table, case: Case, kind: str, array, team: Team) -> Iterator[Row]:
    """All workers at once, against each of them alone, in keys per second."""
    from lapse.bench._keys import Stream

    share = _share(context, table, case.batch, 100_000)
    stream = Stream(case.keys, table.num_keys, share, seed=kv.id, distinct=case.batch if kind == "set" else 0)
    loop = _loop(kv, kind, stream, case.batch, table.length)
    everybody = tuple(range(team.workers))

    def rate(of: tuple[int, ...]) -> float:
        return len(of) * share / team.seconds(kv.id, loop, of) / 1e6

    measured = {"all": lambda: rate(everybody), **{str(i): lambda i=i: rate((i,)) for i in everybody}}
    found = interleaved(measured, context.rounds(15))
    alone = Sample(tuple(map(max, *(found[str(i)].values for i in everybody))))
    yield context.row(
        kind,
        _parameters(table, case),
        found["all"],
        alone,
        unit="M keys/s",
        workers=team.workers,
        reference_name="the faster one of the workers alone",
        target=target(table, case, kind),
        note="(more is better)",
    )


def _from_python(kv, context: Context, table: Table, case: Case, kind: str, array, team: Team) -> Iterator[Row]:
    """Calls from Python, each waited for, against NumPy."""
    import numpy as np

    from lapse.bench._keys import Stream

    share = _share(context, table, case.batch, 5_000 if case.batch == 1 else 50_000)
    stream = Stream(case.keys, table.num_keys, share, distinct=case.batch if kind == "set" else 0)
    values = np.ones((case.batch, table.length), dtype=np.float32)
    ours, numpys = _python_calls(kv, kind, array, values)
    turns = {"ours": _each_batch(ours, stream, case.batch), "numpy": _each_batch(numpys, stream, case.batch)}
    found = interleaved(turns, context.rounds(15))
    yield context.row(
        kind,
        _parameters(table, case),
        found["ours"] * 1e6,
        found["numpy"] * 1e6,
        unit="us/call",
        reference_name=NUMPY_NAMES[kind],
        target=target(table, case, kind),
    )


def _python_calls(kv, kind: str, array, values):
    """The functions called with the keys of a batch: the worker's and NumPy's."""
    import numpy as np

    if kind == "pull":
        return (lambda keys: kv.pull(keys, values).wait()), (lambda keys: np.take(array, keys, axis=0, out=values))
    if kind == "push":
        return (lambda keys: kv.push(keys, values).wait()), (lambda keys: np.add.at(array, keys, values))
    return (lambda keys: kv.set(keys, values).wait()), (lambda keys: array.__setitem__(keys, values))


def _each_batch(function: Callable, stream, batch: int) -> Callable[[], float]:
    """For `interleaved`: the seconds per call with the keys of the next batches."""
    import time

    def measure() -> float:
        batches = list(stream.take().reshape(-1, batch))
        start = time.perf_counter()
        for keys in batches:
            function(keys)
        return (time.perf_counter() - start) / len(batches)

    return measure


GROUPS = (Group("local", "keys of this rank, without messages: calls from C and from Python", run),)
