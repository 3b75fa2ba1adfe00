"""Run the batch scripts of hostfiles/slurm/ under a real Slurm: two virtual nodes on this machine, made for it.

    .venv/bin/python tests/slurm.py               everything that fits to the MPI of this build
    .venv/bin/python tests/slurm.py --only mpirun.sbatch
    .venv/bin/python tests/slurm.py --keep /tmp/slurm    leave logs and outputs there

Each script trains for longer than its time limit: it is stopped, saves, goes back into the queue and resumes, until it
is done; the loss must be that of a run that was not stopped. Needs slurmctld, slurmd and munged, and no rights beyond
those of the user; without them it is skipped with the reason. Takes some 4 minutes, most of them spent asleep; Slurm
is taken down however it ends. Exit status 1 if something failed.
"""

import argparse
import contextlib
import json
import math
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import launch
import slurm_cluster
from lapse import _build_info, _mpi_loader

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "hostfiles" / "slurm"
EPOCHS = 30
TRAINING = ("mf", "--rows", 1000, "--columns", 500, "--algorithm", "dsgd", "--epochs", EPOCHS, "--no-progress")
SLOW = ("--slow-down", 5000)  # some 2 s per epoch; a job with a limit of one minute is stopped after 20 to 50 s
LIMIT = 600  # seconds until a job must be done, also on a busy machine


def scripts_of_this_mpi():
    """The batch scripts for the MPI of this build, by name, with the options that shorten their time."""
    family = _build_info.family
    return {f"srun.{family}.sbatch": "--signal=TERM@10", "mpirun.sbatch": "--signal=B:USR2@10"}


def interface():
    """How srun connects ranks of this MPI."""
    return {"mpich": "pmi2", "openmpi": "pmix"}[_build_info.family]


# The checks: each returns what it has seen, in words, or raises AssertionError -------------------------------------


def check_unconnected_tasks(cluster):
    """Tasks that MPI does not connect are refused, in a program and in an application."""
    srun = ["srun", "--nodes=2", "--ntasks=4", "--mpi=none", sys.executable]
    for program in (["-c", "import lapse; lapse.Server(1, 1)"], ["-m", "lapse.apps.simple"]):
        job = cluster.run([*srun, *program], timeout=120)
        assert job.returncode != 0 and "srun has started 4 tasks" in job.stderr, job.output
        assert f"srun --mpi={interface()}" in job.stderr and "RESULT" not in job.stdout, job.output
    return "4 tasks without --mpi are refused, naming the right one"


def check_self_test(cluster):
    """`python -m lapse` on both nodes, and alone in a batch script of several tasks."""
    srun = ["srun", "--nodes=2", "--ntasks=4", f"--mpi={interface()}"]
    network = {"MPIR_CVAR_CH4_NETMOD": "ofi"}  # as in hostfiles/env.mpich
    connected = cluster.run([*srun, sys.executable, "-m", "lapse"], 120, network).check()
    assert "4 ranks" in connected.stdout, connected.output
    output = cluster.folder / "single.txt"
    command = f"{sys.executable} -m lapse"
    cluster.run(["sbatch", "--wait", "--ntasks=4", f"--output={output}", f"--wrap={command}"], timeout=120).check()
    assert "1 rank" in output.read_text(), output.read_text()
    return f"4 ranks on 2 nodes by srun --mpi={interface()}; a single rank in a batch script"


def check_failing_rank(cluster):
    """A rank that fails before MPI starts ends the tasks, though srun was not asked for it."""
    program = "import os, lapse; assert os.environ['SLURM_PROCID'] != '1', 'injected'; lapse.Server(1, 1)"
    srun = ["srun", "--nodes=2", "--ntasks=3", f"--mpi={interface()}", sys.executable]
    job = cluster.run([*srun, "-c", program], timeout=60)
    assert job.returncode != 0 and not job.timed_out and "AssertionError: injected" in job.stderr, job.output
    return "a rank that fails before MPI starts ends the others"


def check_cancelled(cluster):
    """A job that somebody cancels saves a checkpoint, and does not come back."""
    job = Batch(cluster, next(iter(scripts_of_this_mpi())), "cancelled")
    job.wait_for(lambda: (job.model / "checkpoint").exists(), "a checkpoint")
    cluster.run(["scancel", job.number], timeout=60).check()
    job.wait_for(lambda: "stopped by SIGTERM" in job.text(), "the word of its ranks")
    job.wait_for(lambda: job.state() == "CANCELLED", "its end")
    return "saved, and not requeued"


