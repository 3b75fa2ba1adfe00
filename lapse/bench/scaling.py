"""Does training get faster with more hosts? Applications on emulated hosts, in dilated time.

Each training runs on hosts that `lapse.bench.hosts` emulates, with computing and the network slowed down alike. A row
has the seconds of an epoch; its reference is the ideal: the time on the fewest hosts of the same setting, divided by
how many times more hosts there are. So a ratio of 1 is a linear speed-up. The other columns show what was sent, where
the time went, and whether the machine was idle enough for the run to be meaningful.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lapse.bench import _launch
from lapse.bench._groups import Context, Group, Job
from lapse.bench._idle import IdleShare
from lapse.bench._rows import Row, Target, at_most
from lapse.bench.hosts.network import Link, Network, Report, Unavailable
from lapse.bench.workloads import DEFAULT, WORKLOADS, Workload, data_folder

MANAGEMENT = ("lapse2", "lapse", "classic")
#: With a smaller idle share, ranks wait for cores, and the run says little about hosts.
MIN_IDLE = 0.4
RESULT = "RESULT "


@dataclass(frozen=True)
class Setting:
    """One run."""

    workload: Workload
    management: str
    hosts: int
    ranks_per_host: int
    dilation: float
    link: Link  # as it is, not dilated
    epochs: int
    seed: int
    timeout: float

    @property
    def series(self) -> tuple:
        """What runs have in common that differ in the number of hosts only."""
        return self.workload.name, self.management, self.ranks_per_host


@dataclass(frozen=True)
class Outcome:
    """What a run has shown: its epochs (lines of ``--metrics``), its ``RESULT``, its traffic, the idle share."""

    epochs: list[dict]
    result: dict
    report: Report
    idle: float

    def mean(self, value) -> float:
        """The mean of a figure over the epochs."""
        return sum(map(value, self.epochs)) / len(self.epochs)

    @property
    def seconds(self) -> float:
        """Of the mean epoch, without evaluation."""
        return self.mean(lambda line: line["seconds"])

    def share(self, name: str) -> float:
        """The share of the epochs' time that the mean worker spent so."""
        return self.mean(lambda line: line["time"].get(name, 0.0)) / self.seconds

    def computed(self, setting: Setting) -> float:
        """What all workers together have computed in the mean epoch, in seconds, not dilated."""
        workers = self.result["workers"] * setting.hosts * setting.ranks_per_host
        return self.mean(lambda line: line["time"]["compute"]) * workers / setting.dilation

    def quality(self, name: str) -> float | None:
        """A figure of the result, or else of the last epoch."""
        return self.result.get(name, self.epochs[-1].get(name))


# --- options -------------------------------------------------------------------------------------------------------


