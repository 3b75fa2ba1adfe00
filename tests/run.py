"""Run all tests: on one process, then under `mpirun` on several numbers of ranks.

    .venv/bin/python tests/run.py                         everything
    .venv/bin/python tests/run.py --phase mpi --size 3    the tests under MPI, on 3 ranks
    .venv/bin/python tests/run.py -k relocation           the tests whose name matches

The last line is ``N passed, N failed`` over all phases. A test under MPI that was skipped for
another reason than its rank count has failed. What follows `--` goes to pytest.
"""

import argparse
import collections
import re
import sys
import tempfile
import time
from pathlib import Path

import launch
import notes

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("unit", "mpi", "scenarios", "apps", "packaging")  # folders of tests/
#: Those whose tests are shared out among as many processes as there are cores, up to some: tests of one process, and
#: tests that start jobs of their own, which wait more than they compute.
SHARED_OUT = ("unit", "scenarios", "apps")
MOST_PROCESSES = 4
#: How ranks reach each other's values in the phase mpi: by messages, as all ranks of this host do by
#: default, or two by two, as if there were several hosts.
MEMORY = {
    "messages": {"LAPSE_SHARED_MEMORY": "0", "LAPSE_SHARED_MEMORY_RANKS": ""},
    "shared": {"LAPSE_SHARED_MEMORY": "", "LAPSE_SHARED_MEMORY_RANKS": ""},
    "pairs": {"LAPSE_SHARED_MEMORY": "", "LAPSE_SHARED_MEMORY_RANKS": "2"},
}
#: Numbers of ranks and kinds of memory that are tested. Pairs send messages, too.
RUNS = ((1, "shared"), (2, "messages"), (2, "shared"), (3, "pairs"), (4, "shared"), (4, "pairs"), (8, "messages"))
#: So many of the slowest tests of a phase are named, if they take so many seconds.
SLOWEST, SLOW_FROM = 10, 10
NOTHING_COLLECTED = 5  # exit status of pytest
PYTEST_FRAME = re.compile(r"/_pytest/|/pluggy/|/xdist/|/execnet/|/pytest/__main__|<frozen runpy>")


