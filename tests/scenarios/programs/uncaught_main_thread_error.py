"""The main thread of rank 1 raises in the `with` block, and no rank catches anything."""

import lapse
from common import rank

with lapse.Server(20, 2) as server:
    if rank == 1:
        raise ZeroDivisionError("in the main thread")
    server.run(lambda kv: kv.barrier())
