"""Every operation, again and again, in servers that come and go: exact sums, and nothing that grows.

    .venv/bin/python tests/soak.py                          10 minutes on 4 ranks
    .venv/bin/python tests/soak.py --minutes 60 --ranks 6

`make soak` runs it. Half of the minutes a rank shares memory with one other rank, so that values move by messages and
in shared memory, and replicas do both as well. Each lap has two servers with replicas, samples and a checkpoint; laps
differ in the scheme of sampling, in the rule by which replicas are combined and in what goes over the wire. After each
of them a rank notes its resident memory, its open files and the segments that it has mapped. Behind the first laps, in
which buffers find their size, none of them may grow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

NUM_KEYS, LENGTH, WORKERS, CALLS = 3000, 16, 2, 150
NUM_SET = 100  # the last keys; each is set by one worker and pushed to by none
SCHEMES = ("naive", "preloc", "pool", "local")
RULES = tuple((combine, wire) for wire in ("exact", "bfloat16") for combine in ("sum", "adaptive", "adagrad"))
#: The share of the laps in which buffers may find their size, and what may be in use behind them, beside then.
WARM_UP = 0.3
MOST_MEGABYTES, MOST_FILES, MOST_SEGMENTS = 24, 2, 2


def measure() -> dict[str, float]:
    """What this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    maps = Path("/proc/self/maps").read_text()
    return {
        "megabytes": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "files": len(os.listdir("/proc/self/fd")),
        "segments": maps.count("memfd:") + maps.count("/dev/shm/"),
    }


class Calls:
    """What one worker does: each method makes one kind of call, some of them left in flight.

    `added` receives what was added to each key, or for a key that is set, its last value.
    """

    def __init__(self, kv, added):
        self.kv, self.added, self.random = kv, added, kv.rng

    def keys(self):
        """Keys that all workers push to."""
        return self.random.integers(0, NUM_KEYS - NUM_SET, int(self.random.integers(1, 60)))

    def amounts(self, keys):
        """A whole number for each key, and the same for all of its value."""
        import numpy as np

        amounts = self.random.integers(-9, 10, len(keys)).astype("f4")
        return amounts, np.repeat(amounts, LENGTH).reshape(-1, LENGTH)

    def push(self, weight=None):
        import numpy as np

        keys = self.keys()
        amounts, values = self.amounts(keys)
        np.add.at(self.added, keys, amounts)
        weights = None if weight is None else np.full(len(keys), weight, "f4")
        return self.kv.push(keys, values, weights)

    def push_with_weights(self):
        self.push(2)

    def push_and_look(self):
        operation = self.push()
        while not operation.test():
            self.kv.wait(operation)

    def set(self):
        """Of a set and a push that meet either may win, so that these keys have one writer, which waits."""
        import numpy as np

        keys = NUM_KEYS - 1 - np.arange(self.kv.id, NUM_SET, self.kv.num_workers)
        amounts, values = self.amounts(keys)
        self.kv.set(keys, values).wait()
        self.added[keys] = amounts

    def pull(self):
        self.kv.pull(self.keys())

    def pull_into(self):
        import numpy as np

        keys = self.keys()
        self.kv.pull(keys, out=np.empty((len(keys), LENGTH), "f4")).wait(timeout=600)

    def pull_if_local(self):
        import numpy as np

        self.kv.pull_if_local(self.keys()[:1], np.empty((1, LENGTH), "f4"))

    def is_local(self):
        self.kv.is_local(self.keys())

    def localize(self):
        self.kv.localize(self.keys())

    def sample(self):
        sample = self.kv.prepare_sample(40)
        self.kv.pull_sample(sample, 25).wait()
        self.kv.finish_sample(sample)

    def borrow(self):
        """On the C level, as kernels do."""
        from lapse.testing._borrowed import Borrowed

        keys = sorted(set(self.keys().tolist()))
        self.kv.localize(keys).wait()
        borrowed = Borrowed(self.kv, keys)
        for key, value in zip(keys, borrowed.arrays):
            if value is not None:
                value += 1
                self.added[key] += 1
        del value  # it has no memory of its own
        borrowed.give_back()

    def pace_rounds(self):
        self.kv.pace_rounds(syncs_per_second=float(self.random.integers(0, 20)), max_pending=200)

    def sync(self):
        self.kv.wait_all()
        self.kv.wait_replica_sync()


KINDS = [name for name, each in vars(Calls).items() if callable(each) and name not in ("__init__", "keys", "amounts")]


def work(kv, added):
    """Random calls, many in flight together, and meetings of all workers."""
    calls = Calls(kv, added[kv.id % WORKERS])
    with kv.setup():
        calls.push()
    for kind in kv.rng.choice(KINDS, CALLS):
        getattr(calls, kind)()
    kv.wait_all()
    kv.wait_replica_sync()
    kv.barrier()
    made = kv.allreduce(CALLS)
    if made != CALLS * kv.num_workers:
        raise ArithmeticError(f"{made} calls were made, not {CALLS} by each of {kv.num_workers} workers")


