"""Floor 5. Warnings about settings of MPI: printed once to stderr; the settings are never changed."""

import os
import sys

from mpi4py import MPI


def warn_of_binding(comm: MPI.Intracomm, workers: int, cores: int) -> None:
    """Warn when a rank has more worker threads than cores that it may use. Collective; rank 0 prints.

    Open MPI binds each rank to one core by default.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
    workers, cores : int
        Of this rank.
    """
    most = comm.allreduce(workers, op=MPI.MAX)
    fewest = comm.allreduce(cores, op=MPI.MIN)
    if comm.rank == 0 and comm.size > 1 and fewest < min(most, os.cpu_count() or 1):
        print(
            f"lapse: a rank may use {fewest} of {os.cpu_count()} cores, but has {most} worker threads: "
            "start with 'mpirun --bind-to none' (Open MPI) or '-bind-to none' (MPICH)",
            file=sys.stderr,
        )


def warn_of_network_module() -> None:
    """Warn of MPICH with its UCX network module.

    MPICH 5.0.2 with UCX hangs when several ranks have pending sends, also in plain mpi4py programs.
    """
    module = os.environ.get("MPIR_CVAR_CH4_NETMOD", "")
    version = MPI.Get_library_version()
    if "MPICH" in version and "ch4:ucx" in version and module in ("", "ucx"):
        print(
            "lapse: between hosts this MPICH uses its UCX network module, which is known to lose messages: "
            "set MPIR_CVAR_CH4_NETMOD=ofi on all ranks (hostfiles/env.mpich does)",
            file=sys.stderr,
        )
