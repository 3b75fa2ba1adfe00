"""A short job for one injected fault; `faults.py` starts it. The argument: a specification as JSON.

Each worker pushes ones to keys that follow from the seed, so that the values are known at the end, whatever moved. A
rank that comes to the end prints ``exact``.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import lapse
from mpi4py import MPI

STEPS, KEYS, LENGTH, KEYS_PER_STEP = 15, 60, 3, 10

spec = json.loads(sys.argv[1])
world = MPI.COMM_WORLD
mine = spec if spec["rank"] == world.rank else {}


def inject(place):
    """Be the fault, if this is its rank and place."""
    if mine.get("place") != place:
        return
    what, pid = mine["what"], os.getpid()
    if what == "kill":
        os.kill(pid, signal.SIGKILL)
    elif what == "stop":
        subprocess.Popen(["sh", "-c", f"kill -STOP {pid}; sleep {mine['seconds']}; kill -CONT {pid}"])
        time.sleep(0.1)
    elif what == "exception":
        raise ValueError("injected here")
    elif what == "exit":
        sys.exit(3)
    elif what == "memory limit":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + mine["bytes"], resource.RLIM_INFINITY))
    elif what == "different call":
        mine["call"] = True


def keys_of(worker, step):
    """Distinct keys."""
    random = np.random.default_rng([spec["seed"], worker, step])
    return random.choice(KEYS, KEYS_PER_STEP, replace=False)


def work(kv):
    ones = np.ones((KEYS_PER_STEP, LENGTH), "f4")
    out = np.empty((KEYS_PER_STEP, LENGTH), "f4")
    for step in range(STEPS):
        if kv.id == server_workers * kv.rank:
            inject(f"step {step}")
        if step == 5 and kv.id == 0:
            Path(spec["folder"], "working").touch()
        keys = keys_of(kv.id, step)
        kv.localize(keys[:5])
        kv.push(keys, ones)
        if step % 3 == 0:
            kv.pull(keys, out).wait()
        if step % 7 == 3:
            if mine.get("call"):
                kv.allreduce(1)
            kv.barrier()
        time.sleep(spec.get("pause", 0))
    kv.wait_replica_sync()
    kv.barrier()


def check(kv):
    expected = np.zeros((KEYS, LENGTH), "f4")
    for worker in range(kv.num_workers):
        for step in range(STEPS):
            expected[keys_of(worker, step)] += 1
    values = kv.pull(range(KEYS)).wait()
    if not (values == expected).all():
        raise AssertionError(f"WRONG: {np.argwhere(values != expected).tolist()}")


server_workers = spec["workers"]
arguments = {
    "num_keys": KEYS,
    "value_lengths": LENGTH,
    "workers": spec["workers"],
    "replicated_keys": spec["replicated"],
    "shared_memory": spec["shared"],
}
arguments.update(mine.get("arguments", {}))

inject("before the server")
with lapse.Server(**arguments) as server:
    inject("in the server")
    server.run(work)
    inject("between two runs")
    try:
        server.save(Path(spec["folder"], mine.get("save", "model")), {"seed": spec["seed"]})
    except (OSError, MemoryError) as error:
        print(f"rank {server.rank}: save: {error!r}", file=sys.stderr, flush=True)
    server.run(check)
inject("after the server")
print("exact", flush=True)
