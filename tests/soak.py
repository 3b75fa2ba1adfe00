"""Every operation, again and again, in servers that come and go: exact sums, and nothing that grows.

    .venv/bin/python tests/soak.py                          10 minutes on 4 ranks
    .venv/bin/python tests/soak.py --minutes 60 --ranks 6

`make soak` runs it. Half of the minutes a rank shares memory with one other rank, so that values move by messages and
in shared memory, and replicas do both as well. After each lap (a server with replicas, samples and a checkpoint) each
rank notes its resident memory, its open files and the segments that it has mapped. Behind the first laps, in which
buffers find their size, none of them may grow.
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


def work(kv, added):
    """Random calls, many in flight together; returns what was added to each key by all workers."""
    import numpy as np

    for _ in range(CALLS):
        keys = kv.rng.integers(0, NUM_KEYS, int(kv.rng.integers(1, 60)))
        kind = kv.rng.choice(["push", "pull", "localize", "sample", "here", "out"])
        if kind == "push":
            amounts = kv.rng.integers(-9, 10, len(keys)).astype("f4")
            np.add.at(added[kv.id % WORKERS], keys, amounts)
            kv.push(keys, np.repeat(amounts, LENGTH).reshape(-1, LENGTH))
        elif kind == "pull":
            kv.pull(keys)
        elif kind == "localize":
            kv.localize(keys)
        elif kind == "sample":
            sample = kv.prepare_sample(40)
            kv.pull_sample(sample, 25).wait()
            kv.finish_sample(sample)
        elif kind == "here":
            kv.pull_if_local(keys[:1], np.empty((1, LENGTH), "f4"))
        else:
            kv.pull(keys, out=np.empty((len(keys), LENGTH), "f4")).wait()
    kv.wait_all()
    kv.wait_replica_sync()
    kv.barrier()


def lap(number: int, folder: Path) -> None:
    """One server, from its creation to its end; raises if a sum is not exact."""
    import numpy as np

    import lapse
    from mpi4py.MPI import COMM_WORLD as comm

    added = np.zeros((WORKERS, NUM_KEYS))
    with lapse.Server(
        NUM_KEYS,
        LENGTH,
        workers=WORKERS,
        replicated_keys=np.arange(0, NUM_KEYS, 50),
        replication=lapse.Replication(max_pending=200),
        sampling=lapse.Sampling(["naive", "preloc", "pool", "local"][number % 4], lapse.Uniform(0, NUM_KEYS)),
        seed=number,
    ) as server:
        server.run(work, added)
        total = comm.allreduce(added.sum(axis=0))
        path = folder / f"lap-{number % 2}"
        server.save(path)
        server.run(work, added)
        server.load(path)
        values = server.run(lambda kv: kv.pull(np.arange(NUM_KEYS)).wait())[0]
        if not (values == total[:, None]).all():
            raise ArithmeticError(
                f"lap {number}: {(values != total[:, None]).sum()} of {values.size} numbers are wrong"
            )


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
