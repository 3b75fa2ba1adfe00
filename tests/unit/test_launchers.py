"""What is found out about the launcher and the machine before MPI is initialized."""

import os
import types

import pytest

from lapse import _mpi_loader


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)


def test_tasks_of_slurm_that_mpi_does_not_connect_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(RuntimeError, match=r"4 tasks \(SLURM_NTASKS\).*srun --mpi=pmi2"):
        _mpi_loader.check_launcher(1)
    _mpi_loader.check_launcher(4)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # srun -n 1 in an allocation for more
    _mpi_loader.check_launcher(1)


def test_a_small_dev_shm_is_named_before_mpi_fails(monkeypatch):
    found = types.SimpleNamespace(f_bavail=1, f_frsize=1 << 20, f_blocks=64)
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    _mpi_loader._check_room_in_shared_memory()  # one rank needs none
    monkeypatch.setenv("MPI_LOCALNRANKS", "1000")
    with pytest.raises(ImportError, match=r"/dev/shm has 1 of 64 MB free.*1000 ranks.*--shm-size"):
        _mpi_loader._check_room_in_shared_memory()
    found.f_bavail = 1 << 20
    _mpi_loader._check_room_in_shared_memory()


def test_the_library_is_known_by_what_it_exports():
    assert _mpi_loader._family_of(_mpi_loader.library_path()) == _mpi_loader._build_info().family
    assert _mpi_loader._family_of("no library") is None
