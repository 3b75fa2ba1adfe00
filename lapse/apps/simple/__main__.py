"""``python -m lapse.apps.simple``: the smallest use of a parameter server: push, pull and localize a few keys.

In each iteration every worker adds 1 to all values of all keys, reads them, prints what it read (unless --no-progress
is given), and localizes one key: key x in iteration x. Key 0 is replicated: every rank has it. At the end each value is
the number of workers times the number of iterations, wherever the keys have moved meanwhile.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared import job, options
from lapse.apps._shared.metrics import locality_report
from lapse.apps._shared.options import Group, natural_int, positive_float, positive_int
from lapse.apps._shared.training import Training

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def work(kv: lapse.Worker, args: argparse.Namespace, iteration: int) -> None:
    """One iteration of a worker."""
    keys = np.arange(args.keys)
    kv.push(keys, np.ones((args.keys, args.dim), dtype=np.float32)).wait()
    values = kv.pull(keys).wait()
    if not args.no_progress:
        print(f"worker {kv.id}, iteration {iteration}: first values {values[:, 0].tolist()}", flush=True)
    if args.management != "classic":
        kv.localize(iteration % args.keys).wait()


def is_exact(kv: lapse.Worker, args: argparse.Namespace, expected: int) -> bool:
    """Whether all workers see the expected sums."""
    kv.wait_replica_sync()
    kv.barrier()  # now all ranks have synchronized: every update is in every replica
    values = kv.pull(np.arange(args.keys)).wait()
    return bool(kv.allreduce((values == expected).all(), op="min"))


def run(args: argparse.Namespace, comm: Intracomm) -> None:
    """Run the workers, check the sums and print the ``RESULT`` line."""
    training = Training("simple", comm, args, is_logged=False)
    if training.repeat_result():
        return
    args = training.args
    replicated = [0] if args.management == "lapse2" else None
    with lapse.Server(
        args.keys, args.dim, workers=args.workers, comm=comm, seed=args.seed, replicated_keys=replicated
    ) as server:
        training.restore(server)
        expected = (training.state or {"expected": 0})["expected"]
        for iteration in training.epochs(server):
            server.run(work, args, iteration)
            expected += server.num_workers
            training.end_epoch(loss=None, state={"expected": expected})
        exact = server.run(is_exact, args, expected)[0]
    if comm.rank == 0 and not args.no_progress:
        print(locality_report(training.stats, training.epoch - (training.resumed_from or 0)))
    training.finish(expected=expected, exact=exact)
    if not exact:
        raise job.AppError(f"not all values are {expected}")


def make_parser() -> argparse.ArgumentParser:
    """All options of the application."""
    example = "example: mpirun -n 3 python -m lapse.apps.simple -k 14 -v 5 -i 10 -t 4"
    parser = options.new_parser("simple", __doc__, example)
    group = Group(parser)
    group.add("-k --keys", positive_int, "number of keys", default=10)
    group.add("-v --values-per-key --dim", positive_int, "number of values per key", default=3, dest="dim")
    group.add("-i --iterations --epochs", positive_int, "number of iterations of each worker", default=4, dest="epochs")
    group.add("-t --threads --workers", positive_int, "number of worker threads per rank", default=2, dest="workers")
    group.add(
        "--management",
        options.MANAGEMENT,
        "lapse: nothing is replicated; classic: nothing is localized, either",
        default="lapse2",
    )
    parser.add_argument(
        "--seed",
        type=natural_int,
        default=1,
        metavar="N",
        help="accepted as in the other applications; nothing is random here",
    )
    group.add("--output DIR", Path, "folder for checkpoints; created if it does not exist")
    group.add(
        "--max-runtime SECONDS", positive_float, "stop after the iteration in which the process has run for this long"
    )
    options.add_checkpoint_options(group)
    options.add_report_options(group)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the application with the given arguments (default: those of the command line)."""
    args = options.parse(make_parser(), argv)
    with job.start() as comm:
        run(args, comm)


if __name__ == "__main__":
    main()
