"""Trainings that are killed, interrupted, stopped by time, and continued."""

import collections
import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import launch
from app import TIMES, result_of, run_app, start_app, write_languages, write_topics
from lapse import _build_info
from lapse.apps import mf

EPOCHS = 12
OPTIONS = ("--dim", 8, "--epochs", EPOCHS, "--sample", 0, "--alpha", 0.05, "--no-progress", "--management", "lapse")
KILLS = int(os.environ.get("LAPSE_TEST_KILLS", 4))


@pytest.fixture(scope="module")
def topics(tmp_path_factory):
    return write_topics(tmp_path_factory.mktemp("corpus") / "topics.txt", sentences=1500)


@contextlib.contextmanager
def started(ranks, *options, app="word2vec"):
    """A job of an application in a session of its own."""
    process = start_app(app, ranks, *options)
    try:
        yield process
    finally:
        if process.poll() is None:
            launch.kill_group(process)


def ranks_of(process):
    """The processes of the ranks: Python, in the session of the launcher or below it."""
    children, ranks = children_of_all(), []
    left = [process.pid]
    while left:
        for pid in children.get(left.pop(), ()):
            left.append(pid)
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(os.fsencode(sys.executable) + b"\0"):
                    ranks.append(pid)
    return ranks


def children_of_all():
    """The children of each process. (Their numbers may be smaller than its own, once numbers begin anew.)"""
    children = collections.defaultdict(list)
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit():
                children[int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])].append(int(name))
    return children


def kill_ranks(process):
    """SIGKILL all ranks, as a machine that loses power would."""
    for pid in ranks_of(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=30)


def epochs_done(folder):
    from lapse.server import checkpoint

    return checkpoint.read_manifest(folder / "checkpoint")["metadata"]["epoch"]


def wait_for_a_checkpoint(folder, process):
    while process.poll() is None and not (folder / "checkpoint" / "CURRENT").exists():
        time.sleep(0.01)


@pytest.mark.deadline(240)
def test_whatever_moment_all_ranks_are_killed_at_resuming_works(tmp_path):
    """The sums of `simple` are exact: nothing is lost of what was saved, and nothing counts twice."""
    rng = random.Random(3)
    options = ("-k", 2000, "-v", 50, "-i", 25 * KILLS, "--no-progress", "--output", tmp_path, "--checkpoint-every", 1)
    resumed, kills = [], 0
    while kills < KILLS:
        with started(2, *options, "--resume", app="simple") as process:
            before = step(tmp_path)
            while process.poll() is None and step(tmp_path) in (before, None):
                time.sleep(0.005)
            time.sleep(rng.random() * 0.1)
            if process.poll() is not None:
                break
            kill_ranks(process)
            kills += 1
            resumed.append(epochs_done(tmp_path))
    assert resumed == sorted(resumed) and len(set(resumed)) > min(KILLS, 5) - 2
    result = result_of(run_app("simple", 2, *options, "--resume"))
    assert result["exact"] and result["epochs"] == 25 * KILLS
    assert result["resumed_from"] is None or result["resumed_from"] >= resumed[-1]


KILLED_IN_SAVE = """
import os, signal, sys
import lapse

path, moment = sys.argv[1], int(sys.argv[2])
calls = 0

def dying(call):
    def counted(*args, **options):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return counted

with lapse.Server(20, 3) as server:
    server.initialize(range(20), lapse.Constant(1))
    server.save(path, {"n": 1})
    server.initialize(range(20), lapse.Constant(2))
    for name in ("mkdir", "fsync", "replace", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    server.save(path, {"n": 2})
"""


def test_a_save_may_be_killed_before_each_of_its_steps(tmp_path):
    import lapse

    found, status, moment = [], None, 0
    with lapse.Server(20, 3) as server:
        while status != 0:
            moment += 1
            folder = tmp_path / f"{moment}"
            status = launch.run([sys.executable, "-c", KILLED_IN_SAVE, folder, moment]).returncode
            assert status in (0, -signal.SIGKILL)
            found.append(server.load(folder)["n"])
            with server.worker() as kv:
                assert (kv.pull(range(20)).wait() == found[-1]).all()
            server.save(folder)
            assert len(list(folder.iterdir())) == 2  # CURRENT and one step
    assert found == sorted(found) and {1, 2} == set(found) and len(found) > 8


def step(folder):
    with contextlib.suppress(OSError):
        return (folder / "checkpoint" / "CURRENT").read_text()
    return None


