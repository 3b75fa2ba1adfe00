"""What a resumed run takes over, what it refuses; the metrics file; signals; the plot."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.apps._shared import checkpoints, options, plot
from lapse.apps._shared.job import AppError
from lapse.apps._shared.metrics import Metrics
from lapse.apps._shared.signals import Signals


def make_parser():
    parser = argparse.ArgumentParser()
    options.add_shared_options(parser, epochs=5, dim=100)
    parser.add_argument("--corpus", type=Path)
    return parser


def parsed(*words):
    return options.parse(make_parser(), [str(word) for word in words])


def taken_over(then, now):
    stored = json.loads(json.dumps(checkpoints.encode_options(parsed(*then))))
    return checkpoints.take_over(parsed("--output", "out", "--resume", *now), stored)


def test_given_options_are_those_on_the_command_line_even_if_equal_to_the_default():
    assert parsed("--epochs", 5, "--no-progress").given == {"epochs", "no_progress"}
    assert parsed().given == frozenset()


def test_the_options_of_the_checkpoint_count():
    args = taken_over(["--epochs", 9, "--corpus", "a/b", "--metrics", "m", "--max-runtime", 3], ["--epochs", 9])
    assert (args.epochs, args.corpus, args.metrics) == (9, Path("a/b"), Path("m"))
    assert args.max_runtime is None and args.resume and args.output == Path("out")


def test_a_contradiction_names_the_option_and_both_values():
    with pytest.raises(AppError, match="--epochs is 4 now, but 9 in the checkpoint in out/checkpoint"):
        taken_over(["--epochs", 9], ["--epochs", 4])
    with pytest.raises(AppError, match="--epochs is 5 now, but 9"):
        taken_over(["--epochs", 9], ["--epochs", 5])  # the default, but asked for
    with pytest.raises(AppError, match="--corpus is x now, but None"):
        taken_over([], ["--corpus", "x"])


def test_what_does_not_change_the_model_may_be_given_anew():
    args = taken_over(["--metrics", "m", "--checkpoint-every", 2], ["--metrics", "n", "--max-runtime", 7])
    assert (args.metrics, args.checkpoint_every, args.max_runtime) == (Path("n"), 2, 7)


def test_a_folder_without_a_checkpoint_and_one_of_another_application(tmp_path):
    args = parsed("--output", tmp_path)
    assert checkpoints.find("mf", args) == (None, None)
    import lapse

    with lapse.Server(3, 1) as server:
        server.save(tmp_path / "checkpoint", {"some": "thing"})
        with pytest.raises(lapse.CheckpointError, match="not written by an application"):
            checkpoints.find("mf", args)
        server.save(tmp_path / "checkpoint", checkpoints.Saved("kge", {}, epoch=3).as_metadata())
    with pytest.raises(AppError, match="a checkpoint of kge, not of mf"):
        checkpoints.find("mf", args)
    assert checkpoints.find("kge", args)[0].epoch == 3


def test_a_result_belongs_to_its_step(tmp_path):
    import lapse

    args = parsed("--output", tmp_path)
    with lapse.Server(3, 1) as server:
        server.save(tmp_path / "checkpoint", checkpoints.Saved("mf", {}).as_metadata())
        checkpoints.write_result(tmp_path / "checkpoint", {"loss": 1})
        assert checkpoints.find("mf", args)[1] == {"loss": 1}
        server.save(tmp_path / "checkpoint", checkpoints.Saved("mf", {}).as_metadata())
    assert checkpoints.find("mf", args)[1] is None


@given(written=st.integers(0, 9), epoch=st.integers(0, 9), cut=st.integers(0, 10))
def test_later_epochs_and_torn_lines_are_cut_off(tmp_path_factory, written, epoch, cut):
    path = tmp_path_factory.mktemp("metrics") / "m.jsonl"
    metrics = Metrics(path)
    for number in range(1, written + 1):
        metrics.write(epoch=number)
    text = path.read_text()
    path.write_text(text[: max(len(text) - cut, 0)])
    complete = [json.loads(line)["epoch"] for line in path.read_text().splitlines() if line.endswith("}")]
    Metrics(path, epoch).write(epoch=epoch + 1)
    lines = [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
    assert lines == [number for number in complete if number <= epoch] + [epoch + 1]


def test_metrics_start_anew_without_an_epoch(tmp_path):
    Metrics(tmp_path / "m").write(epoch=1)
    Metrics(tmp_path / "m").write(epoch=1)
    assert len((tmp_path / "m").read_text().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_the_first_signal_is_noted_and_an_impatient_one_ends(monkeypatch, number):
    before = signal.getsignal(number)
    signals = Signals()
    try:
        assert signal.getsignal(number) is signal.SIG_DFL  # nothing to save yet
        signals.note()
        assert signals.received is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # at once: the same wish, twice on its way
        assert signals.received == number
        later = time.monotonic() + 10
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
            os.kill(os.getpid(), number)
            time.sleep(1)
    finally:
        signals.restore()
    assert signal.getsignal(number) is before


def test_a_plot_without_matplotlib_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AppError, match=r"pip install 'lapse\[plot\]'"):
        plot.require(Path("plot.png"))


def test_a_plot_of_what_there_is(tmp_path):
    pytest.importorskip("matplotlib")
    history = [{"epoch": n, "loss": 1 / n, "local": 0.5, "mrr": n if n % 2 else None} for n in (1, 2, 3)]
    for quality in ((), ("mrr",), ("mrr", "never_there"), ("never_there",)):
        plot.draw(tmp_path / "plot.png", "kge", history, quality)
        assert (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"
    plot.draw(tmp_path / "nothing.svg", "kge", [], ())
