"""Every rank pulls and pushes keys of the others until a call of MPI fails on one."""

import numpy as np

import lapse
from common import tell


def work(kv):
    """Go on for long enough."""
    for _ in range(20_000):
        kv.push(range(20), np.ones((20, 2), "f4"))
        kv.pull(range(20)).wait()


try:
    with lapse.Server(20, 2, shared_memory=False) as server:
        server.run(work)
    tell("no error")
except lapse.LapseError as error:
    tell(type(error).__name__, error)
