"""Run what exercises the compiled code under gcc's sanitizers: no report may be left that is not explained.

    .venv/bin/python tests/sanitize.py                          address, undefined, thread: half an hour
    .venv/bin/python tests/sanitize.py --only thread --quick    one of them, in 2 minutes
    .venv/bin/python tests/sanitize.py --only thread --size 8 --memory pairs -k relocation

`make sanitize` runs it. The extension modules are built once more, below build/, with the flags of the sanitizer
(LAPSE_SANITIZE, see setup.py); the installed ones stay as they are. Then run: the tests of stores, protocols,
samplers and kernels in one process, with threads and with the simulated network; the tests under mpirun, by messages
and in shared memory; and a short training of each application. The interpreter and MPI are not instrumented: what they
call and what they do to each other is explained in `tests/sanitizers/`, one file of suppressions per sanitizer.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import launch
import run
from app import write_languages, write_topics

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = ("address", "undefined", "thread")
#: The library that must be loaded before all others, as the interpreter is not linked with it.
RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
SETTINGS = {
    "address": {
        "detect_leaks": 0,  # the interpreter keeps memory to its end
        "allocator_may_return_null": 1,  # some tests ask for more than there is
        "detect_stack_use_after_return": 1,
    },
    "undefined": {"print_stacktrace": 1},
    "thread": {
        "die_after_fork": 0,  # some tests fork a process that has threads
        "exitcode": 0,  # reports are counted here
        "history_size": 4,
    },
}
ENVIRONMENT = {
    "address": {"PYTHONMALLOC": "malloc"},  # each object is a block of its own, with guarded ends
    "undefined": {},
    # UCX, below MPI, takes locks when a thread's stack is given back, when the sanitizer has left the thread already.
    "thread": {"UCX_MEM_EVENTS": "no"},
}
#: Instrumented code is up to ten times slower.
SLOWER = {"LAPSE_TEST_DEADLINE": "300", "LAPSE_TEST_ROUNDS": "30", "LAPSE_STALL_REPORT": "0"}
#: Tests of how much memory is used or of how long something takes: a sanitizer uses a multiple.
MEASURING = (
    "tests/unit/store/test_store.py::test_bytes_per_key",
    "tests/unit/store/test_store.py::test_a_server_gives_its_memory_back",  # the address sanitizer keeps it
    "tests/unit/store/test_store.py::test_operations_leave_no_memory_behind",
    "tests/mpi/test_replication.py::test_a_million_replicated_keys",
    "tests/mpi/test_shared_memory.py::test_memory_of_values_that_nobody_wrote_is_not_taken",
)
#: Pure Python, or about files; nothing of the compiled code that the others do not reach.
NOT_COMPILED = (
    "tests/unit/test_batch_scripts.py",  # bash does not start with the thread sanitizer
    "tests/unit/test_docs.py",
    "tests/unit/test_floors.py",
    "tests/unit/test_launchers.py",
    "tests/unit/bench/test_bench.py",
    "tests/unit/bench/test_scaling.py",
    "tests/unit/bench/test_scaling_model.py",
)
#: Numbers of ranks and kinds of memory: see `run.MEMORY`.
SIZES = ((2, "messages"), (3, "pairs"), (4, "shared"))
QUICK_SIZES = ((2, "messages"), (3, "pairs"))
QUICK_UNIT = "test_threads or test_latches or test_lending"
QUICK_MPI = "test_everything_at_once or test_borrowing"
MOST_SHOWN = 5  # different reports of a part
REPORT = re.compile(r"^SUMMARY: .*|^\S+:\d+:\d+: runtime error: .*", re.MULTILINE)

#: Written into a folder of its own, which the interpreter looks into at its start: what was loaded is known at its end.
NOTE_MODULES = """\
import atexit, os, sys
def note():
    names = [name for name, module in list(sys.modules.items())
             if name.startswith("lapse.") and str(getattr(module, "__file__", "")).endswith(".so")]
    with open(os.path.join({folder!r}, f"modules-{{os.getpid()}}"), "w") as file:
        file.write("\\n".join(names))
