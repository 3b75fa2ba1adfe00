"""A library ends rank 1 from within, as MPICH does when it is refused memory; the address space is limited or not."""

import ctypes
import resource
import sys
from pathlib import Path

import lapse

with lapse.Server(20, 2) as server, server.worker() as kv:
    if server.rank == 1:
        if sys.argv[1] == "limited":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), resource.RLIM_INFINITY))
        ctypes.CDLL(None).exit(13)
    kv.barrier()
