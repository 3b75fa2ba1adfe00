"""A worker is used in a thread that is not its own."""

import threading

import lapse
from common import tell

with lapse.Server(20, 2) as server, server.worker() as kv:
    operation = kv.pull(range(20))

    def use(call):
        try:
            call()
            tell("no error")
        except RuntimeError as error:
            tell(type(error).__name__, error)

    for call in (lambda: kv.pull(0), lambda: kv.localize(0), kv.barrier, kv.wait_all):
        thread = threading.Thread(target=use, args=(call,))
        thread.start()
        thread.join()
    kv.wait_all()
    kv.barrier()
