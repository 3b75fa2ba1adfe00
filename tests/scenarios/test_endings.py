"""How jobs end when something goes wrong: each is a job of its own, with a time limit.

The programs are the files of programs/. No job may hang: a limit of 60 s stands for "never"; what must happen within
seconds says so.
"""

import re
import shutil
from pathlib import Path

import pytest

from lapse import _build_info, _mpi_loader
from program_jobs import job, lines

# An exception in a worker -------------------------------------------------------------------------


def test_an_exception_in_one_worker_stops_run_on_all_ranks():
    """Whatever the other workers do at that moment; and the next server works."""
    ended = job(3, "worker_error_while_others_wait").check()
    for rank in range(3):
        *said, last = lines(ended, rank)
        assert len(said) == 9 and last == "all closed 3"
        expected = (
            "ZeroDivisionError: the text" if rank == 1 else "RemoteError: rank 1, worker 3: ZeroDivisionError: the text"
        )
        for line in said:
            assert line.split(" | ")[1:] == [expected, "True", "True"]


def test_an_uncaught_exception_in_a_worker_terminates_the_job_with_its_text():
    ended = job(3, "uncaught_worker_error")
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert ended.stderr.count("ZeroDivisionError: the text of the error") >= 3
    assert "RemoteError" in ended.stderr


def test_a_rank_with_an_exception_of_its_own_raises_that_one():
    ended = job(3, "errors_on_two_ranks").check()
    assert lines(ended, 0) == ["ValueError of worker 0"] and lines(ended, 1) == ["ValueError of worker 1"]
    assert lines(ended, 2)[0].startswith("RemoteError rank ") and "ValueError: of worker" in lines(ended, 2)[0]


def test_a_worker_that_returns_while_others_are_in_barrier_is_an_error_on_every_rank():
    for workers in (["3"], ["2", "3"]):
        ended = job(3, "missing_barrier", *workers).check()
        for rank in range(3):
            assert "barrier" in lines(ended, rank)[0] and "the end of run" in lines(ended, rank)[0]


def test_workers_in_different_collective_calls_are_an_error_on_every_rank():
    ended = job(3, "different_collective_calls").check()
    for rank in range(3):
        assert "allreduce" in lines(ended, rank)[0] and "setup" in lines(ended, rank)[0]


# Leaving the with block ---------------------------------------------------------------------------


def test_an_exception_in_the_main_thread_reaches_all_ranks():
    """In whatever call they wait; a rank that catches it can continue with another server."""
    ended = job(3, "main_thread_error_while_others_wait").check()
    for rank in range(3):
        said = lines(ended, rank)
        assert len(said) == 7
        expected = (
            ["ZeroDivisionError", "the text"] if rank == 1 else ["RemoteError", "rank 1: ZeroDivisionError: the text"]
        )
        for line in said:
            assert line.split(" | ")[1:] == expected


def test_an_uncaught_exception_in_the_main_thread_terminates_the_job():
    ended = job(3, "uncaught_main_thread_error")
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "ZeroDivisionError: in the main thread" in ended.stderr


def test_sys_exit_0_inside_the_with_block_closes_as_usual():
    ended = job(3, "exit_0_in_server_block").check()
    assert "lapse:" not in ended.stderr
    assert [lines(ended, rank) for rank in range(3)] == [["done"]] * 3


def test_sys_exit_0_inside_a_worker_block_waits_for_its_operations():
    job(3, "exit_0_in_worker_block").check()


def test_sys_exit_3_inside_the_with_block_is_an_error_on_the_other_ranks():
    ended = job(3, "exit_3_in_server_block")
    assert ended.returncode == 3
    for rank in (0, 1):
        assert lines(ended, rank) == ["rank 2: SystemExit: 3"]


def test_a_rank_that_computes_for_long_after_an_error_is_terminated():
    """One that computes on for long is ended by abort, with the first error printed."""
    ended = job(3, "error_while_another_rank_computes_for_long")
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "the first error" in ended.stderr and "rank 2" in ended.stderr


def test_a_rank_that_waits_in_mpi_after_an_error_is_terminated():
    ended = job(3, "error_while_others_wait_in_mpi")
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "the first error" in ended.stderr


def test_a_rank_that_computes_gets_the_error_at_its_next_call():
    ended = job(2, "error_while_another_rank_computes")
    assert lines(ended, 0) == ["rank 1: ZeroDivisionError: the first error"] * 4


# Leaving outside of any server --------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before", "between"])
def test_a_rank_that_exits_with_an_error_while_others_wait_for_it_ends_the_job(place):
    ended = job(3, "exit_outside_a_server", place, 3)
    assert ended.returncode == 3
    assert ended.seconds < 40
    assert "rank 1 has ended with status 3" in ended.stderr
    assert "at the end" not in ended.stdout


@pytest.mark.parametrize("place", ["after", "all ranks"])
def test_ranks_that_exit_with_an_error_while_nobody_waits_end_at_once(place):
    ended = job(3, "exit_outside_a_server", place, 3)
    assert ended.returncode == 3
    assert ended.seconds < 9
    assert "lapse:" not in ended.stderr


def test_a_rank_that_exits_with_status_0_waits_for_the_others():
    ended = job(2, "exit_0_while_another_rank_computes").check()
    assert lines(ended, 0) == ["at the end"]
    assert "lapse:" not in ended.stderr


