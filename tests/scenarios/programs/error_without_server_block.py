"""Rank 1 raises, and no `with` block closes its server."""

import lapse
from common import rank, tell

server = lapse.Server(20, 2)
if rank == 1:
    raise ZeroDivisionError("nobody catches this")
try:
    server.run(lambda kv: kv.barrier())
except lapse.RemoteError as error:
    tell(error)
