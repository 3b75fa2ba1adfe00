"""One worker calls `allreduce` while the others enter `setup`."""

import lapse
from common import tell


def work(kv):
    if kv.id == 2:
        kv.allreduce(1)
    else:
        with kv.setup():
            pass


with lapse.Server(20, 2) as server:
    try:
        server.run(work)
    except lapse.LapseError as error:
        tell(error)
