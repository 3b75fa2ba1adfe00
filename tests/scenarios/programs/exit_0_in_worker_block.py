"""All ranks call `sys.exit(0)` in the `with` block of a worker that has just pushed."""

import sys

import numpy as np

import lapse
from common import size, world

with lapse.Server(20, 2) as server:
    try:
        with server.worker() as kv:
            kv.push(range(20), np.ones((20, 2), "f4"))
            sys.exit(0)
    except SystemExit:
        pass
    world.Barrier()
    assert (server.run(lambda kv: kv.pull(range(20)).wait())[0] == size).all()
