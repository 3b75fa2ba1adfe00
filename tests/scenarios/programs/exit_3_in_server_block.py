"""Rank 2 calls `sys.exit(3)` in the `with` block of the server."""

import sys

import lapse
from common import rank, tell

with lapse.Server(20, 2) as server:
    if rank == 2:
        sys.exit(3)
    try:
        server.run(lambda kv: kv.barrier())
    except lapse.RemoteError as error:
        tell(error)
        sys.exit(0)
