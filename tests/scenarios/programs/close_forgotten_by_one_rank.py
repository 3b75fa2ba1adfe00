"""Rank 1 reaches the end without `close` while the others make the call named on the command line."""

import sys
import time

import lapse
from common import WAITING, rank, tell

server = lapse.Server(20, 2)
if rank != 1:
    try:
        WAITING[sys.argv[1]](server)
    except lapse.RemoteError as error:
        tell("RemoteError", error)
else:
    time.sleep(1)  # until the others are in their calls: `close` of a server that has failed already raises nothing
