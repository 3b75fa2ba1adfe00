"""Inject one random fault into each of many short jobs, and see that each ends with its cause named, or is exact.

    .venv/bin/python tests/faults.py                   200 jobs
    .venv/bin/python tests/faults.py --first 17 --count 1 --show    one of them, with its output
    .venv/bin/python tests/faults.py --only kill --only stop

A seed stands for a job: its ranks, workers, replicated keys, memory, and its fault: which, on which rank, where. A job
that is killed at its limit is repeated alone, since the machine may have been busy. Exit status 1 if a job hung, gave a
wrong result, or ended without a word about the cause.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import random
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import launch
import shim

PROGRAM = Path(__file__).parent / "fault_program.py"
LIMIT = 45  # seconds of a job; an abandoned rank is ended within 15, silence included
SILENCE = 2

PLACES = (
    "before the server",
    "in the server",
    *(f"step {step}" for step in range(0, 15, 2)),
    "between two runs",
    "after the server",
)
#: How often each rank of such a job calls a function at least (`--count-calls` tells): without and with shared memory.
MPI_CALLS = {
    "MPI_Isend": (75, 17),
    "MPI_Irecv": (90, 33),
    "MPI_Test": (900, 600),
    "MPI_Testsome": (70, 16),
    "MPI_Get_count": (75, 17),
}
COLLECTIVE_CALLS = {"MPI_Comm_dup": (2, 2), "MPI_Comm_split_type": (1, 1), "MPI_Barrier": (1, 1)}
#: The same, with the least bytes that count; the first ones are of the start of Python, which has words of its own.
MEMORY_CALLS = {
    ("malloc", 65536): (30, 41),
    ("mmap", 65536): (1, 5),
    ("mmap", 1 << 20): (1, 4),
    ("memfd_create", None): (1, 1),
}
ARGUMENTS = (
    ("num_keys", 61),
    ("num_keys", -1),
    ("value_lengths", 4),
    ("value_lengths", 0),
    ("workers", 0),
    ("workers", "two"),
    ("dtype", "float64"),
    ("dtype", "int32"),
    ("replicated_keys", [3, 3]),
    ("replicated_keys", [1]),
    ("seed", 9),
    ("max_in_flight", 0),
    ("shared_memory", "yes"),
)


@dataclasses.dataclass
class Fault:
    """A job and what happens to it.

    Attributes
    ----------
    kind : str
        For the table.
    spec : dict
        For the program.
    causes : str
        What the output of a job that fails must match.
    may_fail, may_pass : bool
        Whether the job may end with an error, and whether it may go on.
    env : dict
        Variables of the job.
    hosts : int
        Emulated hosts; 0: none.
    cut : tuple or None
        A host to cut off, and for how many seconds; None: for ever.
    link : dict
        Of the emulated hosts.
    """

    kind: str
    spec: dict
    causes: str = ""
    may_fail: bool = True
    may_pass: bool = False
    env: dict = dataclasses.field(default_factory=dict)
    hosts: int = 0
    cut: tuple | None = None
    link: dict = dataclasses.field(default_factory=dict)


def _kill(choice, spec):
    spec.update(what="kill", place=choice.choice(PLACES))
    return Fault("kill", spec, r"signal 9|has died|ended its program")


def _stop(choice, spec):
    spec.update(what="stop", place=choice.choice(PLACES), seconds=choice.choice((0.1, 0.5, 1.5)))
    return Fault("stop", spec, may_fail=False, may_pass=True)


def _exception(choice, spec):
    spec.update(what="exception", place=choice.choice(PLACES))
    return Fault("exception", spec, "injected here")


def _exit(choice, spec):
    spec.update(what="exit", place=choice.choice(PLACES))
    return Fault("sys.exit", spec, r"SystemExit: 3|EXIT CODE: 3|status 3")


def _disk(choice, spec):
    name = choice.choice(("write", "fsync"))  # a rank brings two files to disk at least
    numbers = ("1+", "2+", "1", "3") if name == "write" else ("1+", "2+", "1", "2")
    env = shim.failing((name, choice.choice(numbers), spec["rank"]))
    # MPI writes files in /dev/shm when it starts, and ends the job itself.
    return Fault("full disk", spec, r"No space left|Fatal error in .*Init", may_pass=True, env=env)


def _mpi(choice, spec):
    name, least = choice.choice(list(MPI_CALLS.items()))
    call = (name, choice.randint(1, least[spec["shared"]]), spec["rank"])
    return Fault("failing MPI call", spec, r"MPI error|MPI_ERR", may_pass=True, env=shim.failing(call))


def _collective(choice, spec):
    name, least = choice.choice(list(COLLECTIVE_CALLS.items()))
    call = (name, choice.randint(1, least[spec["shared"]]), spec["rank"])
    return Fault("failing MPI collective", spec, r"MPI error|MPI_ERR", may_pass=True, env=shim.failing(call))


def _memory(choice, spec):
    (name, least), (first, last) = choice.choice(list(MEMORY_CALLS.items()))
    env = shim.failing((name, choice.randint(first, last), spec["rank"]), large_bytes=least)
    return Fault("refused memory", spec, r"emory", may_pass=True, env=env)


def _memory_limit(choice, spec):
    places = ("before the server", "in the server", "step 2", "between two runs")
    spec.update(what="memory limit", place=choice.choice(places), bytes=choice.choice((1 << 20, 16 << 20, 64 << 20)))
    return Fault("memory limit", spec, r"emory|can't start new thread|cannot allocate", may_pass=True)


def _threads(choice, spec):
    env = {
        **shim.failing(("pthread_create", choice.choice(("1", "2", "2+", "3", "4")), spec["rank"])),
        "OPENBLAS_NUM_THREADS": "1",
    }
    return Fault("thread limit", spec, r"thread", may_pass=True, env=env)


def _argument(choice, spec):
    name, value = choice.choice(ARGUMENTS)
    spec.update(arguments={name: value})
    return Fault("wrong arguments", spec, name, may_pass=value == [1] and spec["replicated"] == [1])


def _call(choice, spec):
    spec.update(what="different call", place="step 2")
    return Fault("different calls", spec, "allreduce.*barrier|barrier.*allreduce")


def _cut(choice, spec):
    spec.update(pause=0.2, place="none")
    return Fault(
        "cut link",
        spec,
        "no message from rank",
        env={"LAPSE_SILENCE_SECONDS": str(SILENCE)},
        hosts=3,
        cut=(choice.randint(1, 3), None),
    )


def _brief_cut(choice, spec):
    spec.update(pause=0.1, place="none")
    return Fault(
        "link cut for a while",
        spec,
        may_fail=False,
        may_pass=True,
        hosts=3,
        cut=(choice.randint(1, 3), choice.choice((0.2, 0.6))),
    )


def _slow(choice, spec):
    spec.update(place="none")
    link = choice.choice(({"delay_us": 20_000}, {"rate_mbit": 2}, {"delay_us": 3_000, "rate_mbit": 20}))
    return Fault("slow link", spec, may_fail=False, may_pass=True, hosts=3, link=link)


def _stopped_for_long(choice, spec):
    spec.update(what="stop", place=f"step {choice.randrange(0, 15, 2)}", seconds=60)
    return Fault("stop for long", spec, "no message from rank", env={"LAPSE_SILENCE_SECONDS": str(SILENCE)}, hosts=3)


#: With the weights by which they are drawn.
KINDS = {
    _kill: 4,
    _stop: 3,
    _exception: 5,
    _exit: 3,
    _disk: 3,
    _mpi: 5,
    _collective: 3,
    _memory: 4,
    _memory_limit: 2,
    _threads: 3,
    _argument: 4,
    _call: 1,
}
KINDS_BETWEEN_HOSTS = {_cut: 2, _brief_cut: 1, _slow: 1, _stopped_for_long: 1}


def fault_of(seed, folder, between_hosts=True, most_ranks=8):
    """The job and the fault that a seed stands for."""
    choice = random.Random(seed)
    kinds = {**KINDS, **KINDS_BETWEEN_HOSTS}
    kind = choice.choices(list(kinds), list(kinds.values()))[0]
    is_between = kind in KINDS_BETWEEN_HOSTS
    if is_between and not between_hosts:
        kind, is_between = choice.choices(list(KINDS), list(KINDS.values()))[0], False
    ranks = 3 if is_between else choice.choice((2, 2, 2, 3, 3, 4, 5, 8))
    ranks = min(ranks, most_ranks)
    spec = {
        "seed": seed,
        "folder": str(folder),
        "ranks": ranks,
        "rank": choice.randrange(ranks),
        "workers": choice.choice((1, 1, 2)),
        "replicated": choice.choice(([], [], [1], [0, 7, 30])),
        "shared": choice.random() < 0.4,
    }
    return kind(choice, spec)


# Running ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """What became of a job."""

    seed: int
    fault: Fault
    word: str  # "named", "exact", "not reached" (the call that was to fail), or what is wrong
    seconds: float
    output: str

    @property
    def is_good(self):
        """Whether it is as it should be."""
        return self.word in ("named", "exact", "not reached")


def run_seed(seed, between_hosts=True, most_ranks=8):
    """Run the job of a seed."""
    with tempfile.TemporaryDirectory(prefix="lapse-fault-") as folder:
        fault = fault_of(seed, folder, between_hosts, most_ranks)
        began = time.monotonic()
        job = _run_on_hosts(fault) if fault.hosts else _run_here(fault)
        seconds = time.monotonic() - began
    return Outcome(seed, fault, judge(fault, job), seconds, job.output)


def _program(fault):
    return [str(PROGRAM), json.dumps(fault.spec)]


def _environment(fault):
    return {"LAPSE_STALL_REPORT": "5", "OPENBLAS_NUM_THREADS": "1", **fault.env}


def _run_here(fault):
    return launch.mpirun(fault.spec["ranks"], _program(fault), timeout=LIMIT, env=_environment(fault))


def _run_on_hosts(fault):
    from lapse.bench.hosts.network import Link, Network, environment

    with Network(fault.hosts, Link(**fault.link), can_cut=fault.cut is not None) as network:
        done = threading.Event()
        cutter = threading.Thread(target=_cut_when_working, args=(network, fault, done))
        cutter.start()
        command = network.command(fault.spec["ranks"] // fault.hosts, [sys.executable, *_program(fault)])
        job = launch.run(command, LIMIT, environment(base=_environment(fault)))
        done.set()
        cutter.join()
    return job


def _cut_when_working(network, fault, done):
    working = Path(fault.spec["folder"], "working")
    while fault.cut and not done.is_set():
        if working.exists():
            host, seconds = fault.cut
            network.cut(host)
            if seconds is not None:
                time.sleep(seconds)
                network.join(host)
            return
        time.sleep(0.02)


def judge(fault, job):
    """What became of a job, in a word; or what is wrong with it."""
    if job.timed_out:
        return f"hung: killed after {LIMIT} s"
    if "WRONG" in job.output:
        return "wrong values"
    if job.returncode == 0:
        if job.stdout.count("exact") != fault.spec["ranks"]:
            return "ended with status 0, but not all ranks came to the end"
        if "LAPSE_FAIL" in fault.env and "shim: call" not in job.output:
            return "not reached"
        return "exact" if fault.may_pass else "went on, though it could not"
    if not fault.may_fail:
        return f"failed with status {job.returncode}, though it could go on"
    said = f"{job.output}\nstatus {job.returncode}"
    return "named" if re.search(fault.causes, said, re.DOTALL) else f"no word about the cause ({fault.causes})"


def run_all(seeds, jobs=3, between_hosts=True, most_ranks=8, report=None):
    """Run the jobs of seeds, several at a time; returns their outcomes.

    Parameters
    ----------
    seeds : sequence of int
    jobs : int
        At a time.
    between_hosts : bool
        Whether there can be emulated hosts.
    most_ranks : int
    report : callable, optional
        Called with each outcome.
    """
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(run_seed, seed, between_hosts, most_ranks) for seed in seeds]
        for future in concurrent.futures.as_completed(waiting):
            outcomes.append(future.result())
            if report:
                report(outcomes[-1])
    for number, outcome in enumerate(outcomes):
        if outcome.word.startswith("hung"):
            outcomes[number] = run_seed(outcome.seed, between_hosts, most_ranks)
    return outcomes


def count_calls(ranks, shared, large_bytes=65536):
    """How often the ranks of a job without a fault call what can fail: by function the least and the most of a rank."""
    spec = {"seed": 1, "ranks": ranks, "rank": 0, "workers": 1, "replicated": [1], "shared": shared}
    counts = collections.defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="lapse-fault-") as folder:
        env = {**shim.failing(("none", 1), large_bytes=large_bytes), "LAPSE_FAIL_COUNT": f"{folder}/calls"}
        job = launch.mpirun(ranks, [PROGRAM, json.dumps({**spec, "folder": folder})], timeout=LIMIT, env=env)
        job.check()
        for rank in range(ranks):
            for line in Path(f"{folder}/calls.{rank}").read_text().splitlines():
                name, count = line.split()
                counts[name].append(int(count))
    return {name: (min(some), max(some)) for name, some in sorted(counts.items())}


def can_emulate_hosts():
    """Why there cannot be emulated hosts here, or None."""
    from lapse.bench.hosts.network import Network, Unavailable

    try:
        with Network(1):
            return None
    except Unavailable as reason:
        return str(reason)


def table(outcomes):
    """What was covered, a line for each kind of fault."""
    by_kind = collections.defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.fault.kind].append(outcome)
    head = f"{'fault':<24}{'jobs':>6}{'ended, named':>14}{'went on, exact':>16}{'not reached':>13}"
    lines = [f"{head}{'wrong':>7}{'slowest':>10}"]
    for kind, some in sorted(by_kind.items()):
        words = collections.Counter(outcome.word for outcome in some)
        wrong = sum(not outcome.is_good for outcome in some)
        slowest = max(outcome.seconds for outcome in some)
        counts = f"{len(some):>6}{words['named']:>14}{words['exact']:>16}{words['not reached']:>13}{wrong:>7}"
        lines.append(f"{kind:<24}{counts}{slowest:>8.1f} s")
    return "\n".join(lines)


def main(argv=None):
    """Run what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, metavar="N", help="how many jobs (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed (default 0)")
    parser.add_argument("--jobs", type=int, default=3, metavar="N", help="at a time (default %(default)s)")
    parser.add_argument("--only", action="append", metavar="KIND", help="only faults of this kind; repeatable")
    parser.add_argument("--show", action="store_true", help="show the output of each job")
    parser.add_argument("--count-calls", action="store_true", help="only count what can fail, in jobs without a fault")
    options = parser.parse_args(argv)
    if options.count_calls:
        for ranks, shared in ((2, False), (2, True), (8, False), (8, True)):
            print(f"{ranks} ranks, {'shared memory' if shared else 'messages'}: {count_calls(ranks, shared)}")
        return 0
    reason = can_emulate_hosts()
    if reason:
        print(f"without emulated hosts: {reason}")
    seeds = range(options.first, options.first + options.count)
    if options.only:
        seeds = [seed for seed in seeds if fault_of(seed, "", reason is None).kind in options.only]
    began = time.monotonic()
    outcomes = run_all(seeds, options.jobs, reason is None, report=lambda outcome: _show(outcome, options.show))
    print(f"\n{table(outcomes)}\n")
    wrong = [outcome for outcome in outcomes if not outcome.is_good]
    for outcome in wrong:
        print(f"seed {outcome.seed}, {outcome.fault.kind}: {outcome.word}\n{outcome.fault}\n{outcome.output[-4000:]}\n")
    good = len(outcomes) - len(wrong)
    print(f"{good} of {len(outcomes)} faults ended as they should ({time.monotonic() - began:.0f} s)")
    return 1 if wrong or not outcomes else 0


def _show(outcome, with_output):
    rank, place = outcome.fault.spec["rank"], outcome.fault.spec.get("place", "")
    calls = outcome.fault.env.get("LAPSE_FAIL", "")
    print(
        f"seed {outcome.seed:>4}  {outcome.fault.kind:<24}{outcome.fault.spec['ranks']} ranks, rank {rank} {place}"
        f"{calls}: {outcome.word} ({outcome.seconds:.1f} s)",
        flush=True,
    )
    if with_output:
        print(outcome.output)


if __name__ == "__main__":
    sys.exit(main())
