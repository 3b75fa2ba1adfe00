"""How jobs end when something goes wrong: each is a job of its own, with a time limit.

No job may hang: a limit of 60 s stands for "never"; what must happen within seconds says so.
"""

import textwrap
import time

import pytest
from launch import mpirun

#: The whole start of each script; `tell` prints a line that ranks cannot mix.
START = """
import os, signal, sys, time
import numpy as np
import lapse
from mpi4py import MPI
world = MPI.COMM_WORLD
rank, size = world.rank, world.size

def tell(*words):
    sys.stdout.write(f"[{rank}] " + " ".join(map(str, words)) + "\\n")
    sys.stdout.flush()
"""

NEVER = 60


def job(ranks, script, timeout=NEVER, env=None):
    """Run a script to its end; the job gets `seconds`, how long it took."""
    began = time.monotonic()
    ended = mpirun(ranks, START + textwrap.dedent(script), timeout=timeout, env=env)
    ended.seconds = time.monotonic() - began
    assert not ended.timed_out, f"the job hung\n{ended.output}"
    return ended


def lines(ended, rank):
    return [
        line.split("] ", 1)[1]
        for line in ended.stdout.splitlines()
        if line.startswith(f"[{rank}] ")
    ]


# An exception in a worker -------------------------------------------------------------------------


def test_an_exception_in_one_worker_ends_run_on_all_ranks():
    """Wherever the other workers are at that moment; and the next server works."""
    ended = job(
        3,
        """
    def for_ever(call):
        while True:
            call()

    row = np.empty(2, "f4")
    OTHERS = {
        "barrier": lambda kv, server: kv.barrier(),
        "allreduce": lambda kv, server: kv.allreduce(1.0),
        "pulls": lambda kv, server: for_ever(lambda: kv.pull(range(20)).wait()),
        "pushes": lambda kv, server: for_ever(lambda: kv.push(range(20), np.ones((20, 2), "f4"))),
        "localizes": lambda kv, server: for_ever(lambda: kv.localize(range(20)).wait()),
        "local pulls": lambda kv, server: for_ever(lambda: kv.pull(server.local_keys()[:1]).wait()),
        "tests": lambda kv, server: for_ever(lambda: kv.localize(3).test()),
        "pull_if_local": lambda kv, server: for_ever(lambda: kv.pull_if_local(3, out=row)),
        "the end of run": lambda kv, server: None,
    }

    def work(kv, server, others):
        if kv.id == 3:
            time.sleep(0.1)
            raise ZeroDivisionError("the text")
        others(kv, server)

    def errors(*calls):
        for call in calls:
            try:
                call()
                yield "no error"
            except BaseException as error:
                yield f"{type(error).__name__}: {error}"

    for name, others in OTHERS.items():
        server = lapse.Server(20, 2, workers=2)
        began = time.monotonic()
        run = lambda: server.run(work, server, others)
        first, *later = errors(run, run,
                               server.stats, lambda: server.owner(3))
        server.close()
        tell(name, "|", first, "|", later == [first] * 3, "|", time.monotonic() - began < 8)
    tell("all closed", world.allreduce(1))
    """,
    ).check()
    for rank in range(3):
        *said, last = lines(ended, rank)
        assert len(said) == 9 and last == "all closed 3"
        expected = (
            "ZeroDivisionError: the text"
            if rank == 1
            else "RemoteError: rank 1, worker 3: ZeroDivisionError: the text"
        )
        for line in said:
            assert line.split(" | ")[1:] == [expected, "True", "True"]


def test_an_exception_that_nobody_catches_ends_the_job_with_its_text():
    ended = job(
        3,
        """
    def work(kv):
        if kv.id == 2:
            raise ZeroDivisionError("the text of the error")
        kv.barrier()

    with lapse.Server(20, 2) as server:
        server.run(work)
    """,
    )
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert ended.stderr.count("ZeroDivisionError: the text of the error") >= 3
    assert "RemoteError" in ended.stderr