def check_requeued(job, expected):
    """A job with less time than it needs ends as one with enough of it."""
    job.wait_for(lambda: job.state() in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"), "its end")
    assert job.state() == "COMPLETED", f"{job.state()}: {job.text()}"
    result, restarts = result_of(job.text()), int(job.show()["Restarts"])
    assert restarts >= 1 and result["resumed_from"] >= 1 and result["epochs"] == EPOCHS, job.text()
    assert job.text().count("back into the queue") == restarts, job.text()
    for figure in ("loss", "rmse"):
        assert math.isclose(result[figure], expected[figure], rel_tol=0.05), (result, expected)
    return (
        f"stopped and resumed {restarts} times; loss {result['loss']:.5f} (not stopped: {expected['loss']:.5f}), "
        f"rmse {result['rmse']:.4f} ({expected['rmse']:.4f})"
    )


class Batch:
    """A batch script that was submitted, with few cores, to train for about a minute."""

    def __init__(self, cluster, script, name, *options):
        self.cluster = cluster
        self.model = cluster.folder / f"model-{name}"
        self.output = cluster.folder / f"output-{name}.txt"
        size = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
        command = ["sbatch", "--parsable", f"--output={self.output}", *size, *options, SCRIPTS / script]
        env = {"LAPSE": ROOT, "LAPSE_VENV": sys.prefix}
        submitted = cluster.run([*command, *TRAINING, *SLOW, "--output", self.model], 60, env)
        self.number = submitted.check().stdout.strip()

    def show(self):
        return self.cluster.show_job(self.number)

    def state(self):
        return self.show()["JobState"]

    def text(self):
        return self.output.read_text() if self.output.exists() else ""

    def wait_for(self, condition, what):
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, f"{what} did not come within {LIMIT} s: {self.show()}\n{self.text()}"
            time.sleep(1)


def result_of(text):
    """What the last line with a result says."""
    return json.loads(re.findall(r"^RESULT (.*)$", text, re.MULTILINE)[-1])


def reference(folder):
    """The result of a run that is not stopped; without delays, which change nothing else."""
    command = ["-m", f"lapse.apps.{TRAINING[0]}", *TRAINING[1:], "--output", folder / "reference"]
    return result_of(launch.mpirun(2, command, timeout=120).check().stdout)


def run_checks(cluster, only):
    """Run the checks while the scripts train and wait in the queue; return the number of failures."""
    whole = reference(cluster.folder)
    jobs = {
        name: Batch(cluster, name, name, option, "--time=1")
        for name, option in scripts_of_this_mpi().items()
        if not only or name in only
    }
    checks = {
        "unconnected": lambda: check_unconnected_tasks(cluster),
        "self-test": lambda: check_self_test(cluster),
        "failing rank": lambda: check_failing_rank(cluster),
        "scancel": lambda: check_cancelled(cluster),
        **{name: lambda job=job: check_requeued(job, whole) for name, job in jobs.items()},
    }
    failures = 0
    for name, check in checks.items():
        if only and name not in only:
            continue
        start = time.monotonic()
        try:
            seen = check()
        except Exception as error:  # the other checks still say what they have seen
            failures += 1
            seen = f"FAILED: {type(error).__name__}: {error}"
        print(f"{name:<22} {seen}  ({time.monotonic() - start:.0f} s)", flush=True)
    return failures


def parse_arguments(argv):
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("unconnected", "self-test", "failing rank", "scancel", *scripts_of_this_mpi())
    parser.add_argument("--only", action="append", choices=names, help="only this check; repeatable")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for logs and outputs, which is kept")
    parser.add_argument("--limit", type=int, default=1200, metavar="SECONDS", help="of everything (default 1200)")
    return parser.parse_args(argv)


def stop(number, _frame):
    """End in the ordinary way, which takes Slurm down."""
    if number == signal.SIGALRM:
        sys.exit("FAILED: the time is over (--limit)")
    sys.exit(128 + number)


def main(argv=None):
    """Run the checks; return the exit status."""
    options = parse_arguments(argv)
    missing = slurm_cluster.what_is_missing()
    if missing:
        print(f"skipped: {missing}")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, stop)
    signal.alarm(options.limit)
    with contextlib.ExitStack() as stack:
        if options.keep is not None:
            options.keep.mkdir(parents=True)
        folder = options.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="lapse-slurm-"))
        cluster = stack.enter_context(slurm_cluster.Cluster(Path(folder).resolve()))
        print(f"{cluster.version()}, {len(slurm_cluster.NODES)} nodes; lapse for {_mpi_loader.describe_build()}")
        failures = run_checks(cluster, options.only)
        if failures:
            print(cluster.logs())
    left = cluster.processes()
    print(f"Slurm is taken down; {len(left)} processes left; {failures} failed")
    return 1 if failures or left else 0


if __name__ == "__main__":
    sys.exit(main())
