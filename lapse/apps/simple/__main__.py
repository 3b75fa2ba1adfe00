"""``python -m lapse.apps.simple``: push, pull and localize a few keys.

In each iteration every worker adds 1 to all values of all keys, reads them, prints what it read
(not with --no-progress), and localizes one key: key x in iteration x. Key 0 is replicated: every rank
has it. At the end each value is the number of workers times the number of iterations, wherever the
keys have moved meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from lapse.apps import _base
from lapse.apps._training import Training


def make_parser() -> argparse.ArgumentParser:
    """All options of the application."""
    parser = argparse.ArgumentParser(
        prog="python -m lapse.apps.simple", description=__doc__,
        epilog="example: mpirun -n 3 python -m lapse.apps.simple -k 14 -v 5 -i 10 -t 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-k", "--keys", type=_base.positive_int, default=10, metavar="N",
        help="number of keys (default: %(default)s)")
    add("-v", "--values-per-key", "--dim", dest="dim", type=_base.positive_int, default=3,
        metavar="N", help="values of each key (default: %(default)s)")
    add("-i", "--iterations", "--epochs", dest="epochs", type=_base.positive_int, default=4,
        metavar="N", help="iterations of each worker (default: %(default)s)")
    add("-t", "--threads", "--workers", dest="workers", type=_base.positive_int, default=2,
        metavar="N", help="worker threads on each rank (default: %(default)s)")
    add("--management", choices=("lapse2", "lapse", "classic"), default="lapse2",
        help="lapse: nothing is replicated; classic: nothing is localized, either (default: %(default)s)")
    add("--seed", type=_base.natural_int, default=1, metavar="N",
        help="taken for uniformity with the other applications: nothing is random here")
    add("--output", type=Path, metavar="DIR", help="folder for checkpoints (made where it is missing)")
    add("--max-runtime", type=_base.positive_float, metavar="SECONDS",
        help="end after the iteration in which the process has run for so long")
    _base.add_checkpoint_options(parser)
    _base.add_report_options(parser)
    return parser


def work(kv, args: argparse.Namespace, iteration: int) -> None:
    """What each worker does in an iteration."""
    keys = np.arange(args.keys)
    kv.push(keys, np.ones((args.keys, args.dim), dtype=np.float32)).wait()
    values = kv.pull(keys).wait()
    if not args.no_progress:
        print(f"worker {kv.id}, iteration {iteration}: first values {values[:, 0].tolist()}", flush=True)
    if args.management != "classic":
        kv.localize(iteration % args.keys).wait()


def is_exact(kv, args: argparse.Namespace, expected: int) -> bool:
    """Whether all workers see the expected sums."""
    kv.wait_replica_sync()
    kv.barrier()  # now all ranks have said so: every update is in every replica
    values = kv.pull(np.arange(args.keys)).wait()
    return bool(kv.allreduce((values == expected).all(), op="min"))


def run(args: argparse.Namespace, comm) -> None:
    """Run the workers, check the sums and print the ``RESULT`` line."""
    import lapse

    training = Training("simple", comm, args, is_logged=False)
    if training.repeat_result():
        return
    args = training.args
    replicated = [0] if args.management == "lapse2" else None
    with lapse.Server(args.keys, args.dim, workers=args.workers, comm=comm, seed=args.seed,
                      replicated_keys=replicated) as server:
        training.restore(server)
        expected = (training.state or {"expected": 0})["expected"]
        for iteration in training.epochs(server):
            server.run(work, args, iteration)
            expected += server.num_workers
            training.end_epoch(loss=None, state={"expected": expected})
        exact = server.run(is_exact, args, expected)[0]
    if comm.rank == 0 and not args.no_progress:
        print(_base.locality_report(training.stats, training.epoch - (training.resumed_from or 0)))
    training.finish(expected=expected, exact=exact)
    if not exact:
        raise _base.AppError(f"not all values are {expected}")


def main(argv: list[str] | None = None) -> None:
    """Run the application with the given arguments (default: those of the command line)."""
    args = _base.parse(make_parser(), argv)
    from mpi4py import MPI  # not before: `--help` must not start MPI

    with _base.job(MPI.COMM_WORLD):
        run(args, MPI.COMM_WORLD)


if __name__ == "__main__":
    sys.exit(main())
