"""How jobs end when something goes wrong: each is a job of its own under `mpirun`, with a time limit.

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
    return [line.split("] ", 1)[1] for line in ended.stdout.splitlines() if line.startswith(f"[{rank}] ")]


# An exception in a worker ----------------------------------------------------------------------------

WHERE_OTHERS_ARE = {
    "barrier": "kv.barrier()",
    "allreduce": "kv.allreduce(1.0)",
    "pulls": "\n            while True: kv.pull(range(20)).wait()",
    "pushes": "\n            while True: kv.push(range(20), np.ones((20, 2), 'f4'))",
    "localizes": "\n            while True: kv.localize(range(20)).wait()",
    "local pulls": "\n            while True: kv.pull(server.local_keys()[:1]).wait()",
    "tests": "\n            while True: kv.localize(3).test()",
    "pull_if_local": "\n            while True: kv.pull_if_local(3, out=np.empty(2, 'f4'))",
    "the end of run": "pass",
}


@pytest.mark.parametrize("where", list(WHERE_OTHERS_ARE))
def test_an_exception_in_one_worker_ends_run_on_all_ranks(where):
    ended = job(3, f"""
    def work(kv):
        if kv.id == 3:
            time.sleep(0.2)
            raise ZeroDivisionError("the text of the error")
        else:
            {WHERE_OTHERS_ARE[where]}

    server = lapse.Server(20, 2, workers=2)
    began = time.monotonic()
    try:
        server.run(work)
    except BaseException as error:
        tell(type(error).__name__, error)
    tell("seconds", int(time.monotonic() - began))
    for call in (lambda: server.run(work), server.stats, lambda: server.owner(3)):
        try:
            call()
        except BaseException as error:
            tell("again", type(error).__name__, error)
    server.close()
    tell("closed", world.allreduce(1))
    """).check()
    for rank in range(3):
        said = lines(ended, rank)
        if rank == 1:
            assert said[0] == "ZeroDivisionError the text of the error"
        else:
            assert said[0].startswith("RemoteError rank 1, worker 3: ZeroDivisionError: the text of the error")
        assert int(said[1].split()[1]) <= 5
        assert said[2:5] == [f"again {said[0]}"] * 3
        assert said[5] == "closed 3"


def test_an_exception_that_nobody_catches_ends_the_job_with_its_text():
    ended = job(3, """
    def work(kv):
        if kv.id == 2:
            raise ZeroDivisionError("the text of the error")
        kv.barrier()

    with lapse.Server(20, 2) as server:
        server.run(work)
    """)
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert ended.stderr.count("ZeroDivisionError: the text of the error") >= 3
    assert "RemoteError" in ended.stderr


def test_every_rank_with_an_exception_of_its_own_raises_that_one():
    ended = job(3, """
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
    """).check()
    assert lines(ended, 0) == ["ValueError of worker 0"] and lines(ended, 1) == ["ValueError of worker 1"]
    assert lines(ended, 2)[0].startswith("RemoteError rank ") and "ValueError: of worker" in lines(ended, 2)[0]


def test_a_new_server_works_after_one_that_failed():
    job(3, """
    def work(kv, bad):
        if kv.id == bad:
            raise ValueError("x")
        kv.localize(range(20)).wait()
        kv.barrier()

    for repeat in range(5):
        with lapse.Server(20, 2) as server:
            try:
                server.run(work, repeat % size)
                assert False
            except (ValueError, lapse.RemoteError):
                pass
        with lapse.Server(20, 2) as server:
            server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")).wait())
            assert (server.run(lambda kv: kv.pull(range(20)).wait())[0] == size).all()
    """).check()


def test_a_worker_that_returns_while_others_are_in_barrier_is_an_error_everywhere():
    for who in ("kv.id == 3", "kv.id in (2, 3)"):
        ended = job(3, f"""
        def work(kv):
            if {who}:
                return
            kv.barrier()

        with lapse.Server(20, 2, workers=2) as server:
            try:
                server.run(work)
            except lapse.LapseError as error:
                tell(error)
        """).check()
        for rank in range(3):
            assert "barrier" in lines(ended, rank)[0] and "the end of run" in lines(ended, rank)[0]


def test_workers_in_different_collective_calls_are_an_error_everywhere():
    ended = job(3, """
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
    """).check()
    for rank in range(3):
        assert "allreduce" in lines(ended, rank)[0] and "setup" in lines(ended, rank)[0]


# Leaving the with block ------------------------------------------------------------------------------

WAYS_TO_WAIT = {
    "run with barrier": "server.run(lambda kv: kv.barrier())",
    "run with pulls": "server.run(lambda kv: [kv.pull(range(20)).wait() for _ in iter(int, 1)])",
    "worker with barrier": "\n            with server.worker() as kv: kv.barrier()",
    "worker with pulls": "\n            with server.worker() as kv:\n                while True: kv.pull(range(20)).wait()",
    "close": "server.close()",
    "stats": "server.stats(all_ranks=True)",
    "initialize": "server.initialize([1], lapse.Constant(1))",
}


@pytest.mark.parametrize("where", list(WAYS_TO_WAIT))
def test_an_exception_in_the_main_thread_reaches_all_ranks(where):
    ended = job(3, f"""
    with lapse.Server(20, 2) as server:
        if rank == 1:
            time.sleep(0.2)
            raise ZeroDivisionError("in the main thread")
        try:
            {WAYS_TO_WAIT[where]}
        except lapse.RemoteError as error:
            tell("RemoteError", error)
    """)
    assert ended.returncode != 0
    assert ended.seconds < 30
    for rank in (0, 2):
        assert lines(ended, rank) == ["RemoteError rank 1: ZeroDivisionError: in the main thread"]
    assert "ZeroDivisionError: in the main thread" in ended.stderr


def test_sys_exit_0_inside_the_with_block_closes_as_usual():
    ended = job(3, """
    with lapse.Server(20, 2) as server:
        server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
        tell("done")
        sys.exit(0 if rank else None)
    """).check()
    assert "lapse:" not in ended.stderr
    assert [lines(ended, rank) for rank in range(3)] == [["done"]] * 3


def test_sys_exit_0_inside_a_worker_block_waits_for_its_operations():
    job(3, """
    with lapse.Server(20, 2) as server:
        try:
            with server.worker() as kv:
                kv.push(range(20), np.ones((20, 2), "f4"))
                sys.exit(0)
        except SystemExit:
            pass
        world.Barrier()
        assert (server.run(lambda kv: kv.pull(range(20)).wait())[0] == size).all()
    """).check()


def test_sys_exit_3_inside_the_with_block_ends_the_others():
    ended = job(3, """
    with lapse.Server(20, 2) as server:
        if rank == 2:
            sys.exit(3)
        try:
            server.run(lambda kv: kv.barrier())
        except lapse.RemoteError as error:
            tell(error)
            sys.exit(0)
    """)
    assert ended.returncode == 3
    for rank in (0, 1):
        assert lines(ended, rank) == ["rank 2: SystemExit: 3"]


def test_an_exception_reaches_ranks_only_when_they_call_and_computing_ones_are_ended():
    """One that computes on for long is ended by abort, with the first error printed."""
    ended = job(3, """
    with lapse.Server(20, 2) as server:
        if rank == 1:
            raise ZeroDivisionError("the first error")
        if rank == 2:
            time.sleep(50)
        server.run(lambda kv: kv.barrier())
    """)
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "the first error" in ended.stderr and "rank 2" in ended.stderr


def test_a_rank_that_waits_in_mpi_is_ended_too():
    ended = job(3, """
    with lapse.Server(20, 2) as server:
        if rank == 1:
            raise ZeroDivisionError("the first error")
        world.Barrier()
    """)
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "the first error" in ended.stderr


def test_a_rank_that_computes_for_a_while_learns_of_it_at_its_next_call():
    ended = job(2, """
    with lapse.Server(20, 2) as server:
        if rank == 1:
            raise ZeroDivisionError("the first error")
        time.sleep(3)
        for call in (lambda: server.run(print), server.stats, server.local_keys, lambda: server.owner(0)):
            try:
                call()
                tell("no error")
            except lapse.RemoteError as error:
                tell(error)
    """)
    assert lines(ended, 0) == ["rank 1: ZeroDivisionError: the first error"] * 4


# Forgotten close -------------------------------------------------------------------------------------

@pytest.mark.parametrize("ranks", [1, 3])
def test_close_forgotten_by_all_is_done_with_a_warning(ranks):
    ended = job(ranks, """
    server = lapse.Server(20, 2)
    server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
    time.sleep(0.3 * rank)
    tell("end")
    """).check()
    assert ended.seconds < 20
    assert ended.stderr.count("still open") == 1 and "close()" in ended.stderr


def test_several_servers_forgotten_by_all_are_closed_too():
    ended = job(3, """
    servers = []
    for number in range(6):
        waste = [object() for _ in range(1000 * rank + 77 * number)]
        servers.append(lapse.Server(20, 2))
    tell("end")
    """).check()
    assert "still open" in ended.stderr
    assert ended.seconds < 20


def test_a_server_that_was_dropped_without_close_does_not_hang_the_end():
    ended = job(3, """
    import gc
    def use():
        server = lapse.Server(20, 2)
        server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
    use()
    gc.collect()
    world.Barrier()
    tell("end")
    """).check()
    assert ended.seconds < 20
    assert "still open" in ended.stderr


@pytest.mark.parametrize("where", ["run with barrier", "run with pulls", "worker with barrier", "worker with pulls",
                                   "close"])
def test_close_forgotten_by_one_rank_is_an_error_for_those_who_work_on(where):
    ended = job(3, f"""
    server = lapse.Server(20, 2)
    if rank != 1:
        try:
            {WAYS_TO_WAIT[where]}
        except lapse.RemoteError as error:
            tell("RemoteError", error)
    """)
    assert ended.seconds < 30
    for rank in (0, 2):
        assert lines(ended, rank)[0].startswith("RemoteError rank 1")


def test_a_rank_that_leaves_while_another_computes_for_long_ends_the_job():
    ended = job(2, """
    server = lapse.Server(20, 2)
    if rank == 0:
        time.sleep(50)
    """)
    assert ended.returncode != 0
    assert ended.seconds < 30
    assert "rank 1" in ended.stderr


def test_an_exception_without_a_with_block_reaches_the_others():
    ended = job(3, """
    server = lapse.Server(20, 2)
    if rank == 1:
        raise ZeroDivisionError("nobody catches this")
    try:
        server.run(lambda kv: kv.barrier())
    except lapse.RemoteError as error:
        tell(error)
    """)
    assert ended.returncode != 0
    assert ended.seconds < 30
    for rank in (0, 2):
        assert lines(ended, rank) == ["rank 1: ZeroDivisionError: nobody catches this"]


def test_sys_exit_without_a_with_block_reaches_the_others():
    ended = job(3, """
    server = lapse.Server(20, 2)
    if rank == 1:
        sys.exit(3)
    try:
        server.run(lambda kv: kv.barrier())
    except lapse.RemoteError as error:
        tell(error)
    """)
    assert ended.returncode == 3
    for rank in (0, 2):
        assert lines(ended, rank)[0].startswith("rank 1")


# Signals ---------------------------------------------------------------------------------------------

INTERRUPTIBLE = {
    "run": "server.run(lambda kv: [time.sleep(0.05) or kv.pull(0).wait() for _ in iter(int, 1)])",
    "run with barrier": "server.run(lambda kv: kv.barrier())",
    "wait": "\n            with server.worker() as kv:\n                while True: kv.pull(range(20)).wait()",
    "barrier": "\n            with server.worker() as kv: kv.barrier()",
    "allreduce": "\n            with server.worker() as kv: kv.allreduce(1)",
    "close": "server.close()",
    "initialize": "server.initialize([1], lapse.Constant(1))",
    "stats": "server.stats(all_ranks=True)",
}


@pytest.mark.parametrize("where", list(INTERRUPTIBLE))
def test_an_interrupt_ends_what_the_main_thread_waits_in(where):
    """Rank 0 waits in a call of ours when Ctrl-C comes; rank 1 computes, and learns of it at its next call."""
    ended = job(2, f"""
    import threading
    with lapse.Server(20, 2) as server:
        if rank == 1:
            time.sleep(4)
            try:
                server.run(lambda kv: kv.barrier())
            except lapse.RemoteError as error:
                tell("RemoteError", error)
                sys.exit(0)
        threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        try:
            {INTERRUPTIBLE[where]}
        except KeyboardInterrupt:
            tell("KeyboardInterrupt", time.monotonic() - began < 3)
            raise
    """)
    assert lines(ended, 0) == ["KeyboardInterrupt True"]
    assert lines(ended, 1) == ["RemoteError rank 0: KeyboardInterrupt"] or "worker 0: KeyboardInterrupt" in lines(ended, 1)[0]


def test_a_killed_rank_ends_the_job():
    ended = job(3, """
    def work(kv):
        if kv.rank == 1:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            kv.push(range(20), np.ones((20, 2), "f4"))
            kv.barrier()

    with lapse.Server(20, 2) as server:
        server.run(work)
    """)
    assert ended.returncode != 0
    assert ended.seconds < 30


# Threads and processes -------------------------------------------------------------------------------

def test_a_worker_in_another_thread_is_a_runtime_error():
    ended = job(2, """
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
    """).check()
    for rank in range(2):
        assert len(lines(ended, rank)) == 4
        assert all(line.startswith(f"RuntimeError worker {rank} belongs to another thread") for line in lines(ended, rank))


def test_a_forked_child_can_use_nothing_and_harms_nobody():
    ended = job(2, """
    with lapse.Server(20, 2) as server, server.worker() as kv:
        kv.push(range(20), np.ones((20, 2), "f4")).wait()
        child = os.fork()
        if child == 0:
            for call in (lambda: kv.pull(0), kv.barrier, lambda: server.owner(0), server.local_keys, server.stats):
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
    """).check()
    for rank in range(2):
        assert lines(ended, rank) == ["True"] * 5 + ["parent"]


def test_a_forked_child_that_ends_like_a_program_harms_nobody():
    """Its interpreter runs the exit handlers: they must not tell the other ranks, nor abort the job."""
    ended = job(2, """
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
    """)
    assert [lines(ended, rank) for rank in range(2)] == [["parent"]] * 2, ended.output
    assert ended.returncode == 0
    assert ended.seconds < 10


def test_multiprocessing_children_beside_an_open_server():
    job(2, """
    import multiprocessing
    with lapse.Server(20, 2) as server:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=time.sleep, args=(0.01,))
        process.start()
        process.join()
        assert process.exitcode == 0
        server.run(lambda kv: kv.push(range(20), np.ones((20, 2), "f4")))
        assert (server.run(lambda kv: kv.pull(range(20)).wait())[0] == size).all()
    """).check()


# Without MPI_THREAD_MULTIPLE -------------------------------------------------------------------------

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
