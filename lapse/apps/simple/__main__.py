"""``python -m lapse.apps.simple``: push, pull and localize a few keys.

In each iteration every worker adds 1 to all values of all keys, reads them, prints what it read
(not with --no-progress), and localizes one key: key x in iteration x. Key 0 is replicated: every rank
has it. At the end each value is the number of workers times the number of iterations, wherever the
keys have moved meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from lapse.apps import _base


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
    _base.add_report_options(parser)
    return parser


def work(kv, args: argparse.Namespace) -> np.ndarray:
    """What each worker does; returns the final values."""
    keys = np.arange(args.keys)
    for iteration in range(args.epochs):
        kv.push(keys, np.ones((args.keys, args.dim), dtype=np.float32)).wait()
        values = kv.pull(keys).wait()
        if not args.no_progress:
            print(f"worker {kv.id}, iteration {iteration}: first values {values[:, 0].tolist()}",
                  flush=True)
        if args.management != "classic":
            kv.localize(iteration % args.keys).wait()
    kv.wait_replica_sync()
    kv.barrier()  # now all ranks have said so: every update is in every replica
    return kv.pull(keys).wait()


def run(args: argparse.Namespace, comm) -> None:
    """Run the workers, check the sums and print the ``RESULT`` line."""
    import lapse

    metrics = _base.collectively(comm, _base.Metrics, args.metrics if comm.rank == 0 else None)
    replicated = [0] if args.management == "lapse2" else None
    with lapse.Server(args.keys, args.dim, workers=args.workers, comm=comm, seed=args.seed,
                      replicated_keys=replicated) as server:
        start = time.perf_counter()
        results = server.run(work, args)
        seconds = (time.perf_counter() - start) / args.epochs
        stats = server.stats(all_ranks=True)
    expected = comm.size * args.workers * args.epochs
    exact = comm.allreduce(int(all((values == expected).all() for values in results))) == comm.size
    metrics.write(epoch=args.epochs, seconds=seconds, loss=None, exact=exact, stats=stats)
    if comm.rank == 0:
        if not args.no_progress:
            print(_base.locality_report(stats, args.epochs))
        print(_base.result_line("simple", comm.size, args.workers, epochs=args.epochs,
                                seconds_per_epoch=seconds, loss=None, expected=expected,
                                exact=exact), flush=True)
    if not exact:
        raise _base.AppError(f"not all values are {expected}")


def main(argv: list[str] | None = None) -> None:
    """Run the application with the given arguments (default: those of the command line)."""
    args = make_parser().parse_args(argv)
    from mpi4py import MPI  # not before: `--help` must not start MPI

    with _base.job(MPI.COMM_WORLD):
        run(args, MPI.COMM_WORLD)


if __name__ == "__main__":
    sys.exit(main())
