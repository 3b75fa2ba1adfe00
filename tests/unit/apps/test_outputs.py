"""What the applications write: whole or not at all, and by one run at a time."""

import errno
import fcntl
import itertools
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from lapse.apps._shared import files, locks
from lapse.apps._shared.job import AppError
from lapse.apps._shared.locks import Lock
from lapse.apps._shared.metrics import Metrics

# Files -------------------------------------------------------------------------------------------


def write_model(folder, number, names=("rows.npy", "names.txt", "model.json")):
    with files.replacing_model(folder, "model.json", ["biases.npy"]) as writing:
        for name in names:
            (writing / name).write_text(str(number))


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


OLD = dict.fromkeys(("rows.npy", "names.txt", "model.json", "biases.npy"), "1")
NEW = dict.fromkeys(("rows.npy", "names.txt", "model.json"), "2")

#: Calls that change something on disk.
CALLS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")


class Killed(BaseException):
    pass


def test_a_model_may_be_killed_before_each_step_of_its_writing(tmp_path, monkeypatch):
    """Nobody ever sees files of two models together with the one that is read first, and the next run has one model."""
    outcomes = []
    for moment in itertools.count(1):
        folder = tmp_path / str(moment)
        folder.mkdir()
        write_model(folder, 1, OLD)
        assert content(folder) == OLD
        calls = itertools.count(1)
        with monkeypatch.context() as patch:

            def dying(call, calls=calls, moment=moment):
                def counted(*args, **options):
                    if next(calls) >= moment:
                        raise Killed
                    return call(*args, **options)

                return counted

            for name in CALLS:
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                write_model(folder, 2)
            except Killed:
                is_killed = True
            else:
                is_killed = False
        seen = content(folder)
        assert seen in (OLD, NEW) or "model.json" not in seen
        files.finish_replacing(folder)
        outcomes.append(content(folder))
        assert outcomes[-1] in (OLD, NEW)
        write_model(folder, 2)
        assert sorted(path.name for path in folder.iterdir()) == sorted(NEW)
        if not is_killed:
            break
    assert outcomes[0] == OLD and outcomes[-1] == NEW and len(outcomes) > 10
    assert outcomes == sorted(outcomes, key=lambda one: one == NEW)


def test_a_model_that_cannot_be_written_leaves_the_older_one(tmp_path):
    write_model(tmp_path, 1, OLD)
    with pytest.raises(OSError, match="full"), files.replacing_model(tmp_path, "model.json") as writing:
        (writing / "rows.npy").write_text("2")
        raise OSError(errno.ENOSPC, "disk full")
    assert content(tmp_path) == OLD and len(list(tmp_path.iterdir())) == len(OLD)


def test_arrays_are_written_a_block_at_a_time(tmp_path):
    values = np.arange(12, dtype=np.float64).reshape(6, 2)
    shapes = {tmp_path / "a.npy": (6, 2), tmp_path / "b.npy": (6,)}
    files.write_arrays(shapes, ((values[i : i + 4], values[i : i + 4, 0]) for i in (0, 4)))
    a, b = (np.load(path, allow_pickle=False) for path in shapes)
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(a, values)
    np.testing.assert_array_equal(b, values[:, 0])
    with pytest.raises(ValueError, match="4 rows"):
        files.write_arrays(shapes, [(values[:4], values[:4, 0])])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), values)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]


def test_a_full_disk_is_an_error_and_no_crash(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    os.symlink("/dev/full", tmp_path / "a.npy.part")
    with pytest.raises(OSError, match="No space left"):
        files.write_arrays({tmp_path / "a.npy": (1 << 18,)}, [(np.zeros(1 << 18),)])
    assert not (tmp_path / "a.npy").exists()


def test_metrics_do_not_replace_a_file_of_another_kind(tmp_path):
    for number, text in enumerate(["userId,movieId\n1,2\n", "text", "[1]\n", '{"loss": 1}\n']):
        path = tmp_path / str(number)
        path.write_text(text)
        for epoch in (None, 3):
            with pytest.raises(AppError, match="no metrics of a training"):
                Metrics(path, epoch)
        assert path.read_text() == text
    Metrics(tmp_path / "new").write(epoch=1)
    Metrics(tmp_path / "new", 0)
    assert (tmp_path / "new").read_text() == ""
    Metrics(tmp_path / "new")


# Locks -------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from lapse.apps._shared.locks import Lock
lock = Lock(Path(sys.argv[1]), "it")
print("held", flush=True)
sys.stdin.read()
"""


def held(path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_until_the_first_ends(tmp_path):
    path = tmp_path / "lock"
    process = held(path)
    with pytest.raises(AppError, match=f"--output x is in use by another run, process {process.pid} on "):
        Lock(path, "--output x")
    process.communicate("")
    assert not path.exists()
    lock = Lock(path, "--output x")
    with pytest.raises(AppError, match=f"process {os.getpid()} "):
        Lock(path, "--output x")
    lock.release()
    assert not path.exists()
    lock.release()
    Lock(path, "--output x").release()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    process = held(tmp_path / "lock")
    process.kill()
    process.communicate()
    assert (tmp_path / "lock").exists()
    Lock(tmp_path / "lock", "it")
    assert not (tmp_path / "lock").exists()  # nobody keeps it


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"pid": "x"}', '{"pid": -1, "host": "HERE"}'])
def test_odd_lock_files_hinder_nobody(tmp_path, monkeypatch, text):
    path = tmp_path / "lock"
    path.write_text(text.replace("HERE", socket.gethostname()))
    Lock(path, "it").release()
    if text == '{"pid": "x"}':
        return
    path.write_text(text.replace("HERE", socket.gethostname()))
    monkeypatch.setattr(fcntl, "flock", unsupported)
    Lock(path, "it").release()


def unsupported(descriptor, operation):
    raise OSError(errno.ENOTSUP, "no locks here")


def test_without_locks_of_the_file_system_the_named_process_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", unsupported)
    path = tmp_path / "lock"
    path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    with pytest.raises(AppError, match=f"if it has ended, remove {path}"):
        Lock(path, "it")
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(AppError, match="process 1 on elsewhere"):
        Lock(path, "it")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.write_text(json.dumps({"pid": ended.pid, "host": socket.gethostname()}))
    Lock(path, "it").release()
    assert not path.exists()


def test_a_forked_child_keeps_its_hands_off(tmp_path):
    lock = Lock(tmp_path / "lock", "it")
    child = os.fork()
    if child == 0:
        locks._release(os.dup(0), tmp_path / "lock")
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "lock").exists()
    with pytest.raises(AppError):
        Lock(tmp_path / "lock", "it")
    lock.release()
