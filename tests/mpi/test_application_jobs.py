"""What the ranks of an application do together: `lapse.apps._shared.job`."""

import time

import pytest

from lapse.apps._shared.job import AppError, collectively, on_rank_0, on_rank_0_only
from mpi4py.MPI import COMM_WORLD as comm

SECONDS = 0.5


def compute():
    """Use so much CPU time, however busy the machine is: whoever polls meanwhile gets as much."""
    end = time.process_time() + SECONDS
    while time.process_time() < end:
        sum(range(1000))


def test_ranks_that_wait_for_another_one_leave_it_the_cores():
    began = time.process_time()
    on_rank_0(comm, compute)
    assert comm.rank == 0 or time.process_time() - began < SECONDS / 2


def test_the_result_of_rank_0_is_everywhere_or_there_only():
    assert on_rank_0(comm, lambda: comm.rank + 5) == 5
    assert on_rank_0_only(comm, lambda: comm.rank + 5) == (5 if comm.rank == 0 else None)


def test_an_error_of_one_rank_is_raised_by_all():
    last = comm.size - 1

    def step():
        if comm.rank == last:
            raise KeyError("gone")
        return comm.rank

    name = "" if comm.size == 1 else f"rank {last}: "
    with pytest.raises(AppError, match=f"^{name}KeyError: 'gone'$"):
        collectively(comm, step)
    assert collectively(comm, lambda: comm.rank) == comm.rank
