"""Group `rounds`: how a row follows from what the program in the hosts has found."""

import json

import pytest

from lapse.bench import rounds
from lapse.bench._groups import Context, load
from lapse.bench._rows import Row
from lapse.bench._timing import Sample
from lapse.bench.hosts.network import Unavailable

GROUP = load()["rounds"]
CONTEXT = Context(GROUP, GROUP.jobs[0])


def test_half_a_synchronization_without_values_is_taken_off():
    full, empty, exchanges = Sample((0.010, 0.012, 0.011)), Sample((0.004, 0.004, 0.006)), Sample((0.008, 0.005, 0.004))
    row = rounds.make_row(CONTEXT, 4, full, empty, exchanges)
    assert row.value == pytest.approx(8) and row.reference == pytest.approx(5)
    assert row.ratio == pytest.approx(2) and row.reached is False and row.ranks == 4
    assert row.figures["empty round"] == pytest.approx(2)
    assert Row.from_dict(json.loads(json.dumps(row.as_dict()))) == row


def test_without_emulated_hosts_it_says_why(monkeypatch, capsys):
    def unavailable(context, hosts):
        raise Unavailable("no rights")

    monkeypatch.setattr(rounds, "measure", unavailable)
    assert list(rounds.run(CONTEXT)) == []
    assert capsys.readouterr().err == "skipped: 2 hosts: no rights\n"


def test_only_if_named():
    assert GROUP.is_for_request
