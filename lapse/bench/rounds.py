"""Group ``rounds``: a round of replicas between emulated hosts, against two all-to-alls of the same bytes.

A round cannot be cheaper than two exchanges: what every rank has contributed goes to the homes, and what it comes to
back to all ranks. All ranks push to all keys, so that each of the exchanges has the size of all values. Time is dilated
as in group ``scaling``, so that the network decides, and not the few cores of this machine.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator

from lapse.bench import _launch
from lapse.bench._groups import Context, Group, Job
from lapse.bench._rows import Row, at_most
from lapse.bench._timing import Sample
from lapse.bench.hosts.network import Link, Network, Unavailable

REFERENCE = "two MPI_Alltoall by mpi4py, each of as many bytes as the values have"
LINK = Link(delay_us=25, rate_mbit=10_000)
HOSTS = (2, 4, 8)
DILATION = 10.0
KEYS, LENGTH = 2_000, 100
TARGET = at_most(1.5)
#: Of one number of hosts, in seconds.
LIMIT = 120.0
#: Starts the line that the program in the hosts prints (`rounds_between_hosts`).
FOUND = "FOUND "


def run(context: Context) -> Iterator[Row]:
    """One row for each number of hosts."""
    for hosts in HOSTS[:1] if context.quick else HOSTS:
        try:
            found = measure(context, hosts)
        except Unavailable as reason:
            print(f"skipped: {hosts} hosts: {reason}", file=sys.stderr)
            return
        yield make_row(context, hosts, **found)


def measure(context: Context, hosts: int) -> dict[str, Sample]:
    """What the program in the hosts has found: seconds of each turn, by what was measured.

    Raises
    ------
    Unavailable
        If there cannot be emulated hosts here.
    lapse.bench._launch.JobError
        If it fails or takes too long.
    """
    arguments = [str(number) for number in (20 if context.quick else KEYS, LENGTH, context.rounds(11))]
    program = [sys.executable, "-m", "lapse.bench.rounds_between_hosts", *arguments]
    with Network(hosts, LINK.dilated(DILATION)) as network:
        printed = _launch.run_on_hosts(network, 1, program, DILATION, LIMIT, f"rounds between {hosts} hosts ")
    line = next(line for line in printed.splitlines() if line.startswith(FOUND))
    return {name: Sample(tuple(values)) for name, values in json.loads(line[len(FOUND) :]).items()}


def make_row(context: Context, hosts: int, full: Sample, empty: Sample, exchanges: Sample) -> Row:
    """The row of a number of hosts.

    A synchronization is two rounds, of which only the first has values: half of one without any values is taken off.
    """
    rounds = Sample(tuple(a - b / 2 for a, b in zip(full.values, empty.values, strict=True)))
    row = context.row(
        "round",
        {"hosts": hosts, "keys": KEYS, "length": LENGTH, "dilation": DILATION},
        rounds * 1e3,
        exchanges * 1e3,
        unit="ms",
        reference_name=REFERENCE,
        target=TARGET,
    )
    return dataclasses.replace(row, ranks=hosts, figures={"empty round": empty.median / 2 * 1e3})


GROUPS = (
    Group(
        "rounds",
        "rounds of replicas between emulated hosts, against two all-to-alls of the same bytes, in dilated time",
        run,
        (Job(0),),
        is_for_request=True,
    ),
)