def test_every_rank_with_an_exception_of_its_own_raises_that_one():
    ended = job(
        3,
        """
    def work(kv):
        kv.barrier()
        if kv.id < 2:
            raise ValueError(f"of worker {kv.id}")
        time.sleep(0.5)
        kv.barrier()

    with lapse.Server(20, 2) as server:
        try:
            server.run(work)
        except BaseException as error:
            tell(type(error).__name__, error)
    """,
    ).check()
    assert lines(ended, 0) == ["ValueError of worker 0"] and lines(ended, 1) == [
        "ValueError of worker 1"
    ]
    assert (
        lines(ended, 2)[0].startswith("RemoteError rank ")
        and "ValueError: of worker" in lines(ended, 2)[0]
    )


def test_a_worker_that_returns_while_others_are_in_barrier_is_an_error_everywhere():
    for who in ("kv.id == 3", "kv.id in (2, 3)"):
        ended = job(
            3,
            f"""
        def work(kv):
            if {who}:
                return
            kv.barrier()

        with lapse.Server(20, 2, workers=2) as server:
            try:
                server.run(work)
            except lapse.LapseError as error:
                tell(error)
        """,
        ).check()
        for rank in range(3):
            assert "barrier" in lines(ended, rank)[0] and "the end of run" in lines(ended, rank)[0]


def test_workers_in_different_collective_calls_are_an_error_everywhere():
    ended = job(
        3,
        """
    def work(kv):
        if kv.id == 2:
            kv.allreduce(1)
        else:
            with kv.setup():
                pass

    with lapse.Server(20, 2) as server:
        try:
            server.run(work)
        except lapse.LapseError as error:
            tell(error)
    """,
    ).check()
    for rank in range(3):
        assert "allreduce" in lines(ended, rank)[0] and "setup" in lines(ended, rank)[0]


# Leaving the with block ---------------------------------------------------------------------------

#: Where ranks may stand when another one leaves.
WAITING = """
    def in_worker(server, call):
        with server.worker() as kv:
            call(kv)

    def pulls(kv):
        while True:
            kv.pull(range(20)).wait()

    WAITING = {
        "run with barrier": lambda server: server.run(lambda kv: kv.barrier()),
        "run with pulls": lambda server: server.run(pulls),
        "worker with barrier": lambda server: in_worker(server, lambda kv: kv.barrier()),
        "worker with pulls": lambda server: in_worker(server, pulls),
        "close": lambda server: server.close(),
        "stats": lambda server: server.stats(all_ranks=True),
        "initialize": lambda server: server.initialize([1], lapse.Constant(1)),
    }
"""


def test_an_exception_in_the_main_thread_reaches_all_ranks():
    """Wherever they wait; those who catch it can go on with another server."""
    ended = job(
        3,
        WAITING
        + """
    for name, wait in WAITING.items():
        server = lapse.Server(20, 2)
        try:
            with server:
                if rank == 1:
                    time.sleep(0.1)
                    raise ZeroDivisionError("the text")
                wait(server)
        except (ZeroDivisionError, lapse.RemoteError) as error:
            tell(name, "|", type(error).__name__, "|", error)
        server.close()
    """,
    ).check()
    for rank in range(3):
        said = lines(ended, rank)
        assert len(said) == 7
        expected = (
            ["ZeroDivisionError", "the text"]
            if rank == 1
            else ["RemoteError", "rank 1: ZeroDivisionError: the text"]
        )
        for line in said:
            assert line.split(" | ")[1:] == expected


def test_an_exception_in_the_main_thread_ends_a_job_that_does_not_catch_it():
    ended = job(
        3,
        """
    with lapse.Server(20, 2) as server:
        if rank == 1:
            raise ZeroDivisionError("in the main thread")
        server.run(lambda kv: kv.barrier())
    """,
    )
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "ZeroDivisionError: in the main thread" in ended.stderr


def test_sys_exit_0_inside_the_with_block_closes_as_usual():
    ended = job(
        3,
        """
    with lapse.Server(20, 2) as server:
        server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
        tell("done")
        sys.exit(0 if rank else None)
    """,
    ).check()
    assert "lapse:" not in ended.stderr
    assert [lines(ended, rank) for rank in range(3)] == [["done"]] * 3


