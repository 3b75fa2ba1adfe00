"""Workers of ranks 0 and 1 raise an exception each; rank 2 has none of its own."""

import time

import lapse
from common import tell


def work(kv):
    kv.barrier()
    if kv.id < 2:
        raise ValueError(f"of worker {kv.id}")
    time.sleep(0.5)
    kv.barrier()


with lapse.Server(20, 2) as server:
    try:
        server.run(work)
    except BaseException as error:
        tell(type(error).__name__, error)
