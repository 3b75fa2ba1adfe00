"""What goes wrong on one rank, thread or process alone: an error that names it on all of them, and never a hang."""

import concurrent.futures

import pytest

import shim
from program_jobs import PROGRAMS, job, lines

# Errors that are hard to report --------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_error_is_reported_whatever_its_text_is(ranks):
    ended = job(ranks, "odd_errors").check()
    kinds = ["ValueError", "Unshowable", "ValueError", "Unsendable", "ValueError"]
    assert lines(ended, ranks - 1) == [*kinds, "Unshowable"]
    if ranks == 1:
        return
    said = lines(ended, 0)
    assert said[0] == r"RemoteError 1 1 39 'rank 1, worker 1: ValueError: caf\\udce9'"
    for line, kind in zip(said, kinds):
        assert line.startswith("RemoteError 1 1 ") and kind in line
    assert int(said[2].split()[3]) < 10_000  # cut
    assert said[4].endswith(r"ValueError: a\\x00b'")
    assert said[5] == "Unshowable"


# Objects in other threads, in children and after their end ------------------------------------------


def test_operations_and_kernels_of_another_thread_a_child_or_a_past_run_are_errors():
    ended = job(2, "operations_of_others").check()
    for rank in range(2):
        said = [line.split(" ", 1) for line in lines(ended, rank)]
        in_threads = [text for where, text in said if where == "thread"]
        assert len(in_threads) == 16
        for text in in_threads:
            assert text.startswith(f"RuntimeError: worker {rank} belongs to another thread, 'lapse-worker-0'"), text
            assert "'intruder'" in text
        in_child = [text for where, text in said if where == "child"]
        assert len(in_child) == 18 and in_child.pop() == "no error"  # what does not use the worker
        for text in in_child:
            assert text.startswith("RuntimeError: a ") and "fork" in text, text
        afterwards = [text for where, text in said if where == "after"]
        assert afterwards == [f"ClosedError: worker {rank} was used after its run"] * 14


# Before a collective step ---------------------------------------------------------------------------