def test_sys_exit_0_inside_a_worker_block_waits_for_its_operations():
    job(
        3,
        """
    with lapse.Server(20, 2) as server:
        try:
            with server.worker() as kv:
                kv.push(range(20), np.ones((20, 2), "f4"))
                sys.exit(0)
        except SystemExit:
            pass
        world.Barrier()
        assert (server.run(lambda kv: kv.pull(range(20)).wait())[0] == size).all()
    """,
    ).check()


def test_sys_exit_3_inside_the_with_block_ends_the_others():
    ended = job(
        3,
        """
    with lapse.Server(20, 2) as server:
        if rank == 2:
            sys.exit(3)
        try:
            server.run(lambda kv: kv.barrier())
        except lapse.RemoteError as error:
            tell(error)
            sys.exit(0)
    """,
    )
    assert ended.returncode == 3
    for rank in (0, 1):
        assert lines(ended, rank) == ["rank 2: SystemExit: 3"]


def test_an_exception_reaches_ranks_only_when_they_call_and_computing_ones_are_ended():
    """One that computes on for long is ended by abort, with the first error printed."""
    ended = job(
        3,
        """
    with lapse.Server(20, 2) as server:
        if rank == 1:
            raise ZeroDivisionError("the first error")
        if rank == 2:
            time.sleep(50)
        server.run(lambda kv: kv.barrier())
    """,
    )
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "the first error" in ended.stderr and "rank 2" in ended.stderr


def test_a_rank_that_waits_in_mpi_is_ended_too():
    ended = job(
        3,
        """
    with lapse.Server(20, 2) as server:
        if rank == 1:
            raise ZeroDivisionError("the first error")
        world.Barrier()
    """,
    )
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "the first error" in ended.stderr


def test_a_rank_that_computes_for_a_while_learns_of_it_at_its_next_call():
    ended = job(
        2,
        """
    with lapse.Server(20, 2) as server:
        if rank == 1:
            raise ZeroDivisionError("the first error")
        time.sleep(3)
        run, owner = lambda: server.run(print), lambda: server.owner(0)
        for call in (run, server.stats, server.local_keys, owner):
            try:
                call()
                tell("no error")
            except lapse.RemoteError as error:
                tell(error)
    """,
    )
    assert lines(ended, 0) == ["rank 1: ZeroDivisionError: the first error"] * 4


# Forgotten close ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_close_forgotten_by_all_is_done_with_a_warning(ranks):
    ended = job(
        ranks,
        """
    server = lapse.Server(20, 2)
    server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
    time.sleep(0.3 * rank)
    tell("end")
    """,
    ).check()
    assert ended.seconds < 20
    assert ended.stderr.count("still open") == 1 and "close()" in ended.stderr


def test_several_servers_forgotten_by_all_are_closed_too():
    ended = job(
        3,
        """
    servers = []
    for number in range(6):
        waste = [object() for _ in range(1000 * rank + 77 * number)]
        servers.append(lapse.Server(20, 2))
    tell("end")
    """,
    ).check()
    assert "still open" in ended.stderr
    assert ended.seconds < 20


def test_a_server_that_was_dropped_without_close_does_not_hang_the_end():
    ended = job(
        3,
        """
    import gc
    def use():
        server = lapse.Server(20, 2)
        server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
    use()
    gc.collect()
    world.Barrier()
    tell("end")
    """,
    ).check()
    assert ended.seconds < 20
    assert "still open" in ended.stderr


@pytest.mark.parametrize("where", ["run with barrier", "worker with pulls", "close"])
def test_close_forgotten_by_one_rank_is_an_error_for_those_who_work_on(where):
    ended = job(
        3,
        WAITING
        + f"""
    server = lapse.Server(20, 2)
    if rank != 1:
        try:
            WAITING[{where!r}](server)
        except lapse.RemoteError as error:
            tell("RemoteError", error)
    """,
    )
    assert ended.seconds < 30
    for rank in (0, 2):
        assert lines(ended, rank)[0].startswith("RemoteError rank 1")


