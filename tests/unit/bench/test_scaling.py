"""Group `scaling`: which runs there are, how rows are made, and how the idle share is taken."""

import argparse
import json
import time
from pathlib import Path

import pytest

from lapse.bench import _idle, _program, scaling
from lapse.bench._groups import Context, load
from lapse.bench._idle import IdleShare
from lapse.bench.hosts.network import Link, Network, Report
from lapse.bench.workloads import WORKLOADS, graph, text

GROUP = load()["scaling"]


def options_of(*words):
    parser = argparse.ArgumentParser()
    scaling.add_options(parser.add_argument_group())
    return vars(parser.parse_args(words))


def outcome(seconds, idle=0.8, **times):
    line = {
        "seconds": seconds,
        "loss": 2.5,
        "stats": {"bytes_sent": 8_000_000, "messages_sent": 400},
        "time": {"compute": seconds / 2, "waiting_for_rounds": seconds / 4, "evaluation": 1.0, **times},
    }
    host = {"timeouts": 1, "bytes_sent": 5_000_000}
    return scaling.Outcome([line, line], {"loss": 2.4, "workers": 1}, Report([host, host]), idle)


def test_the_fewest_hosts_of_a_series_come_first():
    runs = scaling.settings(options_of("--hosts", "4,1", "--management", "lapse2,classic", "--workload", "mf"), False)
    assert [(run.management, run.ranks_per_host, run.hosts) for run in runs] == [
        (management, ranks, hosts) for management in ("lapse2", "classic") for ranks in (1, 2) for hosts in (1, 4)
    ]
    assert {run.epochs for run in runs} == {WORKLOADS["mf"].epochs}
    assert len(scaling.settings(options_of(), quick=True)) == 2


@pytest.mark.parametrize(
    "words", [("--hosts", "0"), ("--hosts", "x"), ("--workload", "w"), ("--management", "no"), ("--dilation", "0")]
)
def test_wrong_options_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        options_of(*words)
    assert words[0] in capsys.readouterr().err


def test_a_row_compares_with_the_ideal():
    first, second = scaling.settings(options_of("--hosts", "1,4", "--ranks-per-host", "1"), False)[:2]
    row = scaling.make_row(Context(GROUP, GROUP.jobs[0]), second, outcome(4.0), first, outcome(12.0))
    assert (row.value, row.reference, row.ratio) == (4.0, 3.0, pytest.approx(4 / 3))
    assert row.figures["speed-up"] == 3.0 and row.ranks == 4
    assert row.figures["MB/host"] == 2.0 and row.figures["messages/host"] == 100
    assert row.figures["computing"] == 0.5 and row.figures["rounds"] == 0.25 and row.figures["values"] == 0
    assert row.figures["work"] == pytest.approx(4 * 2 / 6)
    assert row.figures["loss"] == 2.4 and row.figures["time-outs"] == 2
    assert row.reached is False and row.target.limit == pytest.approx(4 / 3.4, abs=1e-3)
    assert row.note == "" and type(row).from_dict(json.loads(json.dumps(row.as_dict()))) == row


def test_a_row_of_a_saturated_machine_says_so():
    run = scaling.settings(options_of(), False)[0]
    row = scaling.make_row(Context(GROUP, GROUP.jobs[0]), run, outcome(4.0, idle=0.1), run, outcome(4.0))
    assert "larger --dilation" in row.note


def test_only_if_named():
    parser = argparse.ArgumentParser()
    _program.add_options(parser)
    assert GROUP.is_for_request and not parser.parse_args([]).groups
    assert parser.parse_args(["scaling", "--hosts", "2"]).hosts == [2]


def test_the_network_is_as_many_times_slower():
    assert Link(25, 10_000).dilated(50) == Link(1250, 200, 10_000)
    with pytest.raises(ValueError, match="hosts is 0"):
        Network(0)
    with pytest.raises(ValueError, match="delay_us is -1"):
        Network(2, Link(-1))


def test_data_are_found_in_a_folder(tmp_path):
    assert text(None, tmp_path) == text(tmp_path, tmp_path) == () == graph(tmp_path, tmp_path)
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / "a.txt").write_text("one\n")
    (tmp_path / "wikitext-2" / "b.txt").write_text("two\n")
    option, path = text(tmp_path, tmp_path)
    assert option == "--corpus" and Path(path).read_text() == "one\ntwo\n"
    (tmp_path / "fb15k-237").mkdir()
    assert graph(tmp_path, tmp_path) == ("--dataset", str(tmp_path / "fb15k-237"))


def test_the_idle_share_is_that_of_the_epochs_alone(tmp_path, monkeypatch):
    """The machine is idle in the second half of the time, in which the epoch is."""
    start = time.monotonic()

    def ticks():
        passed = 1000 * (time.monotonic() - start)
        return int(max(passed - 400, 0)), int(passed)

    monkeypatch.setattr(_idle, "ticks", ticks)
    monkeypatch.setattr(_idle, "EVERY_SECONDS", 0.01)
    metrics = tmp_path / "metrics"
    with IdleShare(metrics) as idle:
        time.sleep(0.8)
        metrics.write_text(json.dumps({"seconds": 0.3, "time": {"evaluation": 0.02}}) + "\n")
        time.sleep(0.1)
    assert idle.in_epochs() > 0.9