@pytest.mark.parametrize("thread", ["lapse-worker-1", "lapse-call-2"])
def test_a_thread_that_cannot_be_started_is_an_error_on_all_ranks(thread):
    ended = job(2, "refused_thread", thread).check()
    assert lines(ended, 1) == ["RuntimeError can't start new thread", "run returned"]
    assert lines(ended, 0) == ["RemoteError rank 1: RuntimeError: can't start new thread", "run returned"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_arguments_that_differ_between_ranks_are_an_error_on_all_of_them(ranks):
    ended = job(ranks, "arguments_that_differ").check()
    expected = {
        "keys": "ValueError: initialize needs the same keys on all ranks: 10 keys",
        "init": "ValueError: initialize needs the same init on all ranks: Constant(x=False) on rank 0, "
        "Constant(x=True) on rank 2",
        "a key": "IndexError: key 20 is outside the range 0 .. 19 of this server",
        "no keys": "TypeError: keys must be integers",
        "no initializer": "TypeError: init must be a lapse.Normal",
        "the class": "TypeError: init is the class Normal: give an instance, as in Normal()",
        "the shape": "ValueError: the initializer returned values of shape (",
        "the function": "ZeroDivisionError: for key 19",
        "text": "ValueError: init returned <U4 for key",
    }
    for rank in range(ranks):
        said = lines(ended, rank)
        shapes, others = said[: 4 * 2], said[4 * 2 :]
        assert all(line.startswith("allreduce ") for line in shapes)
        errors = [line.removeprefix("allreduce ").split(":")[0] for line in shapes]
        assert sorted(errors[:2]) == ["ValueError"] * 2
        assert len(others) == len(expected)
        if ranks > 1:
            assert errors.count("ValueError") == 4 and errors.count("TypeError") >= 2, said
            for line, (name, text) in zip(others, expected.items()):
                assert line.startswith(f"{name} {text}"), line


# Memory ------------------------------------------------------------------------------------------------


def test_operations_take_no_more_memory_than_is_charged():
    """One unfinished operation keeps no results of later ones; pushes of one small key reach the limit of 8 MB."""
    ended = job(3, "memory_of_operations").check()
    pulls, pushes = (line.split() for line in lines(ended, 0))
    assert pulls[0] == "pulls" and int(pulls[1]) < 60
    assert pushes[0] == "pushes" and pushes[2] == "True" and int(pushes[1]) < 16


# Errors of MPI -----------------------------------------------------------------------------------------


@pytest.mark.deadline(90)
def test_an_error_of_mpi_is_an_error_on_all_ranks():
    """Whichever call fails on rank 1; nothing that it concerns is used afterwards."""
    calls = {
        "MPI_Test": 500,
        "MPI_Test_completed": 50,
        "MPI_Isend": 50,
        "MPI_Irecv": 50,
        "MPI_Testsome": 50,
        "MPI_Get_count": 50,
    }
    try:
        env = {name: shim.failing((name, number, 1)) for name, number in calls.items()}
    except shim.Unavailable as reason:
        pytest.skip(str(reason))
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        jobs = {name: pool.submit(job, 2, "failing_mpi", env=env[name]) for name in calls}
    for name, started in jobs.items():
        ended = started.result()
        assert f"of {name} fails" in ended.stderr, ended.output
        assert lines(ended, 1)[0].startswith("CommError rank 1: "), ended.output
        if name != "MPI_Testsome":  # what was sent is unknown then
            assert lines(ended, 0)[0].startswith("RemoteError rank 1: "), ended.output


# Exceptions that nobody catches ------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before MPI", "before a server", "between servers", "after a server"])
def test_an_exception_outside_a_server_ends_the_job(place):
    ended = job(3, "error_outside_a_server", place)
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert ended.stderr.count("FileNotFoundError: the data of rank 1") == 1
    assert "rank 1 ends the job" in ended.stderr


def test_one_mistake_is_reported_once_and_in_a_line_by_the_other_ranks():
    ended = job(3, "uncaught_worker_error")
    assert ended.stderr.count("Traceback (most recent call last)") == 1
    others = [line for line in ended.stderr.splitlines() if line.startswith("lapse: rank ")]
    assert len(others) == 2 and all("ZeroDivisionError: the text of the error" in line for line in others)


def test_ranks_that_wait_for_one_that_does_not_come_say_so():
    ended = job(2, "missing_rank", env={"LAPSE_STALL_REPORT": "1"}).check()
    assert ended.stderr.count("lapse: rank 0 has been waiting for") == 1
    assert "lapse.Server(...)" in ended.stderr and "rank 1 has" not in ended.stderr


def test_ranks_that_wait_for_one_that_is_in_a_barrier_of_mpi_say_so():
    ended = job(2, "close_while_a_rank_is_in_mpi", env={"LAPSE_STALL_REPORT": "1"}).check()
    assert "rank 0 of 2" in ended.stderr and "s in close for rank 1" in ended.stderr
    assert "rank 1 of 2" not in ended.stderr


# Children ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_children_of_a_rank_do_not_start_mpi(method):
    ended = job(2, "spawned_children", method).check()
    for rank in range(2):
        assert lines(ended, rank) == ["[(1, True), (2, True), (3, True)]"]


# Silent misuse -----------------------------------------------------------------------------------------


def test_a_pull_into_an_array_that_is_dropped_unfinished_warns_once_with_its_line():
    ended = job(2, "dropped_pulls").check()
    source = (PROGRAMS / "dropped_pulls.py").read_text().splitlines()
    number = next(number for number, line in enumerate(source, 1) if "this line" in line)
    for rank in range(2):
        assert lines(ended, rank) == [f"drop [('RuntimeWarning', {number})]", "wait_for_all []", "hold []"]


def test_constructors_that_fail_leave_no_communicators():
    ended = job(2, "many_failed_servers").check()
    assert lines(ended, 0) == ["RuntimeError rank 1: refused"] and lines(ended, 1) == ["OSError refused"]
