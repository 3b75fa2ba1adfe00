"""Ranks that cannot be reached, launchers that are gone, waits that last: all end or say why, and nothing is left."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lapse import _build_info
from lapse.bench.hosts.network import Network, Unavailable, environment, started
from launch import job_environment, mpirun, mpirun_command

PROGRAMS = Path(__file__).parent / "programs"
#: Where ranks wait without a server that would notice silence, in `waits_without_a_server.py`.
WITHOUT_A_SERVER = ("arrival", "creation", "mpi")
NEVER = 60
is_mpich = pytest.mark.skipif(_build_info.family != "mpich", reason="processes of MPICH's launcher")


def script(folder, is_child=False, program="pulls_until_told.py"):
    """What each rank runs: its output goes to a file, since what it says may not reach the launcher.

    As a child of the process that the launcher knows a rank may die unnoticed.
    """
    path = folder / "rank"
    command = f'{sys.executable} {PROGRAMS / program} {folder} "$1" > {folder}/out.$PMI_RANK 2>&1'
    path.write_text(f"#!/bin/sh\n{command}\nsleep 60\n" if is_child else f"#!/bin/sh\nexec {command}\n")
    path.chmod(0o700)
    return path


def wait_for(condition, seconds=NEVER):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.05)


def pids(folder, ranks, seconds=NEVER):
    """The processes of the ranks, when all of them are under way."""
    wait_for(lambda: all((folder / str(rank)).exists() for rank in range(ranks)), seconds)
    return [int((folder / str(rank)).read_text()) for rank in range(ranks)]


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def output(folder, rank):
    path = folder / f"out.{rank}"
    return path.read_text(errors="replace") if path.exists() else ""


def kill_launcher(launcher):
    """Kill all processes of a launcher, so that none of them ends the ranks."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in (*map(int, children), launcher.pid):
            os.kill(pid, number)


@contextlib.contextmanager
def a_job(folder, ranks, doing="pulls", env=None, **how):
    """A job of ranks on this host; gives the launcher."""
    command = [mpirun_command(), "-n", str(ranks), str(script(folder, **how)), doing]
    with started(command, env=job_environment(env), stderr=subprocess.PIPE, text=True) as launcher:
        yield launcher
        launcher.stderr.close()


@contextlib.contextmanager
def three_hosts():
    """The network of three emulated hosts that can be cut off."""
    try:
        with Network(3, can_cut=True) as network:
            yield network
    except Unavailable as reason:
        pytest.skip(str(reason))


@contextlib.contextmanager
def a_job_between(network, folder, ranks_per_host, doing, silence, **how):
    """A job that is under way: gives the launcher and the ranks' processes.

    MPICH's start over several hosts hangs now and then, in MPI_Init, and is repeated.
    """
    env = environment(base=job_environment({"LAPSE_SILENCE_SECONDS": silence}))
    command = network.command(ranks_per_host, [str(script(folder, **how)), doing])
    for attempts_left in (2, 1, 0):
        with started(command, env=env, stderr=subprocess.DEVNULL) as launcher:
            try:
                processes = pids(folder, 3 * ranks_per_host, seconds=12)
            except AssertionError:
                if not attempts_left:
                    raise
                continue
            yield launcher, processes
            return


@contextlib.contextmanager
def a_job_on_three_hosts(folder, ranks_per_host, doing="pulls", silence=30):
    """A job between hosts that is under way: gives the network, the launcher and the ranks' processes."""
    with three_hosts() as network, a_job_between(network, folder, ranks_per_host, doing, silence) as job:
        yield network, *job


@pytest.mark.deadline(120)
def test_a_host_that_is_cut_off_ends_the_job_on_both_sides(tmp_path):
    """Also a rank that waits in a call of MPI, the last one."""
    with a_job_on_three_hosts(tmp_path, 2, "waits in mpi", silence=2) as (network, _, processes):
        began = time.monotonic()
        network.cut(3)
        wait_for(lambda: all(map(is_gone, processes)))
        assert time.monotonic() - began < 50
    for rank in range(4):
        named = re.search(r"no message from rank [45] \(host3\) for 2\.", output(tmp_path, rank))
        assert named, output(tmp_path, rank)
    for rank in (4, 5):
        assert "no message from rank" in output(tmp_path, rank), output(tmp_path, rank)
        assert "(host1) for" in output(tmp_path, rank) and "(host2) for" in output(tmp_path, rank)


