"""The system refuses rank 1 the thread of this name; the next server works."""

import sys
import threading

import lapse
from common import rank, tell


class Refused(threading.Thread):
    """A thread that cannot be started."""

    def start(self):
        if self.name == sys.argv[1] and rank == 1:
            raise RuntimeError("can't start new thread")
        super().start()


start = threading.Thread
for thread in (Refused, start):
    threading.Thread = thread
    with lapse.Server(10, 2, workers=2, threads_per_call=3) as server:
        try:
            server.run(lambda kv: kv.barrier())
            tell("run returned")
        except RuntimeError as error:
            tell(type(error).__name__, error)
