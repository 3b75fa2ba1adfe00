"""One worker of rank 1 raises while the others wait in a call, for each kind of call."""

import time
from functools import partial

import numpy as np

import lapse
from common import tell, world


def for_ever(call):
    while True:
        call()


row = np.empty(2, "f4")
OTHERS = {
    "barrier": lambda kv, server: kv.barrier(),
    "allreduce": lambda kv, server: kv.allreduce(1.0),
    "pulls": lambda kv, server: for_ever(lambda: kv.pull(range(20)).wait()),
    "pushes": lambda kv, server: for_ever(lambda: kv.push(range(20), np.ones((20, 2), "f4"))),
    "localizes": lambda kv, server: for_ever(lambda: kv.localize(range(20)).wait()),
    "local pulls": lambda kv, server: for_ever(lambda: kv.pull(server.local_keys()[:1]).wait()),
    "tests": lambda kv, server: for_ever(lambda: kv.localize(3).test()),
    "pull_if_local": lambda kv, server: for_ever(lambda: kv.pull_if_local(3, out=row)),
    "the end of run": lambda kv, server: None,
}


def work(kv, server, others):
    if kv.id == 3:
        time.sleep(0.1)
        raise ZeroDivisionError("the text")
    others(kv, server)


def errors(*calls):
    for call in calls:
        try:
            call()
            yield "no error"
        except BaseException as error:
            yield f"{type(error).__name__}: {error}"


def try_out(name, others):
    server = lapse.Server(20, 2, workers=2)
    began = time.monotonic()
    run = partial(server.run, work, server, others)
    first, *later = errors(run, run, server.stats, partial(server.owner, 3))
    server.close()
    tell(name, "|", first, "|", later == [first] * 3, "|", time.monotonic() - began < 8)


for name, others in OTHERS.items():
    try_out(name, others)
tell("all closed", world.allreduce(1))
