"""What was asked for happens, though the worker that asked makes no further call."""

import numpy as np
import pytest

import lapse
from mpi4py.MPI import COMM_WORLD as comm


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("keys_per_call", [1, 40])
def test_calls_that_nobody_waits_for_are_sent_by_somebody(keys_per_call):
    """Bursts of 1 to 20 calls; then the worker stays in a call of MPI until the other rank has seen all of them."""
    with lapse.Server(1000, 40, shared_memory=False) as server, server.worker() as kv:
        mine = server.local_keys()[:keys_per_call]
        theirs = comm.sendrecv(mine, (comm.rank - 1) % comm.size, source=(comm.rank + 1) % comm.size)
        ones = np.ones((len(theirs), 40), "float32")
        out = np.empty((len(mine), 40), "float32")
        expected = 0
        for burst in (1, 2, 3, 5, 8, 15, 16, 17, 20, 3, 1):
            for _ in range(burst):
                kv.push(theirs, ones)
            if burst % 5 == 0:
                kv.wait_all()  # now and then a worker does wait, so that its thread is told less
            expected += burst
            turns_of_looking(kv, mine, out, expected)
        kv.wait_all()


def turns_of_looking(kv, mine, out, expected):
    """Odd ranks look first while even ones do nothing, then the other way round."""
    for parity in (1, 0):
        if comm.rank % 2 == parity:
            while not (kv.pull_if_local(mine, out) and (out == expected).all()):
                pass
        comm.Barrier()
