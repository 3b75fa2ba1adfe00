"""Operations, samples and calls of the C-level door, used by a thread, a process or at a time that they are not for."""

import os
import threading

import numpy as np
from lapse.testing._faults import CALLS, call_door

import lapse
from common import rank, size, tell


def error_of(call):
    """What a call raises, in a word and the beginning of its text."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def in_thread(call):
    """What a call raises in another thread."""
    said = []
    thread = threading.Thread(target=lambda: said.append(error_of(call)), name="intruder")
    thread.start()
    thread.join()
    return said[0]


def work(kv):
    """Keep the worker and an operation for later; use them in another thread and in a child."""
    operation = kv.pull(np.arange(40))  # some keys are on the other rank
    uses = [operation.wait, operation.test, *(lambda name=name: call_door(kv, name) for name in CALLS)]
    for use in uses:
        tell("thread", in_thread(use))
    child = os.fork()
    if child == 0:
        for use in uses:
            tell("child", error_of(use))
        tell("child", error_of(lambda: lapse.Server(3, 1)))
        tell("child", error_of(lambda: kept.append(kv)))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    values = operation.wait()
    assert operation.test() and in_thread(operation.wait) == "no error"  # it is done: nothing more can happen to it
    kv.barrier()
    kept.append(kv)
    return values


kept = []
sampling = lapse.Sampling("naive", lapse.Uniform(0, 40))
with lapse.Server(40, 2, sampling=sampling, shared_memory=False) as server:
    assert (server.run(work)[0] == 0).all()
    for name in CALLS:
        tell("after", error_of(lambda name=name: call_door(kept[0], name)))
    server.run(lambda kv: kv.barrier())
assert rank < size