atexit.register(note)
"""


@dataclass
class Part:
    """Something that was run, and what came out of it."""

    name: str
    outcome: str
    seconds: float
    failed: bool
    reports: Counter = field(default_factory=Counter)

    def line(self) -> str:
        found = f"{self.reports.total()} reports"
        return f"  {self.name:<28} {self.outcome}, {found}  ({self.seconds:.0f} s)"


def compiler() -> list[str]:
    """The C compiler that the modules are built with."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "gcc")


def runtime_of(sanitizer: str) -> Path:
    """The sanitizer's library; raises LookupError, with the reason, where it cannot be used."""
    command = compiler()
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        name = subprocess.run(
            [*command, f"-print-file-name={RUNTIMES[sanitizer]}"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise LookupError(f"the compiler {shlex.join(command)} does not run: {error}") from None
    if "Free Software Foundation" not in version:
        raise LookupError(f"{shlex.join(command)} is not gcc, whose runtime libraries are needed")
    path = Path(name)
    if not path.is_absolute() or not path.exists():
        raise LookupError(f"gcc has no {RUNTIMES[sanitizer]} (Debian: the package lib{path.stem[3:]} of this gcc)")
    return path.resolve()


def start_of(runtime: Path) -> list[str]:
    """The words in front of the interpreter; raises LookupError where it does not start with this library."""
    words = ["env", f"LD_PRELOAD={runtime}"]
    # A kernel that spreads addresses more than the thread sanitizer of an older gcc expects: without spreading.
    tries = (words, ["setarch", platform.machine(), "-R", *words])
    for prefix in tries:
        job = launch.run([*prefix, sys.executable, "-c", "print('started')"], timeout=60)
        if job.returncode == 0 and "started" in job.stdout:
            return prefix
    raise LookupError(f"Python does not start with {runtime}: {job.output.strip()[-300:]}")


class Build:
    """The modules of one sanitizer, and how programs are started with them."""

    def __init__(self, sanitizer: str, scratch: Path):
        self.sanitizer = sanitizer
        self.prefix = start_of(runtime_of(sanitizer))
        self.folder = self._build()
        self.modules = {
            str(path.relative_to(self.folder)).partition(".")[0].replace(os.sep, ".")
            for path in self.folder.rglob("*.so")
        }
        self.scratch = scratch / sanitizer
        self.hook = self.scratch / "hook"
        self.hook.mkdir(parents=True)
        (self.hook / "sitecustomize.py").write_text(NOTE_MODULES.format(folder=str(self.scratch)))
        os.chdir(self.scratch)  # not the root of the project, whose modules would be found first

    def _build(self) -> Path:
        start = time.monotonic()
        print(f"\n===== {self.sanitizer}: building", flush=True)
        env = {**os.environ, "LAPSE_SANITIZE": self.sanitizer}
        command = [sys.executable, "setup.py", "--quiet", "build"]
        job = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if job.returncode:
            sys.exit(f"the build failed:\n{job.stdout[-1000:]}{job.stderr[-3000:]}")
        print(f"built in {time.monotonic() - start:.0f} s", flush=True)
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        (folder,) = ROOT.glob(f"build/*-{self.sanitizer}/lib.{tag}")
        return folder

    def suppressions(self, memory: str | None) -> Path:
        """A file of what is not to be reported: more if ranks share memory, since only one of them is seen."""
        names = [f"{self.sanitizer}.txt"] + [f"{self.sanitizer}.shared.txt"] * (memory in ("shared", "pairs"))
        paths = [ROOT / "tests" / "sanitizers" / name for name in names]
        chosen = self.scratch / f"suppressions.{memory}"
        chosen.write_text("\n".join(path.read_text() for path in paths if path.exists()))
        return chosen

    def environment(self, memory: str | None = None) -> dict[str, str]:
        """The variables of a program. `memory`: what its ranks share, see `run.MEMORY`; None: it has one."""
        suppressions = self.suppressions(memory)
        settings = {**SETTINGS[self.sanitizer], "log_path": self.scratch / "report", "suppressions": suppressions}
        variable = {"address": "ASAN_OPTIONS", "undefined": "UBSAN_OPTIONS", "thread": "TSAN_OPTIONS"}[self.sanitizer]
        return {
            "PYTHONPATH": os.pathsep.join(map(str, (self.hook, self.folder, ROOT / "tests"))),
            variable: ":".join(f"{name}={value}" for name, value in settings.items()),
            **ENVIRONMENT[self.sanitizer],
            **SLOWER,
            **(run.MEMORY[memory] if memory else {}),
        }

    def check(self) -> None:
        """Raise unless a program gets the modules of this build."""
        job = launch.run(
            [*self.prefix, sys.executable, "-c", "from lapse import _store; print(_store.__file__)"],
            env=self.environment(),
        ).check()
        if not job.stdout.strip().startswith(str(self.folder)):
            raise AssertionError(f"{job.stdout.strip()} was loaded, not the module in {self.folder}")

    def take_reports(self) -> Counter:
        """Count the reports since the last call, by what they are about; show some."""
        found, texts = Counter(), {}
        for path in sorted(self.scratch.glob("report*")):
            for summary, text in reports_in(path.read_text(errors="replace")):
                found[summary] += 1
                texts.setdefault(summary, text)
            path.unlink()
        for summary, _ in found.most_common(MOST_SHOWN):
            print(f"----- {found[summary]} times:\n{texts[summary][:4000]}", flush=True)
        for summary, count in found.most_common()[MOST_SHOWN:]:
            print(f"----- {count} times: {summary}", flush=True)
        return found

    def loaded_modules(self) -> set[str]:
        """The modules of this build that any program had loaded."""
        return self.modules & {
            name for path in self.scratch.glob("modules-*") for name in path.read_text().splitlines()
        }


def reports_in(text: str) -> list[tuple[str, str]]:
    """The reports in what a program has written: what each is about, and all of it."""
    parts = re.split(r"(?m)^=+$|^(?=\S+:\d+:\d+: runtime error: )", text)
    found = ((REPORT.search(part), part.strip()) for part in parts)
    return [(summary[0], part) for summary, part in found if summary]


class SanitizedPhase(run.Phase):
    """A run of pytest whose interpreters have the sanitizer."""

    def __init__(self, build: Build, name, folder, size, options, memory):
        super().__init__(name, folder, size, options, build.environment(memory))
        self.prefix = build.prefix

    def _command(self):
        command = super()._command()
        at = command.index(sys.executable)
        return [*command[:at], *self.prefix, *command[at:]]


def run_tests(build: Build, name: str, folder: str, size, selection, memory=None) -> Part:
    """Run some tests."""
    ignored = [f"--ignore={ROOT / path}" for path in NOT_COMPILED]
    deselected = [f"--deselect={test}" for test in MEASURING]  # by their names below the root, as pytest has them
    args = ["--deadline", "3600", *(["-k", selection] if selection else []), "--", *ignored, *deselected]
    phase = SanitizedPhase(build, f"{build.sanitizer}: {name}", folder, size, run.parse_arguments(args), memory)
    phase.run()
    failed = phase.count["failed"] > 0 or not phase.count["passed"]
    outcome = f"{phase.count['passed']} tests passed, {phase.count['failed']} failed"
    return Part(name, outcome, phase.seconds, failed, build.take_reports())


def trainings(scratch: Path):
    """Short trainings, each as (application, ranks, kind of memory, options)."""
    text, graph = scratch / "topics.txt", scratch / "languages"
    if not text.exists():
        write_topics(text, sentences=300)
        write_languages(graph, people=60)
    words = ("--corpus", text, "--min-count", 1, "--dim", 16, "--workers", 2)
    triples = ("--dataset", graph, "--dim", 8, "--batch-size", 16, "--eval-every", 1, "--workers", 2)
    ratings = ("--rows", 100, "--columns", 40, "--entries", 2000, "--rank", 8, "--workers", 2)
    yield "simple", 3, "pairs", ()
    yield "word2vec", 3, "pairs", (*words, "--epochs", 1, "--sampling-scheme", "local")
    yield "word2vec", 2, "messages", (*words, "--epochs", 1, "--combine", "adaptive", "--wire", "bfloat16")
    yield "word2vec", 2, "shared", (*words, "--epochs", 1, "--management", "classic", "--negatives-per", "pair")
    for model, memory in (("complex", "messages"), ("rescal", "shared"), ("distmult", "pairs"), ("transe", "messages")):
        yield "kge", 2 if memory != "pairs" else 3, memory, (*triples, "--epochs", 1, "--model", model)
    for algorithm, memory in (("dsgd", "messages"), ("columnwise", "pairs"), ("plain", "shared")):
        yield "mf", 2 if memory != "pairs" else 3, memory, (*ratings, "--epochs", 2, "--algorithm", algorithm)
    yield "clicks", 3, "pairs", ("--examples", 4096, "--keys", 1000, "--epochs", 1, "--workers", 2)


def run_trainings(build: Build) -> Part:
    """Train each application for a moment."""
    print(f"\n===== {build.sanitizer}: applications", flush=True)
    start, failures, names = time.monotonic(), 0, Counter()
    for name, ranks, memory, options in trainings(build.scratch):
        env = build.environment(memory)
        command = [launch.mpirun_command(), "-n", ranks, *build.prefix, sys.executable, "-m", f"lapse.apps.{name}"]
        job = launch.run([*command, *options, "--no-progress"], timeout=240, env=env)
        names[name] += 1
        passed = job.returncode == 0 and "RESULT" in job.stdout
        print(f"{name} on {ranks} ranks, {memory}: {'trained' if passed else 'FAILED'}", flush=True)
        if not passed:
            failures += 1
            print(job.output[-3000:], flush=True)
    outcome = f"{names.total()} trainings of {', '.join(names)}, {failures} failed"
    return Part("applications", outcome, time.monotonic() - start, failures > 0, build.take_reports())


def sanitize(build: Build, args: argparse.Namespace) -> list[Part]:
    """Run everything with one sanitizer."""
    build.check()
    chosen = [(n, memory) for n in args.size or () for memory in args.memory or ["messages"]]
    parts = []
    if not chosen:
        selection = args.k or (QUICK_UNIT if args.quick else None)
        parts.append(run_tests(build, "one process", "unit", None, selection))
    for n, memory in chosen or (QUICK_SIZES if args.quick else SIZES):
        selection = args.k or (QUICK_MPI if args.quick else None)
        parts.append(run_tests(build, f"{n} ranks, {memory}", "mpi", n, selection, memory))
    if not chosen and not args.k and not args.quick:
        parts.append(run_trainings(build))
    return parts


def parse_arguments(argv=None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SANITIZERS, action="append", help="only this sanitizer; repeatable")
    parser.add_argument("--quick", action="store_true", help="fewer tests, no applications")
    parser.add_argument("-k", metavar="EXPR", help="only tests that match, as with pytest; no applications")
    parser.add_argument(
        "--size", type=int, action="append", metavar="N", help="only the tests under mpirun, on N ranks; repeatable"
    )
    parser.add_argument(
        "--memory", choices=run.MEMORY, action="append", help="with --size: how ranks share memory; repeatable"
    )
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what was started, too
    lines, failed, ran = [], False, False
    with tempfile.TemporaryDirectory(prefix="lapse-sanitize-") as scratch:
        for sanitizer in args.only or SANITIZERS:
            try:
                build = Build(sanitizer, Path(scratch))
            except LookupError as reason:
                lines.append(f"{sanitizer}: skipped: {reason}")
                continue
            parts = sanitize(build, args)
            ran = True
            failed |= any(part.failed or part.reports for part in parts)
            reports = sum(part.reports.total() for part in parts)
            loaded = build.loaded_modules()
            lines.append(f"{sanitizer}: {reports} reports; {len(loaded)} of {len(build.modules)} compiled modules used")
            lines += [part.line() for part in parts]
            if not (args.quick or args.k or args.size):
                lines += [f"  not used: {', '.join(sorted(build.modules - loaded))}"] * (loaded != build.modules)
        os.chdir(ROOT)
    print("\n" + "\n".join(lines))
    print("FAILED" if failed else "no report is left" if ran else "nothing was run")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