@pytest.mark.skipif(_build_info.folder != "wheel", reason="the library that is copied is that of the wheel")
def test_the_library_that_is_finalized_is_the_one_that_was_loaded(tmp_path):
    """Here a copy of that of the build, as MPIs of other vendors are."""
    library = Path(_mpi_loader.library_path())
    shutil.copy(library, tmp_path)
    env = {"MPI4PY_LIBMPI": tmp_path / library.name, "LD_LIBRARY_PATH": f"{library.parent}:{library.parent}/mpich"}
    ended = job(2, "exit_0_in_server_block", env=env).check()
    assert ended.stderr == ""


# Forgotten close ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_servers_that_no_rank_closes_are_closed_at_exit_with_a_warning(ranks):
    ended = job(ranks, "close_forgotten_by_all").check()
    assert ended.seconds < 20
    assert ended.stderr.count("still open") == 1 and "close()" in ended.stderr


def test_several_servers_that_no_rank_closes_are_closed_at_exit():
    ended = job(3, "many_servers_not_closed").check()
    assert "still open" in ended.stderr
    assert ended.seconds < 20


def test_a_server_that_is_collected_without_close_does_not_block_the_exit():
    ended = job(3, "server_collected_without_close").check()
    assert ended.seconds < 20
    assert "still open" in ended.stderr


@pytest.mark.parametrize("call", ["run with barrier", "worker with pulls", "close"])
def test_a_close_missing_on_one_rank_is_an_error_on_the_ranks_that_continue(call):
    ended = job(3, "close_forgotten_by_one_rank", call)
    assert ended.seconds < 30
    for rank in (0, 2):
        assert lines(ended, rank)[0].startswith("RemoteError rank 1")


def test_a_rank_that_exits_while_another_computes_for_long_terminates_the_job():
    ended = job(2, "rank_leaves_while_another_computes")
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "rank 1" in ended.stderr


def test_an_exception_without_a_with_block_reaches_the_other_ranks():
    ended = job(3, "error_without_server_block")
    assert ended.returncode != 0
    assert ended.seconds < 30
    for rank in (0, 2):
        assert lines(ended, rank) == ["rank 1: ZeroDivisionError: nobody catches this"]


def test_sys_exit_without_a_with_block_reaches_the_other_ranks():
    ended = job(3, "exit_3_without_server_block")
    assert ended.returncode == 3
    for rank in (0, 2):
        assert lines(ended, rank)[0].startswith("rank 1")


# Signals ------------------------------------------------------------------------------------------


def test_an_interrupt_stops_the_call_in_which_the_main_thread_waits():
    """Rank 0 waits in a call of ours; rank 1 computes, and learns of it at its next call."""
    ended = job(2, "interrupt_of_waiting_calls").check()
    assert [line.split(" | ", 1)[1] for line in lines(ended, 0)] == ["KeyboardInterrupt | True"] * 7
    assert len(lines(ended, 1)) == 7
    for line in lines(ended, 1):
        assert line.split(" | ", 1)[1] in (
            "RemoteError | rank 0: KeyboardInterrupt",
            "RemoteError | rank 0, worker 0: KeyboardInterrupt",
        )


def test_an_interrupt_stops_a_call_that_waits_for_credits():
    """Nothing more may be in flight, and the rank that would answer is stopped."""
    ended = job(2, "interrupt_of_call_without_credits")
    assert lines(ended, 0) == ["KeyboardInterrupt True"]


def test_a_killed_rank_terminates_the_job():
    ended = job(3, "killed_rank")
    assert ended.returncode != 0
    assert ended.seconds < 30


@pytest.mark.parametrize("memory", ["limited", "unlimited"])
def test_a_rank_that_a_library_ends_says_whether_it_was_short_of_memory(memory):
    """MPICH ends a process by an assertion that names a request, if there is no memory for one."""
    ended = job(2, "library_ends_without_memory", memory)
    assert ended.returncode != 0
    assert ended.seconds < 30
    said = re.findall(r"lapse: rank (\d+) ends with status (\d+), and has less than 64 MB left of", ended.stderr)
    assert said == ([("1", "13")] if memory == "limited" else [])


# Threads and processes ----------------------------------------------------------------------------


def test_a_worker_in_another_thread_is_a_runtime_error():
    ended = job(2, "worker_in_another_thread").check()
    for rank in range(2):
        assert len(lines(ended, rank)) == 4
        assert all(
            line.startswith(f"RuntimeError worker {rank} belongs to another thread") for line in lines(ended, rank)
        )


def test_calls_of_a_forked_child_are_errors_and_leave_the_parent_intact():
    ended = job(2, "forked_child_calls").check()
    for rank in range(2):
        assert lines(ended, rank) == ["True"] * 6 + ["parent"]


def test_exit_handlers_of_a_forked_child_leave_the_parent_intact():
    """Its interpreter runs the exit handlers: they must neither tell others nor abort the job."""
    ended = job(2, "forked_child_runs_exit_handlers")
    assert [lines(ended, rank) for rank in range(2)] == [["parent"]] * 2, ended.output
    assert ended.returncode == 0
    assert ended.seconds < 10


def test_a_multiprocessing_child_leaves_the_parent_intact():
    job(2, "multiprocessing_child").check()


# Without MPI_THREAD_MULTIPLE ----------------------------------------------------------------------


def test_less_than_thread_multiple_is_an_error_on_every_rank():
    ended = job(2, "less_than_thread_multiple").check()
    assert ended.stdout.count("CommError") == 2


# A rank that does not answer ------------------------------------------------------------------------


@pytest.mark.deadline(90)
def test_a_failed_job_does_not_wait_for_a_stopped_rank():
    """MPI_Finalize would; 10 s after the failure the job ends."""
    ended = job(3, "stopped_rank_after_error")
    assert ended.returncode != 0
    assert "no answer from rank 1" in ended.stderr