@pytest.mark.deadline(120)
def test_a_host_that_is_cut_off_while_no_server_is_open_ends_the_job_on_both_sides(tmp_path):
    """Three jobs at once, of which each waits elsewhere: a cut ends all of them."""
    folders = [tmp_path / place for place in WITHOUT_A_SERVER]
    with three_hosts() as network, contextlib.ExitStack() as jobs:
        processes = []
        for folder, place in zip(folders, WITHOUT_A_SERVER, strict=True):
            folder.mkdir()
            how = {"silence": 2, "program": "waits_without_a_server.py"}
            processes += jobs.enter_context(a_job_between(network, folder, 1, place, **how))[1]
        network.cut(3)
        began = time.monotonic()
        for folder in folders:
            (folder / "go on").touch()
        wait_for(lambda: all(map(is_gone, processes)))
        assert time.monotonic() - began < 50
    for folder in folders:
        said = [output(folder, rank) for rank in range(3)]
        named = [re.findall(r"\(10\.79\.0\.(\d)\) has not answered rank (\d) for \d s", text) for text in said]
        # The rest of a side may be ended by the one that says why.
        assert any(("3", str(rank)) in named[rank] for rank in (0, 1)), said
        assert {("1", "2"), ("2", "2")} & set(named[2]), said


@pytest.mark.deadline(90)
def test_a_host_that_is_back_in_time_and_a_rank_that_goes_on_in_time_are_fine(tmp_path):
    with a_job_on_three_hosts(tmp_path, 1, silence=20) as (network, launcher, processes):
        network.cut(3)
        time.sleep(1)
        network.join(3)
        os.kill(processes[1], signal.SIGSTOP)
        time.sleep(1)
        os.kill(processes[1], signal.SIGCONT)
        (tmp_path / "go on").touch()
        assert launcher.wait(NEVER) == 0
    assert all("exact" in output(tmp_path, rank) for rank in range(3))


@is_mpich
@pytest.mark.deadline(90)
def test_ranks_whose_launcher_is_gone_end_themselves(tmp_path):
    with a_job(tmp_path, 2) as launcher:
        processes = pids(tmp_path, 2)
        kill_launcher(launcher)
        wait_for(lambda: all(map(is_gone, processes)), 40)
    assert "the launcher of rank" in output(tmp_path, 0) + output(tmp_path, 1)


@pytest.mark.deadline(90)
def test_a_launcher_that_is_killed_takes_the_ranks_of_all_hosts_along(tmp_path):
    with a_job_on_three_hosts(tmp_path, 1) as (_, launcher, processes):
        launcher.kill()
        wait_for(lambda: all(map(is_gone, processes)), 40)


@is_mpich
@pytest.mark.deadline(90)
def test_a_rank_that_dies_is_named_by_another_one_of_its_host(tmp_path):
    """Also if the launcher does not notice."""
    with a_job(tmp_path, 3, is_child=True):
        processes = pids(tmp_path, 3)
        os.kill(processes[1], signal.SIGKILL)
        wait_for(lambda: all(map(is_gone, processes)), 40)
    for rank in (0, 2):
        assert f"rank 1 (process {processes[1]} on " in output(tmp_path, rank), output(tmp_path, rank)
        assert "has died" in output(tmp_path, rank)


@pytest.mark.deadline(90)
def test_a_signal_asks_for_the_state_and_disturbs_nothing(tmp_path):
    with a_job(tmp_path, 2, "waits in a barrier", env={"LAPSE_STALL_REPORT": "0"}) as launcher:
        processes = pids(tmp_path, 2)
        wait_for(lambda: "waits for" in output(tmp_path, 1) or os.kill(processes[1], signal.SIGUSR1))
        os.kill(processes[0], signal.SIGUSR1)
        wait_for(lambda: "worker slot 0" in output(tmp_path, 0))
        (tmp_path / "go on").touch()
        assert launcher.wait(NEVER) == 0
    assert "does not wait in a call of Lapse" in output(tmp_path, 0)
    text = output(tmp_path, 1)
    assert "present state" in text and "s in barrier for rank 0" in text and f"process {processes[0]}" in text
    assert all("exact" in output(tmp_path, rank) for rank in range(2))


@pytest.mark.deadline(90)
def test_a_wait_without_progress_is_reported_once(tmp_path):
    """Whatever is waited for: a rank that is stopped answers nothing, and the report says that it is stopped."""
    with a_job(tmp_path, 2, env={"LAPSE_STALL_REPORT": "1"}) as launcher:
        processes = pids(tmp_path, 2)
        os.kill(processes[1], signal.SIGSTOP)
        wait_for(lambda: "waits without progress" in output(tmp_path, 0))
        time.sleep(2)
        os.kill(processes[1], signal.SIGCONT)
        (tmp_path / "go on").touch()
        assert launcher.wait(NEVER) == 0
    text = output(tmp_path, 0)
    assert text.count("waits without progress") == 1, text
    assert "s for a pu" in text and "unanswered; key" in text and f"process {processes[1]}, stopped" in text
    assert "exact" in text


def test_a_rank_that_does_not_come_to_the_creation_of_a_server_is_waited_for_aloud():
    program = (
        "import time, lapse\nfrom mpi4py import MPI\ntime.sleep(3 * MPI.COMM_WORLD.rank)\nlapse.Server(10, 2).close()\n"
    )
    ended = mpirun(2, program, env={"LAPSE_STALL_REPORT": "1"}).check()
    assert ended.stderr.count("rank 0 has been in the creation of a Server for 1 s") == 1, ended.stderr
