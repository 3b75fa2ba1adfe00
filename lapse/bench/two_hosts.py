"""The figures of group ``remote`` between two hosts, for a job that the user starts.

mpirun -hosts A,B -ppn 1 -n 2 python -m lapse.bench.two_hosts
benchmarks/hosts python -m lapse.bench.two_hosts
"""

from __future__ import annotations

from lapse import _mpi_loader
from lapse.bench import _tables
from lapse.bench._groups import Context, Group, Job
from lapse.bench.messages import between_hosts


def main() -> None:
    """Measure and print a table."""
    world = _mpi_loader.load().COMM_WORLD
    group = Group("two hosts", "pulls and pushes between two hosts, against bare MPI", between_hosts, (Job(2),))
    context = Context(group, group.jobs[0], rank=world.rank, ranks=world.size)
    rows = list(group.run(context))
    if world.rank == 0:
        print(_tables.of_group(rows), _tables.of_targets(rows), sep="\n\n")


if __name__ == "__main__":
    main()
