"""What calls cost that go by messages, against a bare MPI ping-pong with the same bytes in the same run.

    mpirun -n 2 python -m lapse.bench.messages [remote] [relocation] [idle] [--seconds 0.3]

Prints a JSON object for each figure. All ranks call the functions here together.
"""

import argparse
import json
import os
import statistics
import time

import numpy as np
from mpi4py import MPI

import lapse
from lapse.bench import _pingpong, _requests

LENGTH = 100  # floats of a value
HEADER, RECORD = 24, 8  # bytes of a frame and of a record
ROUNDS = 200_000  # at most, of one figure


class Stage:
    """An open server, the keys of the other ranks and where times go."""

    def __init__(self, server, kv, comm, seconds):
        self.server = server
        self.kv = kv
        self.comm = comm
        self.seconds = seconds
        self.times = np.zeros(ROUNDS, np.int64)
        self.rng = np.random.default_rng(comm.rank)

    def owned(self):
        """The owner of each key."""
        return self.server.owner(np.arange(self.server.num_keys))

    def batches(self, keys, count, most=1000):
        """Random rows of `count` different keys."""
        rows = min(most, max(1, 10 * len(keys) // count))
        return np.stack([self.rng.choice(keys, count, replace=False) for _ in range(rows)])


def bytes_of(kind, count):
    """Bytes of a request and of its answer."""
    bare = HEADER + count * RECORD
    values = bare + count * LENGTH * 4
    if kind == "push":
        return values, HEADER + RECORD
    return bare, values


def rest(comm):
    """Meet without using the cores: ranks that are not asked must not stand in the way."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.001)


def ping_pong(stage, who, kind, count):
    """Median microseconds of a round of bare MPI: of rank 0 with rank 1, or of all ranks in pairs."""
    comm = stage.comm
    rest(comm)
    rounds = 0
    pairs = comm.size // 2 if who == "all" else 1
    if comm.rank < 2 * pairs:
        asks = comm.rank % 2 == 0
        request, reply = bytes_of(kind, count)
        rounds = _pingpong.ping_pong(comm, comm.rank ^ 1, asks, request, reply, stage.seconds, stage.times)
        stage.times[rounds:] = 0
    rest(comm)
    return comm.bcast(float(np.median(stage.times[:rounds])) / 1e3 if rounds else None)


def calls(stage, kind, count, outstanding, who):
    """Calls of one worker or of all; figures of rank 0, medians and throughput."""
    comm, kv = stage.comm, stage.kv
    owners = stage.owned()
    keys = stage.batches(np.flatnonzero(owners != comm.rank), count)
    values = np.zeros((max(outstanding, 1), count * LENGTH), np.float32)
    code = getattr(_requests, kind.upper())
    kv.barrier()
    figures = None
    if comm.rank == 0 or who == "all":
        number, seconds = _requests.call(kv, code, keys, values, outstanding, stage.seconds, stage.times)
        figures = {"us": seconds / number * 1e6, "calls": number}
        if outstanding == 1:
            figures["us"] = float(np.median(stage.times[:number])) / 1e3
            figures["p90_us"] = float(np.quantile(stage.times[:number], 0.9)) / 1e3
            figures["max_us"] = float(stage.times[:number].max()) / 1e3
    elif who == "computing":
        _requests.compute_for(stage.seconds + 0.05)
    kv.wait_all()
    kv.barrier()
    gathered = comm.gather(figures)
    if comm.rank or who != "all":
        return figures
    return {name: statistics.median(f[name] for f in gathered) for name in figures}


def show(**fields):
    """Print one figure, as one line of JSON."""
    if MPI.COMM_WORLD.rank == 0:
        rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in fields.items()}
        print(json.dumps(rounded), flush=True)


def remote(stage, whos=("one", "all", "computing"), kinds=("pull", "push"), counts=(1, 100), outstandings=(1, 16, 0)):
    """Pulls and pushes of keys of other ranks."""
    for who in whos:
        for count in counts:
            for kind in kinds:
                reference = ping_pong(stage, who, kind, count)
                for outstanding in outstandings:
                    figures = calls(stage, kind, count, outstanding, who) or {}
                    if stage.comm.rank == 0:
                        show(group="remote", ranks=stage.comm.size, who=who, call=kind, keys=count,
                             outstanding=outstanding, **figures, ping_pong_us=reference,
                             ratio=figures["us"] / reference)


def turn(stage, who, mine, kind):
    """Move the rows of `mine` here, one after another; median microseconds of one row."""
    values = np.zeros((1, mine.shape[1] * LENGTH), np.float32)
    stage.kv.barrier()
    figure = None
    if stage.comm.rank == 0 or who == "all":
        times = stage.times[: len(mine)]
        _requests.call(stage.kv, kind, mine, values, 1, 60.0, times)
        figure = float(np.median(times)) / 1e3
    stage.kv.barrier()
    return figure


def relocation(stage, whos=("one", "all"), counts=(1, 100), turns=6):
    """Keys that move: a set for each rank, of which rank r takes the next one's ("all": all do so at once)."""
    comm, kv = stage.comm, stage.kv
    sets = np.array_split(np.random.default_rng(7).permutation(stage.server.num_keys), comm.size)
    for who in whos:
        for count in counts:
            rows = [s[: 400 * count].reshape(-1, count) for s in (x[: len(x) // count * count] for x in sets)]
            kv.localize(rows[comm.rank]).wait()
            kv.barrier()
            reference = calls_of(stage, rows[(comm.rank + 1) % comm.size], who)
            figures = {"localize": [], "localize_and_pull": []}
            for number in range(turns):
                name = "localize_and_pull" if number % 2 else "localize"
                mine = rows[(comm.rank + (number if who == "all" else 0) + 1) % comm.size]
                figures[name].append(turn(stage, who, mine, getattr(_requests, name.upper())))
                if who == "one":
                    if comm.rank == 1:
                        kv.localize(rows[1]).wait()
                    kv.barrier()
            for name, found in figures.items():
                if comm.rank == 0:
                    us = statistics.median(found)
                    show(group="relocation", ranks=comm.size, who=who, call=name, keys=count, us=us,
                         pull_us=reference, ratio=us / reference)


def calls_of(stage, rows, who):
    """Median microseconds of a pull of the same keys where they are."""
    values = np.zeros((1, rows.shape[1] * LENGTH), np.float32)
    stage.kv.barrier()
    figure = None
    if stage.comm.rank == 0 or who == "all":
        number, _ = _requests.call(stage.kv, _requests.PULL, rows, values, 1, stage.seconds, stage.times)
        figure = float(np.median(stage.times[:number])) / 1e3
    stage.kv.barrier()
    return figure


def idle(comm, pairs=15, seconds=0.25):
    """What an idle communication thread costs: a fixed computation on all ranks, with and without an open server."""
    took, _ = _requests.compute(10_000_000)
    steps = comm.bcast(int(10_000_000 * seconds / took))
    ratios = []
    for pair in range(pairs):
        times = {}
        for with_server in (False, True) if pair % 2 else (True, False):
            server = lapse.Server(10_000, LENGTH, shared_memory=False) if with_server else None
            comm.Barrier()
            times[with_server] = comm.allreduce(_requests.compute(steps)[0], MPI.MAX)
            if server is not None:
                server.close()
        ratios.append(times[True] / times[False])
    low, middle, high = statistics.quantiles(ratios, n=4)
    show(group="idle", ranks=comm.size, pairs=pairs, ratio=middle, quartiles=[round(low, 4), round(high, 4)])


def main():
    """Measure the groups that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", default=["remote", "relocation", "idle"])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure")
    parser.add_argument("--who", nargs="*", default=["one", "all", "computing"])
    parser.add_argument("--calls", nargs="*", default=["pull", "push"])
    parser.add_argument("--keys", nargs="*", type=int, default=[1, 100])
    parser.add_argument("--outstanding", nargs="*", type=int, default=[1, 16, 0])
    args = parser.parse_args()
    os.environ["LAPSE_SHARED_MEMORY"] = "0"
    comm = MPI.COMM_WORLD.Dup()
    if {"remote", "relocation"} & set(args.groups):
        with lapse.Server(40_000, LENGTH, shared_memory=False) as server:
            server.initialize(range(server.num_keys), lapse.Constant(1.0))
            with server.worker() as kv:
                stage = Stage(server, kv, comm, args.seconds)
                if "remote" in args.groups:
                    remote(stage, args.who, args.calls, args.keys, args.outstanding)
                if "relocation" in args.groups:
                    relocation(stage, [who for who in args.who if who != "computing"], args.keys)
    if "idle" in args.groups:
        idle(comm)


if __name__ == "__main__":
    main()
