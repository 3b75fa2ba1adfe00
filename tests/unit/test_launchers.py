"""What is found out about the launcher and the machine before MPI is initialized."""

import os
import sys
import types

import pytest

import launch
from lapse import _mpi_loader

LAUNCHERS = ("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "SLURM_", "MPI_LOCAL", "MPIR_CVAR_")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)


def set_all(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_tasks_of_srun_that_mpi_does_not_connect_are_refused(monkeypatch):
    set_all(monkeypatch, SLURM_STEP_NUM_TASKS=4, SLURM_NTASKS=4)
    kind = {"mpich": "pmi2", "openmpi": "pmix"}[_mpi_loader._build_info().family]
    with pytest.raises(RuntimeError, match=rf"srun has started 4 tasks.*srun --mpi={kind}"):
        _mpi_loader.check_launcher(1)
    assert _mpi_loader.ranks_started() == 4
    _mpi_loader.check_launcher(4)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # srun -n 1 in an allocation for more
    _mpi_loader.check_launcher(1)


def test_a_batch_script_may_run_a_single_rank(monkeypatch):
    set_all(monkeypatch, SLURM_NTASKS=4, SLURM_NPROCS=4, SLURM_PROCID=0)  # no step: what srun starts is one
    _mpi_loader.check_launcher(1)
    assert _mpi_loader.ranks_started() == 0


def test_mpirun_in_an_allocation_has_a_helper_per_node(monkeypatch):
    set_all(monkeypatch, SLURM_STEP_NUM_TASKS=2, PMI_HOSTNAME="n1", PMI_SIZE=1)
    _mpi_loader.check_launcher(1)
    assert _mpi_loader.ranks_started() == 1


@pytest.mark.parametrize("family, said", [("mpich", "PMIx, which this MPI does not know"), ("openmpi", "without PMIx")])
def test_srun_without_the_interface_that_mpi_knows_is_refused(monkeypatch, family, said):
    info = types.SimpleNamespace(family=family, version="9.9", soname="libmpi.so.99", folder="wheel", alias=None)
    monkeypatch.setattr(_mpi_loader, "_build_info", lambda: info)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    kind = {"mpich": "pmi2", "openmpi": "pmix"}[family]
    set_all(monkeypatch, SLURM_STEP_NUM_TASKS=2, **({"PMIX_RANK": 0} if family == "mpich" else {}))
    with pytest.raises(ImportError, match=rf"tasks.*{said}.*srun --mpi={kind}"):
        _mpi_loader._check_before_mpi()
    set_all(monkeypatch, **({"PMI_RANK": 0} if family == "mpich" else {"PMIX_RANK": 0}))
    monkeypatch.setattr(_mpi_loader, "_check_room_in_shared_memory", lambda: None)
    _mpi_loader._check_before_mpi()


@pytest.mark.skipif(_mpi_loader._build_info().family != "mpich", reason="Open MPI says so itself")
@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_a_small_dev_shm_is_named_before_mpi_fails(monkeypatch, launcher):
    found = types.SimpleNamespace(f_bavail=1, f_frsize=1 << 20, f_blocks=64)
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    _mpi_loader._check_room_in_shared_memory()  # one rank needs none
    if launcher == "mpirun":
        set_all(monkeypatch, MPI_LOCALNRANKS=8)
    else:
        set_all(monkeypatch, SLURM_STEP_NUM_TASKS=11, SLURM_STEP_TASKS_PER_NODE="1(x2),8,1", SLURM_NODEID=2)
    with pytest.raises(ImportError, match=r"/dev/shm has 1 of 64 MB free.*8 ranks.*--shm-size"):
        _mpi_loader._check_room_in_shared_memory()
    found.f_bavail = 64
    _mpi_loader._check_room_in_shared_memory()
    set_all(monkeypatch, MPIR_CVAR_CH4_SHM_POSIX_IQUEUE_CELL_SIZE=131072, MPIR_CVAR_CH4_NETMOD="ofi")
    with pytest.raises(ImportError, match=r"/dev/shm has 64 of 64 MB free, but MPI needs some 128 MB"):
        _mpi_loader._check_room_in_shared_memory()


def test_the_library_is_known_by_what_it_exports():
    assert _mpi_loader._family_of(_mpi_loader.library_path()) == _mpi_loader._build_info().family
    assert _mpi_loader._family_of("no library") is None


def test_a_task_of_srun_that_fails_before_mpi_ends_the_others(tmp_path):
    """By the command of Slurm: srun itself would wait for them."""
    command = tmp_path / "scancel"
    command.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/said\n')
    command.chmod(0o755)
    env = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_STEP_NUM_TASKS": 3, "SLURM_JOB_ID": 7, "SLURM_STEP_ID": 1, "SLURM_PROCID": 2,
    }  # fmt: skip
    job = launch.run([sys.executable, "-c", "import lapse; raise ValueError('injected')"], 60, env)
    assert job.returncode == 1
    assert "ValueError: injected" in job.stderr and "lapse: rank 2 ends the job" in job.stderr
    assert (tmp_path / "said").read_text().split() == ["--signal=KILL", "7.1"]
