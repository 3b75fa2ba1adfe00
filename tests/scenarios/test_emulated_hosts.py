"""Jobs between hosts that are emulated on this machine (`lapse.bench.hosts`): the network, and that nothing is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app import result_of, write_topics
from launch import job_environment, run

HOSTS = [sys.executable, "-m", "lapse.bench.hosts"]
NOT_AVAILABLE = 77

ROUND_TRIPS = """
import time, lapse, numpy as np
with lapse.Server(200, 1000, shared_memory=False) as server, server.worker() as kv:
    kv.barrier()
    if server.rank == 0:
        far = [key for key in range(200) if server.owner(key) == server.size - 1][:50]
        times = []
        for _ in range(20):
            start = time.perf_counter(); kv.pull(far[:1]).wait(); times.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(10): kv.pull(far).wait()
        print("FOUND", min(times), len(far) * 4000 * 10 / (time.perf_counter() - start))
    kv.barrier()
"""


@pytest.fixture(scope="module", autouse=True)
def _available():
    job = run([*HOSTS, "--hosts", 1, "true"])
    if job.returncode == NOT_AVAILABLE:
        pytest.skip(job.stderr.strip())


def on_hosts(hosts, *options, timeout=60, json_file=None):
    """Run Python on hosts; the last options are its arguments."""
    more = ("--json", json_file) if json_file else ()
    return run([*HOSTS, "--hosts", hosts, *more, *options], timeout)


def processes_of(folder):
    """The processes whose command line has a word."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in words and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def test_three_hosts_train_word_vectors(tmp_path):
    """A short dilated run, as those that measure how training scales."""
    topics, metrics = write_topics(tmp_path / "topics.txt"), tmp_path / "metrics.jsonl"
    network = ("--delay-us", 25, "--rate-mbit", 10_000, "--dilation", 10, "--timeout", 40)
    app = (sys.executable, "-m", "lapse.apps.word2vec", "--corpus", topics, "--dim", 16, "--min-count", 1)
    training = ("--epochs", 2, "--slow-down", 10, "--no-progress", "--metrics", metrics)
    job = on_hosts(3, *network, *app, *training, json_file=tmp_path / "report.jsonl")
    result = result_of(job)
    assert result["ranks"] == 3 and result["epochs"] == 2
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert all(line["time"]["compute"] > 0 and line["stats"]["bytes_sent"] > 0 for line in lines)
    report = json.loads((tmp_path / "report.jsonl").read_text())
    assert len(report["hosts"]) == 3 and report["frames_lost"] == 0
    sent = sum(line["stats"]["bytes_sent"] for line in lines)
    assert sum(host["bytes_sent"] for host in report["hosts"]) > sent  # through the devices, not in memory
    for number, host in enumerate(report["hosts"], 1):
        assert f"host {number}: {host['bytes_sent']:,} bytes sent" in job.stderr


def test_frames_take_their_time():
    """The delay of a round trip, and the rate of what a host receives."""
    network = ("--delay-us", 5000, "--rate-mbit", 80)
    job = on_hosts(2, *network, sys.executable, "-c", ROUND_TRIPS).check()
    seconds, rate = map(float, job.stdout.split("FOUND", 1)[1].split()[:2])
    assert 0.010 <= seconds < 0.020
    assert rate < 10e6  # bytes per second
    fast = on_hosts(2, sys.executable, "-c", ROUND_TRIPS).check()
    assert float(fast.stdout.split("FOUND", 1)[1].split()[0]) < 0.002


def test_the_status_is_that_of_the_command():
    assert on_hosts(2, sys.executable, "-c", "import sys; sys.exit(3)").returncode == 3


def test_a_command_that_takes_too_long_is_ended(tmp_path):
    job = on_hosts(2, "--timeout", 1.5, "sh", "-c", f"sleep 300; : {tmp_path}")
    assert job.returncode == 124
    assert "ended after 1.5 s" in job.stderr
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_program_nothing_is_left(tmp_path, number):
    """Also the processes in the hosts that have left their session and ignore signals."""
    script = tmp_path / "stays.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.fork() or os.setsid()\n"
        "os.write(1, b'up\\n')\n"
        "time.sleep(300)\n"
    )
    command = [str(word) for word in (*HOSTS, "--hosts", 2, sys.executable, script)]
    folders = set(Path("/tmp").glob("lapse-hosts-*"))
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=job_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored if the tests run in the background
    )
    try:
        for _ in range(4):
            assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(20) == (-9 if number == signal.SIGKILL else 128 + number)
        deadline = time.monotonic() + 10
        while processes_of(tmp_path) or set(Path("/tmp").glob("lapse-hosts-*")) - folders:
            assert time.monotonic() < deadline, processes_of(tmp_path)
            time.sleep(0.1)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_a_benchmark_that_is_ended_leaves_no_training(tmp_path):
    """`lapse bench` starts a job, which starts the training in the hosts."""
    metrics = tmp_path / "rows.jsonl"
    options = ("--workload", "mf", "--hosts", "2", "--ranks-per-host", "1", "--dilation", "3000", "--json", metrics)
    command = [sys.executable, "-m", "lapse", "bench", "scaling", *map(str, options)]
    env = job_environment({"TMPDIR": tmp_path})
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    try:
        deadline = time.monotonic() + 20
        while not processes_of(tmp_path / "lapse-scaling"):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
        while processes_of(tmp_path / "lapse-"):
            assert time.monotonic() < deadline + 10, processes_of(tmp_path / "lapse-")
            time.sleep(0.1)
        assert list(tmp_path.glob("lapse-*")) == []
    finally:
        process.kill()
        process.wait()
