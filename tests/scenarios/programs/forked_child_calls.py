"""A forked child creates a server, another one makes every kind of call; then the parent continues."""

import os

import numpy as np

import lapse
from common import size, tell

child = os.fork()  # when MPI has started, but nothing of lapse that needs it
if child == 0:
    try:
        lapse.Server(20, 2)
        tell("no error")
    except RuntimeError as error:
        tell("fork" in str(error))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0

with lapse.Server(20, 2) as server, server.worker() as kv:
    kv.push(range(20), np.ones((20, 2), "f4")).wait()
    child = os.fork()
    if child == 0:
        calls = [lambda: kv.pull(0), lambda: server.owner(0)]
        for call in (*calls, kv.barrier, server.local_keys, server.stats):
            try:
                call()
                tell("no error")
            except RuntimeError as error:
                tell("fork" in str(error))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    kv.barrier()
    assert (kv.pull(range(20)).wait() == size).all()
    kv.barrier()
    tell("parent")