def ask(server) -> None:
    """Calls of the server itself."""
    server.owner(range(NUM_KEYS))
    server.local_keys()
    server.stats(all_ranks=True)
    server.waiting_times(all_ranks=True)
    server.reset_stats()


def lap(number: int, folder: Path) -> None:
    """One server, from its creation to its end, and a small one meanwhile; raises if a sum is not exact."""
    import numpy as np

    import lapse
    from mpi4py.MPI import COMM_WORLD as comm

    added = np.zeros((WORKERS, NUM_KEYS))
    replicated = np.arange(0, NUM_KEYS - NUM_SET, 50)
    combine, wire = RULES[number % len(RULES)]
    with (
        lapse.Server(
            NUM_KEYS,
            LENGTH,
            workers=WORKERS,
            replicated_keys=replicated,
            replication=lapse.Replication(
                max_pending=200, combine=combine, wire=wire, rates=np.arange(len(replicated)) if number % 2 else None
            ),
            sampling=lapse.Sampling(SCHEMES[number % len(SCHEMES)], lapse.Uniform(0, NUM_KEYS)),
            seed=number,
        ) as server,
        lapse.Server(10, 1) as small,
    ):
        server.initialize(range(NUM_KEYS), lapse.Constant(0))
        small.initialize(range(10), lapse.Normal(0, 1))
        with small.worker() as kv:
            kv.pull(range(10)).wait()
        server.run(work, added)
        total = comm.allreduce(added.sum(axis=0))
        path = folder / f"lap-{number % 2}"
        server.save(path)
        server.run(work, added)
        ask(server)
        server.load(path)
        values = server.run(lambda kv: kv.pull(np.arange(NUM_KEYS)).wait())[0]
        wrong = values != total[:, None]
        if (combine, wire) != ("sum", "exact"):  # the other rules take something from the sum, or round it
            wrong[replicated] = ~np.isfinite(values[replicated])
        if wrong.any():
            raise ArithmeticError(f"lap {number}: {wrong.sum()} of {values.size} numbers are wrong")


def run_laps(seconds: float) -> None:
    """What each rank does; rank 0 prints what it and the others held, as JSON."""
    import lapse  # noqa: F401  before mpi4py.MPI: it chooses the MPI library
    from mpi4py.MPI import COMM_WORLD as comm

    folder = Path(comm.bcast(tempfile.mkdtemp(prefix="lapse-soak-") if comm.rank == 0 else None))
    held = []
    end = time.monotonic() + seconds
    try:
        while comm.bcast(time.monotonic() < end):
            lap(len(held), folder)
            held.append(measure())
    finally:
        if comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    everything = comm.gather(held)
    if comm.rank == 0:
        print("HELD " + json.dumps(everything), flush=True)


def growth(held: list[dict[str, float]], what: str) -> float:
    """By how much the most that was held in the last third is above the most at the end of the warm-up."""
    first = max(2, int(WARM_UP * len(held)))
    return max(each[what] for each in held[-max(len(held) // 3, 1) :]) - max(each[what] for each in held[:first])


def judge(ranks: list[list[dict[str, float]]]) -> list[str]:
    """Say what has grown."""
    limits = {"megabytes": MOST_MEGABYTES, "files": MOST_FILES, "segments": MOST_SEGMENTS}
    return [
        f"rank {rank} holds {growth(held, what):.0f} {what} more at the end than behind the first laps"
        for rank, held in enumerate(ranks)
        for what, limit in limits.items()
        if growth(held, what) > limit
    ]


def soak(ranks: int, minutes: float, sharing: int) -> list[str]:
    """Run the laps under mpirun; returns what went wrong."""
    from launch import mpirun

    env = {"LAPSE_SHARED_MEMORY_RANKS": str(sharing)}
    job = mpirun(ranks, [__file__, "--laps", minutes * 60], timeout=minutes * 60 + 120, env=env)
    line = next((each for each in job.stdout.splitlines() if each.startswith("HELD ")), None)
    if job.returncode or line is None:
        return [f"the job ended with status {job.returncode}:\n{job.output[-3000:]}"]
    held = json.loads(line.removeprefix("HELD "))
    last = held[0][-1]
    print(
        f"{ranks} ranks, {sharing} of each host: {len(held[0])} laps; rank 0 holds {last['megabytes']:.0f} MB, "
        f"{last['files']} files, {last['segments']} mapped segments",
        flush=True,
    )
    return judge(held)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="in all (default %(default)s)")
    parser.add_argument("--ranks", type=int, default=4, help="default %(default)s")
    parser.add_argument("--laps", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.laps is not None:
        run_laps(args.laps)
        return 0
    wrong = [each for sharing in (1, 2) for each in soak(args.ranks, args.minutes / 2, sharing)]
    print("\n".join(wrong) or "nothing has grown, and all sums were exact")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
