"""Rank 1 calls `sys.exit(3)`, and no `with` block closes its server."""

import sys

import lapse
from common import rank, tell

server = lapse.Server(20, 2)
if rank == 1:
    sys.exit(3)
try:
    server.run(lambda kv: kv.barrier())
except lapse.RemoteError as error:
    tell(error)
