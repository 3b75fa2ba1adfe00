"""Start jobs under the right `mpirun`, from tests and from `tests/run.py`."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field

#: Options of pytest for tests under MPI: none of them is by hypothesis, and each rank would take a second to load it.
PYTEST_UNDER_MPI = ("--with-mpi", "-p", "no:hypothesispytest")


@dataclass
class Job:
    """A job that has ended. `returncode` is -9 if it was killed at its timeout."""

    args: list
    returncode: int
    stdout: str
    stderr: str
    timed_out: bool = False
    output: str = field(init=False)

    def __post_init__(self):
        self.output = self.stdout + self.stderr

    def check(self):
        """Return the job itself; raise with its whole output where it failed."""
        if self.returncode != 0:
            ending = "was killed at its timeout" if self.timed_out else f"ended {self.returncode}"
            raise AssertionError(f"{shlex.join(map(str, self.args))}\n{ending}\n{self.output}")
        return self


def mpirun_command():
    """Return the path of the `mpirun` that belongs to the MPI of the package."""
    from lapse import _mpi_loader

    path = _mpi_loader.launcher_path()
    if path is None:
        raise FileNotFoundError(f"no mpirun beside the library of {_mpi_loader.describe_build()}")
    return path


def mpirun(n, args, timeout=120, env=None, cwd=None, python=None, launcher=None, options=()):
    """Run Python on `n` ranks and wait for the end.

    Parameters
    ----------
    n : int
        Number of ranks.
    args : str or list of str
        The source of a script, or the arguments of Python (``["-m", "lapse.apps.simple"]``).
    timeout : float
        Seconds after which the whole job is killed.
    env : dict, optional
        Variables to set on top of those of this process; a value of None removes one.
    cwd : str, optional
        The folder to run in.
    python : str, optional
        The interpreter; this one by default.
    launcher : str, optional
        The `mpirun` to use; the one of the package's MPI by default.
    options : sequence of str
        Further options of `mpirun`.

    Returns
    -------
    Job
    """
    args = ["-c", args] if isinstance(args, str) else list(args)
    command = [launcher or mpirun_command(), *options, "-n", str(n), python or sys.executable]
    return run([*command, *args], timeout, env, cwd)


def run(command, timeout=120, env=None, cwd=None):
    """Run a command in a process group of its own, which is killed at the timeout.

    Returns
    -------
    Job
    """
    command = [str(word) for word in command]
    process = start(command, env, cwd)
    try:
        out, err = process.communicate(timeout=timeout)
        return Job(command, process.returncode, out, err)
    except subprocess.TimeoutExpired:
        out, err = kill_group(process)
        return Job(command, -9, out, err, timed_out=True)
    finally:
        if process.poll() is None:
            kill_group(process)


def start(command, env=None, cwd=None):
    """Start a command in a process group of its own; its output is text, for `Popen.communicate`."""
    return subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=job_environment(env),
        cwd=cwd,
        start_new_session=True,
    )


def kill_group(process):
    """End a process and its children, gently first; return what they had printed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            out, err = process.communicate(timeout=5)
            return out or "", err or ""
        except subprocess.TimeoutExpired:
            continue
    return "", ""


def job_environment(changes=None):
    """Return the environment of a job: ours, as if it were started from a shell, and `changes`.

    Ranks outnumber the cores: none starts a thread per core for NumPy's linear algebra, unless ours says so.
    """
    from lapse import _mpi_loader

    env = {k: v for k, v in os.environ.items() if not _is_of_a_launcher(k)}
    env = {"OPENBLAS_NUM_THREADS": "1", **_mpi_loader.OPENMPI_ENVIRONMENT, **env, "PYTHONUNBUFFERED": "1"}
    for name, value in (changes or {}).items():
        env.pop(name, None)
        if value is not None:
            env[name] = str(value)
    return env


def _is_of_a_launcher(name):
    """Whether a variable tells a process its rank: a job inside a job must not see it."""
    return name.startswith(("PMI_", "PMIX_", "HYDI_", "HYDRA_", "OMPI_COMM_WORLD_", "MPI_LOCAL"))


def stream(command, timeout, env=None):
    """Run a command with its output going where ours goes.

    Returns
    -------
    int or None
        The exit status; None if it was killed at the timeout.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        env=job_environment(env),
        start_new_session=True,
    )
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            kill_group(process)