def test_a_rank_that_leaves_while_another_computes_for_long_ends_the_job():
    ended = job(
        2,
        """
    server = lapse.Server(20, 2)
    if rank == 0:
        time.sleep(50)
    """,
    )
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "rank 1" in ended.stderr


def test_an_exception_without_a_with_block_reaches_the_others():
    ended = job(
        3,
        """
    server = lapse.Server(20, 2)
    if rank == 1:
        raise ZeroDivisionError("nobody catches this")
    try:
        server.run(lambda kv: kv.barrier())
    except lapse.RemoteError as error:
        tell(error)
    """,
    )
    assert ended.returncode != 0
    assert ended.seconds < 30
    for rank in (0, 2):
        assert lines(ended, rank) == ["rank 1: ZeroDivisionError: nobody catches this"]


def test_sys_exit_without_a_with_block_reaches_the_others():
    ended = job(
        3,
        """
    server = lapse.Server(20, 2)
    if rank == 1:
        sys.exit(3)
    try:
        server.run(lambda kv: kv.barrier())
    except lapse.RemoteError as error:
        tell(error)
    """,
    )
    assert ended.returncode == 3
    for rank in (0, 2):
        assert lines(ended, rank)[0].startswith("rank 1")


# Signals ------------------------------------------------------------------------------------------


def test_an_interrupt_ends_what_the_main_thread_waits_in():
    """Rank 0 waits in a call of ours; rank 1 computes, and learns of it at its next call."""
    ended = job(
        2,
        WAITING
        + """
    import threading

    for name, wait in WAITING.items():
        server = lapse.Server(20, 2)
        try:
            with server:
                if rank == 1:
                    time.sleep(1.5)
                    server.run(lambda kv: kv.barrier())
                threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
                began = time.monotonic()
                wait(server)
        except KeyboardInterrupt:
            tell(name, "| KeyboardInterrupt |", time.monotonic() - began < 1.2)
        except lapse.RemoteError as error:
            tell(name, "| RemoteError |", error)
        server.close()
        world.Barrier()
    """,
    ).check()
    assert [line.split(" | ", 1)[1] for line in lines(ended, 0)] == ["KeyboardInterrupt | True"] * 7
    assert len(lines(ended, 1)) == 7
    for line in lines(ended, 1):
        assert line.split(" | ", 1)[1] in (
            "RemoteError | rank 0: KeyboardInterrupt",
            "RemoteError | rank 0, worker 0: KeyboardInterrupt",
        )


def test_an_interrupt_ends_a_call_that_waits_for_room():
    """Nothing more may be in flight, and the rank that would answer is stopped."""
    ended = job(
        2,
        """
    import threading
    with lapse.Server(20, 100_000, max_in_flight=1) as server, server.worker() as kv:
        pids = world.allgather(os.getpid())
        if rank == 0:
            theirs = np.setdiff1d(range(20), server.local_keys())
            os.kill(pids[1], signal.SIGSTOP)
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            threading.Timer(3, lambda: os.kill(pids[1], signal.SIGCONT)).start()
            began = time.monotonic()
            try:
                while True:
                    kv.push(theirs, np.ones((len(theirs), 100_000), "f4"))
            except KeyboardInterrupt:
                tell("KeyboardInterrupt", time.monotonic() - began < 2.5)
                raise SystemExit(5)
        kv.barrier()
    """,
    )
    assert lines(ended, 0) == ["KeyboardInterrupt True"]


def test_a_killed_rank_ends_the_job():
    ended = job(
        3,
        """
    def work(kv):
        if kv.rank == 1:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            kv.push(range(20), np.ones((20, 2), "f4"))
            kv.barrier()

    with lapse.Server(20, 2) as server:
        server.run(work)
    """,
    )
    assert ended.returncode != 0
    assert ended.seconds < 30


# Threads and processes ----------------------------------------------------------------------------


