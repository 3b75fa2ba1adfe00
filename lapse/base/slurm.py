"""Floor 0. What Slurm's `srun` says about the tasks that it has started together with this process.

A batch script is no such task: it has SLURM_NTASKS, but no SLURM_STEP_NUM_TASKS. Inside an allocation `mpirun` starts a
helper on each node by srun, whose variables its ranks inherit; but they are tasks of `mpirun`.
"""

import contextlib
import os
import re
import subprocess

#: Variables that MPICH's, Intel's and Open MPI's mpirun give to their ranks, but srun does not.
_OF_MPIRUN = ("PMI_HOSTNAME", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_SIZE")


def tasks() -> int:
    """The number of tasks; 0 if this process is none."""
    number = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    by_mpirun = any(name in os.environ for name in _OF_MPIRUN)
    return int(number) if number.isdecimal() and not by_mpirun else 0


def tasks_of_this_node() -> int:
    """The number of tasks on the node of this process; 0 if it is none, or if it is not known."""
    node = os.environ.get("SLURM_NODEID", "")
    if not tasks() or not node.isdecimal():
        return 0
    per_node: list[int] = []  # 4(x2),3: two nodes with 4 tasks, and one with 3
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        per_node += [int(number)] * int(times or 1)
    return per_node[int(node)] if int(node) < len(per_node) else 0


def end_tasks() -> None:
    """End all tasks, this process included: srun does not when one of them fails before MPI, or by a signal.

    (It does with --kill-on-bad-exit=1, or if the cluster is configured so.)
    """
    step = f"{os.environ.get('SLURM_JOB_ID')}.{os.environ.get('SLURM_STEP_ID')}"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["scancel", "--signal=KILL", step], capture_output=True, timeout=20)
