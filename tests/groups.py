"""Which ranks share memory in the tests under MPI, by the environment that `tests/run.py` sets."""

import os

import pytest

from mpi4py.MPI import COMM_WORLD as comm

#: So many neighbours share memory; they have one replica of each key, and take part in rounds as one.
GROUP = int(os.environ.get("LAPSE_SHARED_MEMORY_RANKS") or comm.size)
if os.environ.get("LAPSE_SHARED_MEMORY") == "0":
    GROUP = 1
GROUP = min(GROUP, comm.size)
#: Of `GROUP` ranks each; the last one may have fewer.
HOSTS = -(-comm.size // GROUP)

several_hosts = pytest.mark.skipif(HOSTS < 2, reason="rank count: all share memory, so that nothing is replicated")