def add_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of this group to those of the program."""

    def numbers(text: str) -> list[int]:
        found = [int(word) for word in text.split(",")]
        if min(found) < 1:
            raise argparse.ArgumentTypeError(f"{text} has a number below 1")
        return found

    def names_of(known) -> object:
        def names(text: str) -> list[str]:
            found = text.split(",")
            if unknown := [name for name in found if name not in known]:
                raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}: choose from {', '.join(known)}")
            return found

        return names

    def positive(text: str) -> float:
        if not float(text) > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return float(text)

    add = group.add_argument
    add(
        "--workload",
        type=names_of(WORKLOADS),
        metavar="A,B",
        default=list(DEFAULT),
        help=f"what to train: {', '.join(WORKLOADS)} (default: {','.join(DEFAULT)})",
    )
    add("--hosts", type=numbers, metavar="N,N", default=[1, 2, 4, 8], help="numbers of hosts (default: 1,2,4,8)")
    add("--ranks-per-host", type=numbers, metavar="N,N", default=[1, 2], help="ranks of each host (default: 1,2)")
    add(
        "--management",
        type=names_of(MANAGEMENT),
        metavar="A,B",
        default=["lapse2"],
        help=f"techniques: {', '.join(MANAGEMENT)} (default: lapse2)",
    )
    add(
        "--dilation",
        type=positive,
        metavar="X",
        help="how many times slower time goes; so many that the machine is half idle (default: that of the workload)",
    )
    add("--delay-us", type=positive, metavar="X", default=25.0, help="delay of the network, one way (default: 25)")
    add(
        "--gigabits",
        type=positive,
        metavar="X",
        default=10.0,
        help="rate of each host's link, per second (default: 10)",
    )
    add("--epochs", type=int, metavar="N", help="how many each training has (default: depends on the workload)")
    add("--seed", type=int, metavar="N", default=1, help="of the trainings (default: 1)")
    add("--data", type=Path, metavar="FOLDER", help="with wikitext-2/ and fb15k-237/ (default: that of LAPSE_DATA)")
    add("--limit", type=positive, metavar="SECONDS", default=900.0, help="time of one training (default: 900)")


def settings(options: dict, quick: bool) -> list[Setting]:
    """The runs that were asked for, the fewest hosts of each series first."""
    hosts, ranks = ([1, 2], [1]) if quick else (sorted(options["hosts"]), options["ranks_per_host"])
    link = Link(options["delay_us"], options["gigabits"] * 1000)
    workloads = [WORKLOADS[name] for name in (["word2vec"] if quick else options["workload"])]
    return [
        Setting(
            workload=workload,
            management=management,
            hosts=count,
            ranks_per_host=per_host,
            dilation=4.0 if quick else options["dilation"] or workload.dilation,
            link=link,
            epochs=1 if quick else options["epochs"] or workload.epochs,
            seed=options["seed"],
            timeout=options["limit"],
        )
        for workload in workloads
        for management in options["management"]
        for per_host in ranks
        for count in hosts
    ]


# --- running -------------------------------------------------------------------------------------------------------


def run(context: Context) -> Iterator[Row]:
    """Run every setting; the rows appear one by one."""
    first: dict[tuple, tuple[Setting, Outcome]] = {}
    with tempfile.TemporaryDirectory(prefix="lapse-scaling-") as folder:
        for setting in settings(context.options, context.quick):
            try:
                outcome = train(setting, context, Path(folder))
            except Unavailable as reason:
                print(f"skipped: {describe(setting)}: {reason}", file=sys.stderr)
                continue
            except _launch.JobError as error:
                print(f"failed: {describe(setting)}: {error}", file=sys.stderr)
                continue
            base = first.setdefault(setting.series, (setting, outcome))
            yield make_row(context, setting, outcome, *base)


def describe(setting: Setting) -> str:
    """A run in a few words."""
    return f"{setting.workload.name}, {setting.management}, {setting.hosts} hosts x {setting.ranks_per_host} ranks"


def train(setting: Setting, context: Context, folder: Path) -> Outcome:
    """Run a training on emulated hosts.

    Raises
    ------
    Unavailable
        If there cannot be emulated hosts here.
    lapse.bench._launch.JobError
        If it fails or takes too long.
    """
    metrics = folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    program = [sys.executable, *command(setting, context, folder), "--metrics", str(metrics)]
    network = Network(setting.hosts, setting.link.dilated(setting.dilation))
    with network, IdleShare(metrics) as idle:
        printed = _launch.run_on_hosts(network, setting.ranks_per_host, program, setting.dilation, setting.timeout)
    result = next(line for line in reversed(printed.splitlines()) if line.startswith(RESULT))
    epochs = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return Outcome(epochs, json.loads(result[len(RESULT) :]), network.report, idle.in_epochs())


def command(setting: Setting, context: Context, folder: Path) -> list[str]:
    """The program of a training and its options, without ``--metrics``."""
    workload = setting.workload
    if context.quick:
        own = workload.quick
    else:
        chosen = context.options["data"]
        own = (*workload.options, *workload.data(data_folder(Path(chosen) if chosen else None), folder))
    shared = {
        "--management": setting.management,
        "--slow-down": setting.dilation,
        "--epochs": setting.epochs,
        "--seed": setting.seed,
    }
    return [*workload.program, *own, "--no-progress", *(str(word) for pair in shared.items() for word in pair)]


# --- rows ----------------------------------------------------------------------------------------------------------


def make_row(context: Context, setting: Setting, outcome: Outcome, first: Setting, base: Outcome) -> Row:
    """The row of a run, compared with the run of its series on the fewest hosts."""
    times = setting.hosts / first.hosts
    figures = {
        "speed-up": base.seconds / outcome.seconds,
        "MB/host": outcome.mean(lambda line: line["stats"]["bytes_sent"]) / setting.hosts / 1e6,
        "messages/host": outcome.mean(lambda line: line["stats"]["messages_sent"]) / setting.hosts,
        "work": outcome.computed(setting) / max(base.computed(first), 1e-9),
        "computing": outcome.share("compute"),
        "rounds": outcome.share("waiting_for_rounds"),
        "values": outcome.share("waiting_for_values"),
        "meetings": outcome.share("waiting_for_meetings"),
        "rest": outcome.share("rest"),
        setting.workload.quality: outcome.quality(setting.workload.quality),
        "idle": outcome.idle,
        "time-outs": outcome.report.total("timeouts"),
        "MB/host, run": outcome.report.total("bytes_sent") / setting.hosts / 1e6,
    }
    parameters = {
        "management": setting.management,
        "hosts": setting.hosts,
        "ranks/host": setting.ranks_per_host,
        "dilation": setting.dilation,
    }
    row = context.row(
        setting.workload.name,
        parameters,
        outcome.seconds,
        base.seconds / times,
        unit="s/epoch",
        reference_name=f"ideal: the time of {first.hosts} host{'s' * (first.hosts > 1)} in the same setting, divided "
        "by how many times more hosts there are",
        target=target(setting, first),
        note="saturated: a larger --dilation is needed" if outcome.idle < MIN_IDLE else "",
    )
    ranks = setting.hosts * setting.ranks_per_host
    return dataclasses.replace(row, ranks=ranks, figures={**row.figures, **figures})


def target(setting: Setting, first: Setting) -> Target | None:
    """The bound of the ratio that the workload's speed-up means."""
    wanted = setting.workload.targets.get(setting.hosts)
    if wanted is None or first.hosts != 1 or setting.management != "lapse2" or setting.ranks_per_host != 1:
        return None
    return at_most(round(setting.hosts / wanted, 3))


GROUPS = (
    Group(
        "scaling",
        "training on more and more emulated hosts, in dilated time",
        run,
        (Job(0, timeout=6 * 3600),),
        add_options=add_options,
        is_for_request=True,
    ),
)
