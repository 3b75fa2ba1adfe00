"""Rank 1 calls `sys.exit` outside of any server; the others go on, or all do so. Arguments: where, the status."""

import sys

import lapse
from common import rank, tell

place, status = sys.argv[1], int(sys.argv[2])
if place == "all ranks" or (place == "before" and rank == 1):
    sys.exit(status)
with lapse.Server(10, 1):
    tell("in the first server")
if place == "between" and rank == 1:
    sys.exit(status)
if place != "after":
    lapse.Server(10, 1).close()
tell("at the end")
if place == "after" and rank == 1:
    sys.exit(status)
