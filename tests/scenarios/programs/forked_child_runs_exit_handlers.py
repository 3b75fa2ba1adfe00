"""A forked child runs the exit handlers of its interpreter; then the parent continues."""

import atexit
import os
import time

import numpy as np

import lapse
from common import size, tell

server = lapse.Server(20, 2)
child = os.fork()
if child == 0:
    atexit._run_exitfuncs()  # as sys.exit would; then mpi4py would finalize the parent's MPI
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
with server:
    time.sleep(1)
    server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
    assert (server.run(lambda kv: kv.pull(range(20)).wait())[0] == size).all()
    tell("parent")
