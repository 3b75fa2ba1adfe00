"""MPI is initialized with less than MPI_THREAD_MULTIPLE."""

import mpi4py

mpi4py.rc.thread_level = "serialized"

import lapse  # noqa: E402

try:
    lapse.Server(20, 2)
except lapse.CommError as error:
    print("CommError" if "MPI_THREAD_MULTIPLE" in str(error) else error, flush=True)
