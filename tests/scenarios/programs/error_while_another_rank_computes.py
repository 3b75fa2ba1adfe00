"""Rank 1 raises while rank 0 computes; rank 0 makes its next calls later."""

import time

import lapse
from common import rank, tell

with lapse.Server(20, 2) as server:
    if rank == 1:
        raise ZeroDivisionError("the first error")
    time.sleep(3)
    run, owner = lambda: server.run(print), lambda: server.owner(0)
    for call in (run, server.stats, server.local_keys, owner):
        try:
            call()
            tell("no error")
        except lapse.RemoteError as error:
            tell(error)
