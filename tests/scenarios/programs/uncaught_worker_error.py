"""A worker raises, and no rank catches what `run` raises."""

import lapse


def work(kv):
    if kv.id == 2:
        raise ZeroDivisionError("the text of the error")
    kv.barrier()


with lapse.Server(20, 2) as server:
    server.run(work)
