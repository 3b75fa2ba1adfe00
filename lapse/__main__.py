"""Floor 8. `python -m lapse`: versions, a self-test of all ranks under `mpirun`, and the benchmarks.

Every rank pushes to and localizes the same keys at once; the sums must be exact.
"""

import argparse
import platform
import sys
import time
from collections.abc import Sequence

import lapse
from lapse.bench import _program

KEYS = 1000
ROUNDS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Print versions and run the self-test, or the benchmarks; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lapse",
        description="Print versions; then let all ranks push to and localize the same keys at once and check "
        "that no update is lost. Try: mpirun -n 4 python -m lapse",
    )
    parser.add_argument("--version", action="version", version=lapse.__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    bench = commands.add_parser("bench", help=_program.SUMMARY)
    _program.add_options(bench)
    args = parser.parse_args(argv)
    if args.command == "bench":
        return _program.run(bench, args)
    return check()


def check() -> int:
    """Print versions and run the self-test; returns the exit status."""
    from mpi4py import MPI  # not before --help and --version

    if MPI.COMM_WORLD.rank == 0:
        print(versions(), flush=True)
    report = self_test()
    if MPI.COMM_WORLD.rank == 0:
        print(report)
    return 0


def versions() -> str:
    """The versions of Lapse, Python, NumPy, mpi4py and MPI, one per line."""
    import numpy

    from lapse import _mpi_loader
    import mpi4py

    return "\n".join(
        [
            f"lapse   {lapse.__version__}",
            f"python  {platform.python_version()}",
            f"numpy   {numpy.__version__}",
            f"mpi4py  {mpi4py.__version__}",
            f"MPI     {_mpi_loader.describe_build()}",
            f"mpirun  {_mpi_loader.launcher_path() or 'not found beside this MPI'}",
        ]
    )


def self_test() -> str:
    """Check on all ranks that no update is lost; returns a report, or exits the program with an error message."""
    with lapse.Server(KEYS, 4, "float64") as server, server.worker() as kv:
        start = time.perf_counter()
        for _ in range(ROUNDS):
            kv.localize(kv.rng.integers(0, KEYS, 100))
            kv.push(range(KEYS), [1.0] * (4 * KEYS))
        kv.wait_all()
        kv.barrier()
        seconds = time.perf_counter() - start
        wrong = int((kv.pull(range(KEYS)).wait() != ROUNDS * server.size).sum())
        kv.barrier()
        moved = kv.allreduce(server.stats()["relocations_in"])
    if wrong:
        sys.exit(f"self-test: {wrong} of {4 * KEYS} sums are wrong on rank {server.rank}")
    return (
        f"self-test: {server.size} ranks, {ROUNDS * KEYS * server.size} updates while {moved} keys moved, "
        f"all sums exact, {seconds:.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
