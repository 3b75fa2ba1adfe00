"""`python -m lapse` tells what is installed and lets the ranks work together."""

import sys

import pytest

from launch import mpirun, run


@pytest.mark.parametrize("ranks", [1, 3])
def test_self_test_reports_exact_sums(ranks):
    output = mpirun(ranks, ["-m", "lapse"], timeout=60).check().stdout
    assert f"self-test: {ranks} ranks, {20 * 1000 * ranks} updates" in output
    assert "all sums exact" in output
    for name in ("lapse", "python", "numpy", "mpi4py", "MPI", "mpirun"):
        assert sum(line.startswith(name + " ") for line in output.splitlines()) == 1


def test_version_does_not_start_mpi():
    code = "import sys, lapse.__main__ as m\ntry: m.main(['--version'])\nexcept SystemExit: pass\n"
    check = "print('mpi4py.MPI' in sys.modules)"
    lines = run([sys.executable, "-c", code + check], timeout=30).check().stdout.split()
    assert lines[-1] == "False"
