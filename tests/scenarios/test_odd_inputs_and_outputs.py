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
from pathlib import Path

import pytest

import launch
from app import result_of, run_app, start_app, write_languages, write_topics
from mounts import may_mount

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


def test_damaged_vectors_to_continue_from_are_named_on_all_ranks(topics, tmp_path):
    """The context vectors are not read before the first worker gives them to the server."""
    result_of(run_app("word2vec", 1, "--corpus", topics, *SMALL, "--output", tmp_path / "out"))
    context = tmp_path / "out" / "context.txt"
    context.write_bytes(context.read_bytes()[:-200])
    for ranks in (1, 3):
        job = run_app("word2vec", ranks, "--corpus", topics, *SMALL, "--start-vectors", tmp_path / "out", timeout=40)
        check_error(job, f"error: --start-vectors {tmp_path / 'out'}: {context}")


def test_vectors_that_fit_nowhere(topics):
    job = run_app("word2vec", 2, "--corpus", topics, *SMALL, "--dim", 10**9, timeout=40)
    check_error(
        job, "192 values of 1,000,000,000 numbers x 4 bytes: 768 GB on 2 rank(s), but ", "choose shorter vectors"
    )


#: In a mount namespace of its own: train into a disk of a megabyte, then a model that it cannot hold.
SAVING = {"word2vec": "could not be written to", "kge": "so far could not be saved in", "mf": "could not be written to"}
FILL_A_DISK = """
mount -t tmpfs -o size=1m tmpfs "$OUT" && $TRAIN $SMALL && cksum "$OUT"/*.* >"$OUT.before" || exit 99
$TRAIN $LARGE
status=$?
cksum "$OUT"/*.* >"$OUT.after"
exit $status
"""


@pytest.mark.skipif(not may_mount(), reason="this user may not mount")
@pytest.mark.parametrize("app, length", [("word2vec", "--dim"), ("kge", "--dim"), ("mf", "--rank")])
def test_a_full_disk_is_an_error_that_leaves_the_older_model(topics, tmp_path, app, length):
    data = {
        "word2vec": ["--corpus", topics],
        "kge": ["--dataset", write_languages(tmp_path / "graph")],
        "mf": ["--rows", 300, "--columns", 60, "--entries", 3000],
    }[app]
    out = tmp_path / "out"
    out.mkdir()
    train = [launch.mpirun_command(), "-n", "2", sys.executable, "-m", f"lapse.apps.{app}", *data, "--epochs", 1]
    variables = {
        "TRAIN": " ".join(map(str, [*train, "--no-progress", "--output", out])),
        "OUT": out, "SMALL": f"{length} 4", "LARGE": f"{length} 4000",
    }  # fmt: skip
    job = launch.run(["unshare", "--mount", "sh", "-c", FILL_A_DISK], timeout=60, env=variables)
    assert job.returncode not in (0, 99), job.output
    check_error(job, "error: the ", f"model {SAVING[app]} {out}", "[Errno 28] No space left on device")
    before = Path(f"{out}.before").read_text()
    assert len(before.splitlines()) > 2 and Path(f"{out}.after").read_text() == before


def pid_of(rank, word):
    """The process of a rank that has this word on its command line."""
    variables = {f"{name}={rank}".encode() for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK")}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # one that has ended, or is somebody else's
            words, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            if str(word).encode() in words and variables & set(environment):
                return int(folder.name)
    raise LookupError(f"no rank {rank} of a command with {word}")


@pytest.mark.parametrize("number, rank", [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGTERM, 1)])
def test_a_signal_before_the_first_block_ends_the_job(tmp_path, number, rank):
    """Rank 0 waits for somebody who writes into the pipe, rank 1 for rank 0, in a broadcast."""
    os.mkfifo(tmp_path / "pipe")
    process = start_app("word2vec", 2, "--corpus", tmp_path / "pipe", "--output", tmp_path / "out", *SMALL)
    try:
        lock = tmp_path / "out" / ".lapse-lock"
        while process.poll() is None and not (lock.exists() and lock.read_text()):
            time.sleep(0.05)
        time.sleep(0.5)  # both are where they wait
        os.kill(pid_of(rank, tmp_path / "pipe"), number)
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
