"""The groups of benchmarks, and the context that each of them gets.

To add a group: write a module with a docstring, a function that takes a `Context` and yields rows, and a tuple
``GROUPS``; add its name to `MODULES`. The function is called on every rank of each of the group's jobs, and the rows
that rank 0 yields are shown. No module imports MPI, NumPy or anything compiled before its function is called, so that
``--help`` and ``--list`` answer at once; `_kernel.pyx` has loops in C for the functions.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lapse.bench._rows import Row, Target
from lapse.bench._timing import Sample

#: In the order in which they run.
MODULES = (
    "lapse.bench.local",
    "lapse.bench.host_peers",
    "lapse.bench.messages",
    "lapse.bench.replication",
    "lapse.bench.sampling",
    "lapse.bench.memory",
    "lapse.bench.kge",
    "lapse.bench.mf",
    "lapse.bench.word2vec",
    "lapse.bench.embedding",
    "lapse.bench.rounds",
    "lapse.bench.scaling",
)

#: Former names of groups, which the command line still accepts.
RENAMED = {"siblings": "host-peers"}

#: When a job runs: also with ``--quick``; in a normal run; only with ``--full``.
QUICK, NORMAL, FULL = "quick", "normal", "full"


@dataclass(frozen=True)
class Job:
    """One run of a group's function, in processes of its own.

    Attributes
    ----------
    ranks
        How many; 0: no MPI. The function is then called in a single process without MPI, and may start jobs itself.
    when
        `QUICK`: always; `NORMAL`: not with ``--quick``; `FULL`: only with ``--full``.
    env
        Environment variables of all ranks, in addition to this process's. (Those of MPI must be equal on all ranks.)
    launcher
        Options of `mpirun` before the program.
    name
        By which the function tells its jobs apart.
    timeout
        Seconds after which the job is killed.
    """

    ranks: int = 1
    when: str = QUICK
    env: Mapping[str, str] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()
    name: str = ""
    timeout: float = 600


@dataclass(frozen=True)
class Group:
    """A group of figures that belong together: one table and one picture.

    Attributes
    ----------
    name
        As on the command line.
    title
        What is compared, in one line.
    run
        ``run(context)`` yields `Row` objects, made by `Context.row`.
    jobs
        The runs of it.
    add_options
        Adds options of its own to those of the program; its function finds them in `Context.options`.
    is_for_request
        Whether it only runs if it is named, because it takes long.
    """

    name: str
    title: str
    run: Callable[[Context], Iterator[Row]]
    jobs: tuple[Job, ...] = (Job(),)
    add_options: Callable[[argparse._ArgumentGroup], None] | None = None
    is_for_request: bool = False

    def chosen_jobs(self, quick: bool, full: bool) -> list[tuple[int, Job]]:
        """The jobs of a run, each with its number in `jobs`."""
        allowed = {QUICK} if quick else {QUICK, NORMAL, FULL} if full else {QUICK, NORMAL}
        return [(number, job) for number, job in enumerate(self.jobs) if job.when in allowed]


@dataclass(frozen=True)
class Context:
    """What a group's function needs to know about its run.

    Attributes
    ----------
    group, job
        The group, and the job of it, that runs.
    quick
        A smoke test: just enough to show that the program works; the figures are meaningless.
    full
        All combinations of parameters.
    rank, ranks
        This process and the number of processes; 0 and 0 if the job has no MPI.
    options
        Those of the command line that are the group's own, by name; paths are strings.
    """

    group: Group
    job: Job
    quick: bool = False
    full: bool = False
    rank: int = 0
    ranks: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def rounds(self, normal: int = 9) -> int:
        """How many rounds to measure; a median of fewer than 5 is unreliable."""
        return 2 if self.quick else 2 * normal + 1 if self.full else normal

    def row(
        self,
        name: str,
        parameters: dict,
        measured: Sample | float,
        reference: Sample | float,
        *,
        unit: str,
        reference_name: str,
        target: Target | None = None,
        workers: int = 1,
        note: str = "",
    ) -> Row:
        """A row of this group.

        Parameters
        ----------
        name, parameters, unit, reference_name, target, workers, note
            As in `Row`.
        measured, reference
            Two samples of the same rounds, or two numbers, in the unit given.

        In a quick run there are no targets, because its figures are meaningless.
        """
        ratio = quartiles = None
        if isinstance(measured, Sample) and isinstance(reference, Sample):
            ratios = measured / reference
            ratio, quartiles = ratios.median, ratios.quartiles
        value = measured.median if isinstance(measured, Sample) else float(measured)
        base = reference.median if isinstance(reference, Sample) else float(reference)
        if ratio is None and base:
            ratio = value / base
        return Row(
            self.group.name,
            name,
            dict(parameters),
            value,
            unit,
            base,
            reference_name,
            ratio,
            quartiles,
            None if self.quick else target,
            max(self.ranks, 1),
            workers,
            note,
        )


def load() -> dict[str, Group]:
    """All groups by name, in the order in which they run."""
    groups = [group for module in MODULES for group in importlib.import_module(module).GROUPS]
    return {group.name: group for group in groups}
