"""A /dev/shm that is too small for MPI, as in many containers: words instead of a bus error."""

import shlex
import sys

import pytest

import launch
from lapse import _build_info
from mounts import may_mount

IN_A_SMALL_ONE = "mount -t tmpfs -o size={}m tmpfs /dev/shm && exec "  # in a mount namespace of its own


@pytest.mark.skipif(_build_info.family != "mpich", reason="Open MPI says so itself")
@pytest.mark.skipif(not may_mount(), reason="this user may not mount")
@pytest.mark.parametrize("megabytes", [1, 8])  # of the second, MPI fails when more of it is in use
@pytest.mark.parametrize("program", ["import lapse; lapse.Server(1, 1)", "import lapse; from mpi4py import MPI"])
def test_a_small_dev_shm_ends_the_job_in_words(program, megabytes):
    job = [launch.mpirun_command(), "-n", "2", sys.executable, "-c", program]
    command = IN_A_SMALL_ONE.format(megabytes) + shlex.join(job)
    ended = launch.run(["unshare", "--mount", "sh", "-c", command], timeout=60)
    assert ended.returncode != 0 and not ended.timed_out
    assert f"/dev/shm has {megabytes} of {megabytes} MB free, but MPI needs some" in ended.stderr
    assert "Bus error" not in ended.output
