"""The program: chooses groups, starts their jobs, prints tables, writes JSON lines and pictures."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from lapse.bench import _launch, _plot, _tables
from lapse.bench._groups import RENAMED, Group, load
from lapse.bench._rows import Row

SUMMARY = "measure this machine: parameter access, messages, replication, sampling, memory, applications"

DESCRIPTION = """\
Measure what the parameter server costs on this machine.

Each figure is shown with a reference that was measured in turns with it in the same run (a copy in C, numpy.take, a
bare MPI ping-pong, ...), so that the ratio is meaningful on a shared machine. Groups that need several ranks start
mpirun themselves. benchmarks/README.md in the source tree explains how to read each table.
"""

EXAMPLES = """\
examples:
  python -m lapse bench                                all groups but rounds and scaling, at most some minutes each
  python -m lapse bench --list                         list the groups
  python -m lapse bench local --full                   one group, with all of its parameters
  python -m lapse bench scaling --workload word2vec --hosts 1,2,4 --ranks-per-host 1
                                                       emulated hosts (as root), in dilated time
  python -m lapse bench local remote --json out.jsonl --plot pictures

Each line of the JSON file is a row of a table: group, name, parameters, value, unit, reference, reference_name, ratio
(median over the rounds), quartiles, target, reached, ranks, workers. Its first line describes the machine.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the program to the caller's parser."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="which (default: all but rounds and scaling)")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--quick", action="store_true", help="smoke test of some seconds: all code paths, meaningless figures"
    )
    extent.add_argument("--full", action="store_true", help="every combination of parameters, and more rounds")
    parser.add_argument("--list", action="store_true", help="list the groups and exit")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the rows to this file, one JSON object per line"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FOLDER", help="draw a picture of each group into this folder (needs matplotlib)"
    )
    for group in load().values():
        if group.add_options is not None:
            group.add_options(parser.add_argument_group(f"options of {group.name}"))


def main(argv: list[str] | None = None) -> int:
    """``python -m lapse.bench``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lapse.bench")
    add_options(parser)
    return run(parser, parser.parse_args(argv))


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run the program with parsed options; returns the exit status, 1 if a job failed. (A missed target is none.)"""
    rank, size = _launch.ranks_around()
    if size > 1:  # every rank gets here: rank 0 reports for all
        if rank == 0:
            print("error: bench starts mpirun itself: run it without mpirun", file=sys.stderr)
        return 2
    groups = load()
    if args.list:
        print("\n".join(f"{name:<14}{_title(group)}" for name, group in groups.items()))
        return 0
    chosen = [_current_name(name) for name in args.groups]
    unknown = [name for name in chosen if name not in groups]
    if unknown:
        parser.error(f"no group {', '.join(unknown)}: choose from {', '.join(groups)}")
    if args.plot and not _plot.is_there():
        parser.error("--plot needs matplotlib: pip install 'lapse[plot]'")
    usual = [name for name, group in groups.items() if not group.is_for_request]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    return _measure([groups[name] for name in dict.fromkeys(chosen or usual)], args)


def _leave(number: int, frame: FrameType | None) -> None:
    """End with the jobs ended, as an interrupt does."""
    sys.exit(128 + number)


def _title(group: Group) -> str:
    return f"{group.title} (only if named)" if group.is_for_request else group.title


def _current_name(name: str) -> str:
    """The name of a group as it is now, with a hint on stderr if a former one was given."""
    if name not in RENAMED:
        return name
    print(f"note: the group {name} is now called {RENAMED[name]}", file=sys.stderr)
    return RENAMED[name]


def _measure(groups: list[Group], args: argparse.Namespace) -> int:
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    everything, failures = [], []
    with _json_file(args.json) as write:
        write(
            {"machine": machine, "quick": args.quick, "full": args.full, "time": time.strftime("%FT%TZ", time.gmtime())}
        )
        for group in groups:
            rows = []
            for row in _rows_of(group, args, failures):
                rows.append(row)
                write(row.as_dict())
            _show(group, rows, args.plot)
            everything += rows
    targets = "" if args.quick else _tables.of_targets(everything)
    print(f"\n== targets\n{targets}" if targets else "", end="\n" if targets else "")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _rows_of(group: Group, args: argparse.Namespace, failures: list[str]) -> Iterator[Row]:
    """The rows of all jobs of a group; a failed job is recorded, and the others still run."""
    extent = "quick" if args.quick else "full" if args.full else ""
    for number, job in group.chosen_jobs(args.quick, args.full):
        try:
            yield from _launch.rows_of(group, number, job, extent, _options_of(group, args))
        except _launch.JobError as error:
            failures.append(str(error))


def _options_of(group: Group, args: argparse.Namespace) -> dict:
    if group.add_options is None:
        return {}
    parser = argparse.ArgumentParser()
    group.add_options(parser.add_argument_group())
    return {name: getattr(args, name) for name in vars(parser.parse_args([]))}


def _show(group: Group, rows: list[Row], folder: Path | None) -> None:
    print(f"\n== {group.name}: {group.title}")
    print(_tables.of_group(rows) if rows else "no figures", flush=True)
    if folder is not None and rows:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"picture: {_plot.draw(folder, group.title, rows)}")


@contextlib.contextmanager
def _json_file(path: Path | None):
    """A function that writes an object as a line at once; without a path it does nothing."""
    if path is None:
        yield lambda line: None
        return
    with open(path, "w", encoding="utf-8", buffering=1) as file:
        yield lambda line: file.write(json.dumps(line) + "\n")


def describe_machine() -> dict:
    """The properties of this machine that the figures depend on."""
    import numpy

    import lapse
    from lapse import _mpi_loader

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "lapse": lapse.__version__,
        "processor": _processor(),
        "cores": cores,
        "MPI": textwrap.shorten(_mpi_loader.describe_build(), 60),
        "Python": platform.python_version(),
        "NumPy": numpy.__version__,
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
