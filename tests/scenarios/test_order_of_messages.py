"""The tests under MPI again, where large messages complete after small ones that were sent later.

MPI orders which message meets which receive, not which of them completes first. Between processes
of one host it usually copies in one go, and everything completes in order; here it must not.
"""

from pathlib import Path

import pytest

from launch import PYTEST_UNDER_MPI, mpirun

TESTS = Path(__file__).resolve().parent.parent

WITHOUT_CMA = {
    "MPIR_CVAR_CH4_CMA_ENABLE": "0",  # MPICH
    "OMPI_MCA_smsc": "^cma,xpmem,knem",  # Open MPI
}
# MPICH's other way to TCP, ucx, loses messages of plain MPI programs (seen with 5.0.2).
OVER_TCP = {
    "MPIR_CVAR_NOLOCAL": "1",
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",  # MPICH
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,tcp",  # Open MPI
}

OVERTAKE = """
from mpi4py.MPI import ANY_SOURCE, COMM_WORLD as comm, Request
large, small = bytearray(40_000), bytearray(8)
overtaken = 0
for _ in range(50):
    comm.Barrier()
    if comm.rank == 0:
        Request.Waitall([comm.Isend(large, 1, 7), comm.Isend(small, 1, 7)])
    elif comm.rank == 1:
        receives = [comm.Irecv(bytearray(40_000), ANY_SOURCE, 7) for _ in range(2)]
        overtaken += Request.Waitany(receives) == 1
        Request.Waitall(receives)
if comm.rank == 1:
    print(overtaken)
"""


def run_tests(ranks, env, *names, timeout=150):
    paths = [str(TESTS / "mpi" / name) for name in names]
    options = ["-m", "pytest", "-q", *PYTEST_UNDER_MPI, "-p", "no:cacheprovider"]
    env = {
        "LAPSE_TEST_ROUNDS": "15",
        "LAPSE_TEST_NOTES": None,
        "LAPSE_SHARED_MEMORY": "0",
        **env,
    }
    return mpirun(ranks, [*options, *paths], timeout=timeout, env=env, cwd=str(TESTS.parent)).check()


def test_small_messages_do_complete_before_large_ones_without_cma():
    """Else the tests below would prove nothing."""
    from mpi4py import MPI

    if "MPICH" not in MPI.Get_library_version():
        pytest.skip("the variables are those of MPICH")
    assert int(mpirun(2, OVERTAKE, env=WITHOUT_CMA).check().stdout) > 0


@pytest.mark.deadline(160)
@pytest.mark.parametrize("env", [WITHOUT_CMA, OVER_TCP], ids=["without CMA", "tcp"])
def test_exact_results_of_two_ranks(env):
    run_tests(2, env, "test_stress.py", "test_large_values.py")


@pytest.mark.deadline(310)
@pytest.mark.parametrize("env", [WITHOUT_CMA, OVER_TCP], ids=["without CMA", "tcp"])
def test_everything_under_mpi_in_other_settings(env):
    run_tests(3, env, "", timeout=300)
