"""Jobs with odd files: pipes, files that differ between ranks, two runs into one folder; signals before the start.

Whatever is wrong is an error that is said once and ends the job on every rank; nothing hangs.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile

import pytest

import launch
from app import result_of, run_app, start_app, write_topics

SMALL = ("--dim", 8, "--epochs", 1, "--sample", 0, "--no-progress")


@pytest.fixture(scope="module")
def topics(tmp_path_factory):
    return write_topics(tmp_path_factory.mktemp("corpus") / "topics.txt", sentences=300)


@contextlib.contextmanager
def fed(path, content):
    """A pipe into which a thread writes when somebody reads."""
    os.mkfifo(path)
    thread = threading.Thread(target=lambda: path.write_bytes(content), daemon=True)
    thread.start()
    yield path
    thread.join(10)
    assert not thread.is_alive()


def check_error(job, *words):
    """It ended, and said why once."""
    assert job.returncode not in (0, None) and not job.timed_out, job.output
    for word in words:
        assert job.stderr.count(word) == 1, job.output
    assert "Traceback" not in job.stderr


def test_a_pipe_is_read_once_for_all_ranks(topics, tmp_path):
    with fed(tmp_path / "pipe", topics.read_bytes()) as pipe:
        read = result_of(run_app("word2vec", 3, "--corpus", pipe, *SMALL, timeout=60, env={"TMPDIR": str(tmp_path)}))
    assert read["vocab"] == result_of(run_app("word2vec", 1, "--corpus", topics, *SMALL))["vocab"]
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    command = [launch.mpirun_command(), "-n", "3", sys.executable, "-m", "lapse.apps.word2vec", "--corpus", "-"]
    job = subprocess.run(
        [*command, *map(str, SMALL)], input=topics.read_bytes(), capture_output=True, timeout=60, check=False
    )
    assert json.loads(job.stdout.split(b"RESULT ")[1])["vocab"] == read["vocab"], job.stderr
    assert job.stderr.count(b"copied standard input into a temporary file, once") == 1
    ratings = "".join(f"{i % 9} {i % 7} {i % 5}\n" for i in range(300)).encode()
    with fed(tmp_path / "ratings", ratings) as pipe:
        job = run_app("mf", 2, "--ratings", pipe, "--epochs", 1, "--no-progress", timeout=60)
    assert result_of(job)["epochs"] == 1


def test_what_one_rank_cannot_read_ends_all(topics, tmp_path):
    """A folder or a pipe where three ranks expect files; an archive of several files."""
    check_error(run_app("word2vec", 3, "--corpus", tmp_path, *SMALL, timeout=40), "is a folder")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "a b\n")
        archive.writestr("b", "a b\n")
    check_error(run_app("mf", 2, "--ratings", tmp_path / "a.zip", timeout=40), "2 files (a, b)")
    graph = tmp_path / "graph"
    graph.mkdir()
    os.mkfifo(graph / "train.txt")
    for name in ("valid", "test"):
        (graph / f"{name}.txt").write_text("")
    check_error(run_app("kge", 2, "--dataset", graph, timeout=40), "is a pipe")


DIFFERENT = """
import sys
from pathlib import Path
from lapse.apps._shared import inputs, job
with job.start() as comm:
    path = Path(sys.argv[1], str(comm.rank))
    if comm.rank != int(sys.argv[2]):
        path.write_text("a b\\n" * (1 + comm.rank * (sys.argv[2] == "-1")))
    comm.barrier()
    found = inputs.share(comm, path)
    assert found.path == str(path)
    print("the same")
"""


@pytest.mark.parametrize(
    "missing, words", [(-1, "rank 0: all ranks must see the same file"), (1, "No such file"), (2, "")]
)
def test_a_file_that_differs_between_ranks(tmp_path, missing, words):
    """As with hosts that have another file of that name, or none."""
    job = launch.mpirun(2, ["-c", DIFFERENT, str(tmp_path), str(missing)], timeout=40)
    if not words:
        assert job.check().stdout.count("the same") == 2
        return
    check_error(job, words)
    if missing == 1:
        assert "rank 1:" in job.stderr


@pytest.mark.parametrize(
    "app, name, content, options, words",
    [
        (
            "mf",
            "m.mtx",
            "%%MatrixMarket matrix coordinate real general\n2000000000 5 1\n1 1 3\n",
            ("--ratings",),
            "2,000,000,000 rows and 5 columns x ",
        ),
        ("kge", "train.del", "0\t0\t2000000000\n", ("--dataset",), "2,000,000,001 entities and 1 relations x "),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(tmp_path, app, name, content, options, words):
    for other in ("valid.del", "test.del"):
        (tmp_path / other).write_text("")
    (tmp_path / name).write_text(content)
    path = tmp_path / name if app == "mf" else tmp_path
    check_error(run_app(app, 2, *options, path, timeout=40), words, "GB on 2 rank(s), but ", "choose a smaller --")


def test_vectors_that_fit_nowhere(topics):
    job = run_app("word2vec", 2, "--corpus", topics, *SMALL, "--dim", 10**9, timeout=40)
    check_error(
        job, "192 values of 1,000,000,000 numbers x 4 bytes: 768 GB on 2 rank(s), but ", "choose shorter vectors"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_block_ends_the_job(tmp_path, number):
    """Rank 0 waits for somebody who writes into the pipe, rank 1 for rank 0."""
    os.mkfifo(tmp_path / "pipe")
    process = start_app("word2vec", 2, "--corpus", tmp_path / "pipe", "--output", tmp_path / "out", *SMALL)
    try:
        lock = tmp_path / "out" / ".lapse-lock"
        while process.poll() is None and not (lock.exists() and lock.read_text()):
            time.sleep(0.05)
        time.sleep(0.5)  # both are where they wait
        os.kill(json.loads(lock.read_text())["pid"], number)
        process.communicate(timeout=30)
        assert process.returncode not in (0, None)
    finally:
        launch.kill_group(process)


def test_a_second_run_into_the_same_folder_is_refused(topics, tmp_path):
    out = ("--corpus", topics, "--output", tmp_path / "out", "--metrics", tmp_path / "m")
    process = start_app("word2vec", 2, *out, *SMALL, "--epochs", 100_000)
    try:
        while process.poll() is None and not (tmp_path / "m").exists():
            time.sleep(0.05)
        second = run_app("word2vec", 2, *out, *SMALL, timeout=40)
        check_error(second, f"--output {tmp_path / 'out'} is in use by another run, process ")
        third = run_app("mf", 2, "--epochs", 1, "--metrics", tmp_path / "m", timeout=40)
        check_error(third, f"--metrics {tmp_path / 'm'} is in use by another run, process ")
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # as a machine that loses power
        process.communicate(timeout=30)
    assert result_of(run_app("word2vec", 2, *out, *SMALL))["epochs"] == 1
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["context.txt", "vectors.npy", "vectors.txt", "vocab.txt"]