class Phase:
    """One run of pytest, and what came out of it."""

    def __init__(self, name, folder, size, options, env=None):
        self.name = name
        self.folder = folder
        self.size = size  # number of ranks; None without MPI
        self.env = env or {}
        self.options = options
        self.problems = []
        self.count = collections.Counter()

    def run(self):
        """Run pytest under the deadline of the phase and gather the outcomes."""
        print(f"\n===== {self.name}", flush=True)
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="lapse-tests-") as folder:
            env = {notes.FOLDER_VARIABLE: folder, **self.env}
            status = launch.stream(self._command(), self.options.deadline, env)
            self._gather(Path(folder), status)
        self.seconds = time.monotonic() - start
        for problem in self.problems:
            print(f"{self.name}: {problem}", flush=True)

    def _command(self):
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        pytest += ["--durations", SLOWEST, "--durations-min", SLOW_FROM]
        if self.folder in SHARED_OUT:
            pytest += ["--numprocesses", "auto", "--maxprocesses", MOST_PROCESSES, "--dist", "worksteal"]
        if self.size is not None:
            pytest = [launch.mpirun_command(), "-n", self.size, *pytest, *launch.PYTEST_UNDER_MPI]
        selection = ["-k", self.options.k] if self.options.k else []
        return [*pytest, *selection, *self.options.pytest, str(ROOT / "tests" / self.folder)]

    def _gather(self, folder, status):
        """Count the outcomes; everything that is not as it should be is a problem."""
        outcomes = notes.read_outcomes(folder)
        for outcome in outcomes.values():
            self.count[outcome["outcome"]] += 1
            if self._is_wrongly_skipped(outcome):
                self.count.update(failed=1, skipped=-1)
                self.problems.append(f"skipped: {outcome['test']}: {outcome['reason']}")
        collected = folder / "collected"
        total = int(collected.read_text()) if collected.exists() else 0
        if status is None:
            self.problems.append(f"killed after {self.options.deadline:.0f} s")
        elif status == NOTHING_COLLECTED and self.options.k:
            status = 0
        elif status != 0:
            self.problems.append(f"pytest ended with status {status}")
        if len(outcomes) < total:
            self.count["failed"] += 1  # the test that was under way
            self.problems.append(f"{total - len(outcomes)} of {total} tests have no outcome")
            self._show_failures(outcomes)
        if len(outcomes) < total or self.folder in SHARED_OUT:  # there others go on when a process dies
            self._show_what_was_left(folder)
        if status != 0 and not self.count["failed"]:
            self.count["failed"] += 1

    def _is_wrongly_skipped(self, outcome):
        return (
            self.size is not None
            and outcome["outcome"] == "skipped"
            and not outcome["xfail"]
            and not outcome["reason"].startswith(notes.RANK_COUNT_REASONS)
        )

    def _show_failures(self, outcomes):
        """Show what pytest, had it come to its end, would have shown there."""
        for name, outcome in outcomes.items():
            if outcome["outcome"] == "failed":
                print(f"----- {name}\n{outcome['text']}", flush=True)

    def _show_what_was_left(self, folder):
        """Show where each process was when the run ended early."""
        for process in sorted({path.stem for path in folder.glob("*.*")} - {Path(notes.RESULTS).stem}):
            for kind, title in (("running", "was in"), ("failure", "had failed"), ("stacks", "its stacks")):
                path = folder / f"{process}.{kind}"
                text = path.read_text(errors="replace") if path.exists() else ""
                lines = [line for line in text.splitlines() if not PYTEST_FRAME.search(line)]
                if lines:
                    print(f"[{process}] {title}: " + "\n".join(lines), flush=True)

    def summary(self):
        """Return a line of the table at the end."""
        counts = ", ".join(f"{self.count[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
        return f"{self.name:<22} {counts}  ({self.seconds:.0f} s)"


def phases(options):
    """Return the phases that were asked for, in order."""
    present = [name for name in PHASES if any((ROOT / "tests" / name).rglob("test_*.py"))]
    chosen = []
    for name in options.phase or present:
        if name == "mpi":
            chosen += [
                Phase(f"mpi, n = {n}, {memory}", name, n, options, MEMORY[memory]) for n, memory in runs(options)
            ]
        else:
            chosen.append(Phase(name, name, None, options))
    return chosen


def runs(options):
    """Return the pairs of rank count and kind of memory that were asked for."""
    sizes = options.size or sorted({n for n, _ in RUNS})
    chosen = [(n, memory) for n, memory in RUNS if n in sizes]
    if options.memory:
        chosen = [(n, memory) for n in sizes for memory in options.memory]
    return chosen or [(n, "shared") for n in sizes]


def parse_arguments(argv):
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", action="append", choices=PHASES, help="only this one; repeatable")
    parser.add_argument(
        "--size", action="append", type=int, metavar="N", help="number of ranks of the phase mpi; repeatable"
    )
    parser.add_argument(
        "--memory",
        action="append",
        choices=MEMORY,
        help="how ranks reach each other's values in the phase mpi; repeatable",
    )
    parser.add_argument("-k", metavar="EXPR", help="only tests that match, as with pytest")
    parser.add_argument(
        "--deadline", type=float, default=1200, metavar="SECONDS", help="when a phase is killed (default 1200)"
    )
    parser.add_argument("pytest", nargs="*", help="options of pytest, after --")
    return parser.parse_args(argv)


def main(argv=None):
    """Run the phases, print the table; return the exit status."""
    chosen = phases(parse_arguments(argv))
    for phase in chosen:
        phase.run()
    total = sum((phase.count for phase in chosen), collections.Counter())
    print("\n" + "\n".join(phase.summary() for phase in chosen) + "\n")
    skipped = f", {total['skipped']} skipped" if total["skipped"] else ""
    print(f"{total['passed']} passed, {total['failed']} failed{skipped}")
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