@pytest.mark.deadline(150)
def test_a_killed_and_resumed_training_ends_at_the_loss_of_an_uninterrupted_one(topics, tmp_path):
    options = ("--corpus", topics, *OPTIONS)
    whole = [result_of(run_app("word2vec", ranks, *options))["loss"] for ranks in (2, 3)]  # they differ by 0.5%
    out = (*options, "--output", tmp_path, "--metrics", tmp_path / "m.jsonl", "--checkpoint-every", 1)
    for _ in range(3):
        with started(2, *out, "--resume") as process:
            before = step(tmp_path)
            while process.poll() is None and step(tmp_path) in (before, None):
                time.sleep(0.01)
            kill_ranks(process)
    epoch = epochs_done(tmp_path)
    result = result_of(run_app("word2vec", 3, *out, "--resume"))  # another number of ranks
    assert result["resumed_from"] == epoch > 0
    assert result["epochs"] == EPOCHS
    assert 0.99 * min(whole) < result["loss"] < 1.01 * max(whole)  # it was trained on 2 ranks at first, then on 3
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    for line in lines:
        assert set(line["time"]) == TIMES
        assert line["time"]["compute"] <= line["seconds"]
    again = result_of(run_app("word2vec", 1, "--output", tmp_path, "--resume"))
    assert again == result


SAMPLER = (
    *("--rows", 300, "--columns", 60, "--entries", 9000, "--planted-rank", 3),
    *("--solver", "gibbs", "--epochs", 60, "--burn-in", 2),
)
FULL_SOFTMAX = (
    *("--dim", 16, "--batch-size", 16, "--num-negs-per-pos", "all", "--relation-dropout", 0.1),
    *("--epochs", 60, "--lr", 0.5, "--eval-every", 2, "--lr-plateau", 0.5),
)


@pytest.mark.deadline(150)
@pytest.mark.parametrize("app, options, figure", [("mf", SAMPLER, "rmse"), ("kge", FULL_SOFTMAX, "loss")])
def test_a_killed_and_resumed_training_goes_on_as_if_it_had_not_been(tmp_path, app, options, figure):
    """By another number of ranks. Of the sampler: means over draws are means over those of all processes, and the draws
    are the same ones. Of the softmax over all entities: so are the batches and the reductions of the learning rate."""
    if app == "kge":
        options = ("--dataset", write_languages(tmp_path), *options)
    options = (*options, "--no-progress")
    whole = result_of(run_app(app, 2, *options, "--output", tmp_path / "whole"))
    out = (*options, "--output", tmp_path, "--checkpoint-every", 1)
    with started(2, *out, app=app) as process:
        while process.poll() is None and (step(tmp_path) is None or epochs_done(tmp_path) < 4):
            time.sleep(0.01)
        kill_ranks(process)
    resumed = result_of(run_app(app, 3, *out, "--resume"))
    assert 4 <= resumed["resumed_from"] < 60
    assert resumed[figure] == pytest.approx(whole[figure], rel=1e-3)
    if app == "mf":  # the draws that the model consists of are those of all processes, too
        models = [mf.Model.load(folder) for folder in (tmp_path / "whole", tmp_path)]
        assert [model.about["draws"] for model in models] == [20, 20]
        cells = np.arange(50), np.arange(50)
        np.testing.assert_allclose(models[1].predict(*cells), models[0].predict(*cells), rtol=0.01)


#: A signal that the launcher forwards to all ranks, and waits for their end.
FORWARDED = {"mpich": signal.SIGTERM, "openmpi": signal.SIGUSR2}[_build_info.family]


@pytest.mark.parametrize(
    "number, to",
    [(signal.SIGTERM, "all ranks"), (signal.SIGINT, "one rank"), (signal.SIGUSR2, "one rank"), (FORWARDED, "mpirun")],
)
def test_a_signal_ends_training_with_a_checkpoint(topics, tmp_path, number, to):
    options = ("--corpus", topics, *OPTIONS, "--epochs", 10_000, "--output", tmp_path)
    with started(3, *options, "--checkpoint-every", 10) as process:
        wait_for_a_checkpoint(tmp_path, process)
        ranks = ranks_of(process)
        assert len(ranks) == 3
        for pid in {"all ranks": ranks, "one rank": ranks[-1:], "mpirun": [process.pid]}[to]:
            os.kill(pid, number)
        _out, err = process.communicate(timeout=40)
    assert process.returncode == 128 + number, err
    assert f"stopped by {number.name} after epoch" in err
    assert "Traceback" not in err
    assert epochs_done(tmp_path) >= 10
    assert f"after epoch {epochs_done(tmp_path)};" in err
    again = result_of(run_app("word2vec", 2, "--output", tmp_path, "--resume", "--max-runtime", 2))
    assert again["resumed_from"] >= 10


