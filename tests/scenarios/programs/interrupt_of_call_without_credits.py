"""Rank 0 is interrupted while it waits for credits that the stopped rank 1 holds."""

import os
import signal
import threading
import time

import numpy as np

import lapse
from common import rank, stop, tell, world

with lapse.Server(20, 100_000, max_in_flight=1) as server, server.worker() as kv:
    pids = world.allgather(os.getpid())
    if rank == 0:
        theirs = np.setdiff1d(range(20), server.local_keys())
        stop(pids[1])
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        threading.Timer(3, lambda: os.kill(pids[1], signal.SIGCONT)).start()
        began = time.monotonic()
        try:
            while True:
                kv.push(theirs, np.ones((len(theirs), 100_000), "f4"))
        except KeyboardInterrupt:
            tell("KeyboardInterrupt", time.monotonic() - began < 2.5)
            raise SystemExit(5) from None
    kv.barrier()
