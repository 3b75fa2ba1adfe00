"""The main thread of rank 1 raises while the others wait, for each kind of call."""

import time

import lapse
from common import WAITING, rank, tell

for name, wait in WAITING.items():
    server = lapse.Server(20, 2)
    try:
        with server:
            if rank == 1:
                time.sleep(0.1)
                raise ZeroDivisionError("the text")
            wait(server)
    except (ZeroDivisionError, lapse.RemoteError) as error:
        tell(name, "|", type(error).__name__, "|", error)
    server.close()