def test_a_signal_without_an_output_folder_ends_cleanly_too(topics):
    with started(2, "--corpus", topics, *OPTIONS, "--epochs", 10_000) as process:
        assert "words" in process.stderr.readline()
        for _ in range(2):
            process.stderr.readline()
        for pid in ranks_of(process):
            os.kill(pid, signal.SIGTERM)
        _, err = process.communicate(timeout=40)
    assert process.returncode == 143
    assert "nothing was saved because --output was not given" in err


def test_training_goes_on_from_within_an_epoch(tmp_path):
    """The blocks that lie behind are not trained again."""
    corpus = write_topics(tmp_path / "topics.txt", sentences=8000)
    options = ("--corpus", corpus, *OPTIONS, "--epochs", 2, "--slow-down", 300)
    out = (*options, "--output", tmp_path / "out", "--metrics", tmp_path / "m")
    first = result_of(run_app("word2vec", 1, *out, "--max-runtime", 1.5))
    part = json.loads((tmp_path / "m").read_text().splitlines()[-1])
    assert part["is_partial"] and part["epoch"] == first["epochs"] + 1 <= 2
    again = result_of(run_app("word2vec", 1, *out, "--resume"))
    assert (again["resumed_from"], again["epochs"]) == (first["epochs"], 2)
    lines = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    whole = lines[2 - part["epoch"]]  # of the other epoch
    if first["epochs"] == 0:
        assert lines[0]["pairs"] + part["pairs"] == pytest.approx(whole["pairs"], rel=0.02)


def test_resuming_without_a_checkpoint_and_with_contradicting_options(topics, tmp_path):
    options = ("--corpus", topics, *OPTIONS[:2], "--no-progress", "--output", tmp_path)
    first = run_app("word2vec", 2, *options, "--epochs", 1, "--resume")
    assert "starting from scratch" in first.stderr
    assert result_of(first)["resumed_from"] is None
    wrong = run_app("word2vec", 2, *options, "--epochs", 3, "--resume")
    assert wrong.returncode != 0
    assert wrong.stderr.count("--epochs is 3 now, but 1 in the checkpoint") == 1
    assert "Traceback" not in wrong.stderr
    none = run_app("word2vec", 2, "--resume")
    assert none.returncode != 0 and none.stderr.count("--resume requires --output") == 1


def test_a_damaged_checkpoint_is_said_once_and_ends_the_job(topics, tmp_path):
    options = ("--corpus", topics, *OPTIONS[:2], "--no-progress", "--output", tmp_path, "--epochs", 1)
    result_of(run_app("word2vec", 2, *options, "--checkpoint-every", 1))
    (tmp_path / "checkpoint" / "result.json").unlink()
    file = next((tmp_path / "checkpoint").glob("step-*/rank-00001*"))
    file.write_bytes(file.read_bytes()[:-1])
    job = run_app("word2vec", 3, *options, "--resume", timeout=30)
    assert job.returncode != 0 and not job.timed_out
    assert job.stderr.count(f"{file.name} has") == 1
    assert "Traceback" not in job.stderr


#: An application that gets a signal after the last block of its last epoch, before it evaluates.
LATE_SIGNAL = """
import importlib, sys
from lapse.apps._shared.training import Training

meet = Training.meet

def late(self):
    if self.epoch + 1 == self.args.epochs:
        self._signals.received = 15
    meet(self)

Training.meet = late
importlib.import_module(f"lapse.apps.{sys.argv[1]}.__main__").main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    "app, options", [("mf", ("--rows", 50, "--columns", 40)), ("clicks", ("--keys", 500, "--examples", 4000))]
)
def test_a_run_that_is_stopped_after_its_last_block_is_evaluated_when_it_is_resumed(tmp_path, app, options):
    given = [str(word) for word in (*options, "--epochs", 2, "--output", tmp_path / "out", "--checkpoint-every", 1)]
    stopped = launch.mpirun(2, ["-c", LATE_SIGNAL, app, *given])
    assert stopped.returncode == 143 and "RESULT" not in stopped.stdout, stopped.output
    whole = result_of(run_app(app, 2, *options, "--epochs", 2))
    result = result_of(run_app(app, 2, *given, "--resume"))
    assert (result["resumed_from"], result["epochs"]) == (2, 2)
    for figure in ("loss", "rmse") if app == "mf" else ("loss",):
        assert result[figure] == pytest.approx(whole[figure], rel=0.2)
