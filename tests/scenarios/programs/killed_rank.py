"""Rank 1 is killed while all work."""

import os
import signal
import time

import numpy as np

import lapse


def work(kv):
    if kv.rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        kv.push(range(20), np.ones((20, 2), "f4"))
        kv.barrier()


with lapse.Server(20, 2) as server:
    server.run(work)
