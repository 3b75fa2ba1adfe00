"""Rank 0 is interrupted while it waits, for each kind of call; rank 1 makes its next call later."""

import os
import signal
import threading
import time

import lapse
from common import WAITING, rank, tell, world

for name, wait in WAITING.items():
    server = lapse.Server(20, 2)
    try:
        with server:
            if rank == 1:
                time.sleep(1.5)
                server.run(lambda kv: kv.barrier())
            threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            began = time.monotonic()
            wait(server)
    except KeyboardInterrupt:
        tell(name, "| KeyboardInterrupt |", time.monotonic() - began < 1.2)
    except lapse.RemoteError as error:
        tell(name, "| RemoteError |", error)
    server.close()
    world.Barrier()
