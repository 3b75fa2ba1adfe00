"""Rank 1 reaches the end without `close` while the others make the call named on the command line."""

import sys

import lapse
from common import WAITING, rank, tell

server = lapse.Server(20, 2)
if rank != 1:
    try:
        WAITING[sys.argv[1]](server)
    except lapse.RemoteError as error:
        tell("RemoteError", error)
