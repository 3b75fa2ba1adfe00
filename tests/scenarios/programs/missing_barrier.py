"""The workers named on the command line return while the others wait in `barrier`."""

import sys

import lapse
from common import tell


def work(kv):
    if str(kv.id) in sys.argv[1:]:
        return
    kv.barrier()


with lapse.Server(20, 2, workers=2) as server:
    try:
        server.run(work)
    except lapse.LapseError as error:
        tell(error)