def test_a_worker_in_another_thread_is_a_runtime_error():
    ended = job(
        2,
        """
    import threading
    with lapse.Server(20, 2) as server, server.worker() as kv:
        operation = kv.pull(range(20))
        def use(call):
            try:
                call()
                tell("no error")
            except RuntimeError as error:
                tell(type(error).__name__, error)
        for call in (lambda: kv.pull(0), lambda: kv.localize(0), kv.barrier, kv.wait_all):
            thread = threading.Thread(target=use, args=(call,))
            thread.start()
            thread.join()
        kv.wait_all()
        kv.barrier()
    """,
    ).check()
    for rank in range(2):
        assert len(lines(ended, rank)) == 4
        assert all(
            line.startswith(f"RuntimeError worker {rank} belongs to another thread")
            for line in lines(ended, rank)
        )


def test_a_forked_child_can_use_nothing_and_harms_nobody():
    ended = job(
        2,
        """
    with lapse.Server(20, 2) as server, server.worker() as kv:
        kv.push(range(20), np.ones((20, 2), "f4")).wait()
        child = os.fork()
        if child == 0:
            calls = [lambda: kv.pull(0), lambda: server.owner(0)]
            for call in (*calls, kv.barrier, server.local_keys, server.stats):
                try:
                    call()
                    tell("no error")
                except RuntimeError as error:
                    tell("fork" in str(error))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        kv.barrier()
        assert (kv.pull(range(20)).wait() == size).all()
        kv.barrier()
        tell("parent")
    """,
    ).check()
    for rank in range(2):
        assert lines(ended, rank) == ["True"] * 5 + ["parent"]


def test_a_forked_child_that_ends_like_a_program_harms_nobody():
    """Its interpreter runs the exit handlers: they must neither tell others nor abort the job."""
    ended = job(
        2,
        """
    import atexit
    server = lapse.Server(20, 2)
    child = os.fork()
    if child == 0:
        atexit._run_exitfuncs()  # as sys.exit would; then mpi4py would finalize the parent's MPI
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with server:
        time.sleep(1)
        server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
        assert (server.run(lambda kv: kv.pull(range(20)).wait())[0] == size).all()
        tell("parent")
    """,
    )
    assert [lines(ended, rank) for rank in range(2)] == [["parent"]] * 2, ended.output
    assert ended.returncode == 0
    assert ended.seconds < 10


def test_multiprocessing_children_beside_an_open_server():
    job(
        2,
        """
    import multiprocessing
    with lapse.Server(20, 2) as server:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=time.sleep, args=(0.01,))
        process.start()
        process.join()
        assert process.exitcode == 0
        server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
        assert (server.run(lambda kv: kv.pull(range(20)).wait())[0] == size).all()
    """,
    ).check()


# Without MPI_THREAD_MULTIPLE ----------------------------------------------------------------------


def test_less_than_thread_multiple_is_an_error_on_every_rank():
    script = """
    import mpi4py
    mpi4py.rc.thread_level = "serialized"
    import lapse
    from mpi4py import MPI
    try:
        lapse.Server(20, 2)
    except lapse.CommError as error:
        print("CommError" if "MPI_THREAD_MULTIPLE" in str(error) else error, flush=True)
    """
    ended = mpirun(2, textwrap.dedent(script), timeout=NEVER).check()
    assert ended.stdout.count("CommError") == 2


# A rank that does not answer ------------------------------------------------------------------------


@pytest.mark.deadline(90)
def test_a_failed_job_does_not_wait_for_a_stopped_rank_for_ever():
    """MPI_Finalize would; 10 s after the failure the job ends."""
    ended = job(
        3,
        """
    with lapse.Server(3, 2) as server, server.worker() as kv:
        pid = world.bcast(os.getpid(), root=1)
        kv.barrier()
        if rank == 0:
            os.kill(pid, signal.SIGSTOP)
            raise RuntimeError("boom")
        while True:
            kv.barrier()
    """,
    )
    assert ended.returncode != 0
    assert "no answer from rank 1" in ended.stderr
