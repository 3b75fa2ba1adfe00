"""Ranks of one host share values: what others see when one is stopped or killed while it changes one."""

import re
import sys
import textwrap

import pytest

from launch import mpirun

ATTEMPTS = 3

#: A launcher may kill all ranks when one is killed, before they can say why; it sees this shell only, which lives on.
SHELL = '"$PYTHON" -c "$0"; status=$?; test $status -ne 137 || sleep 20; exit $status'
HIDDEN_FROM_LAUNCHER = ["-c", SHELL.replace("$PYTHON", sys.executable)]

#: Rank 1 pushes to a value so long that it holds the value's latch nearly all the time.
SCRIPT = """
import os, resource, signal, sys, threading, time
import numpy as np
import lapse
from mpi4py import MPI

world = MPI.COMM_WORLD
ELEMENTS, PUSHES = 20_000_000, 40
with lapse.Server(2, ELEMENTS) as server, server.worker() as kv:
    key = world.bcast(int(server.local_keys()[0]) if world.rank == 0 else None)
    ones = np.ones(ELEMENTS, "f4")
    kv.push(key, ones)
    kv.barrier()
    pusher = world.bcast(os.getpid(), root=1)
    if world.rank == 1:
        world.send(None, dest=0)
        for _ in range(PUSHES):
            kv.push(key, ones)
    else:
        world.recv(source=1)
        time.sleep(0.1)
        os.kill(pusher, signal.{signal})
        threading.Timer(1.0, os.kill, (pusher, signal.SIGCONT)).start()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, limits[1]))
        out = kv.pull(key).wait()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert (out == out[0]).all(), "a torn value"
    kv.barrier()
    assert (kv.pull(key).wait() == 2 + PUSHES).all()
    kv.barrier()
    print("the end")
"""


def program(signal, descriptors="limits[0]"):
    return textwrap.dedent(SCRIPT).replace("{signal}", signal).replace("{descriptors}", descriptors)


def job(signal, **options):
    ended = mpirun(2, program(signal, **options), timeout=60, env={"LAPSE_SHARED_MEMORY": None})
    assert not ended.timed_out, f"the job hung\n{ended.output}"
    return ended


@pytest.mark.deadline(90)
def test_a_stopped_rank_is_waited_for_and_that_is_said_once():
    ended = job("SIGSTOP").check()
    assert ended.stdout.count("the end") == 2
    assert ended.stderr.count("was stopped while it changed a value") <= 1


@pytest.mark.deadline(90)
def test_a_stopped_rank_is_not_taken_for_dead_by_one_that_can_open_no_file():
    ended = job("SIGSTOP", descriptors="0").check()
    assert ended.stdout.count("the end") == 2


@pytest.mark.deadline(90)
def test_a_killed_rank_ends_the_job():
    ended = job("SIGKILL")
    assert ended.returncode != 0 and "the end" not in ended.stdout


#: One of two ranks that share a replica pushes to it, and so holds its latch nearly all the time; the other kills it.
REPLICA_SCRIPT = """
import os, signal, time
import numpy as np
import lapse
from mpi4py import MPI

world = MPI.COMM_WORLD
ELEMENTS = 5_000_000
pace = lapse.Replication(syncs_per_second=0)
with lapse.Server(1, ELEMENTS, replicated_keys=[0], replication=pace) as server, server.worker() as kv:
    ones = np.ones(ELEMENTS, "f4")
    kv.push(0, ones)
    kv.wait_replica_sync()
    kv.barrier()
    assert len(server.sharing_ranks) == (2 if world.rank < 2 else 1)
    processes = world.allgather(os.getpid())
    if world.rank == {victim}:
        world.send(None, dest={killer})
        while True:
            kv.push(0, ones)
    elif world.rank == {killer}:
        world.recv(source={victim})
        time.sleep(0.2)
        os.kill(processes[{victim}], signal.SIGKILL)
        while True:
            kv.pull(0).wait()
    kv.barrier()
"""


@pytest.mark.deadline(130)
@pytest.mark.parametrize("victim", [0, 1], ids=["leader", "member"])
def test_a_rank_killed_while_it_changes_a_replica_that_another_shares_ends_the_job(victim):
    script = REPLICA_SCRIPT.replace("{victim}", str(victim)).replace("{killer}", str(1 - victim))
    env = {"LAPSE_SHARED_MEMORY": None, "LAPSE_SHARED_MEMORY_RANKS": "2"}
    assert_the_others_end_it(victim, lambda: mpirun(3, [*HIDDEN_FROM_LAUNCHER, script], 40, env, python="sh"))


@pytest.mark.deadline(130)
def test_a_killed_rank_ends_the_job_if_the_launcher_does_not():
    args = [*HIDDEN_FROM_LAUNCHER, program("SIGKILL")]
    assert_the_others_end_it(1, lambda: mpirun(2, args, 40, env={"LAPSE_SHARED_MEMORY": None}, python="sh"))


def assert_the_others_end_it(victim, start):
    """Each job ends and names the dead rank; in one of a few a worker finds it, who waits for the latch.

    In the others the victim had no latch at that moment, or the thread that looks after processes found it first.
    """
    outputs = []
    for _ in range(ATTEMPTS):
        ended = start()
        outputs.append(ended.output)
        assert not ended.timed_out, f"the job hung\n{ended.output}"
        assert ended.returncode != 0
        assert re.search(rf"rank {victim} \(process \d+( on \S+)?\) (has )?died", ended.output), ended.output
        if "died while it changed a value" in ended.output:
            return
    raise AssertionError("nobody who waited for the latch found its dead holder:\n" + "\n".join(outputs))
