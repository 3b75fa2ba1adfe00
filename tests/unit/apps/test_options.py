"""How options of the applications are declared."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from lapse.apps._shared.options import Group, fraction, natural_int, positive_int


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="app")
    group = Group(parser.add_argument_group("training"))
    group.add("-b --batch", positive_int, "size of a batch", default=100)
    group.add("--sample", fraction, "share of the items (default: all)")
    group.add("--limit SECONDS", natural_int, "limit of the run", default=0)
    group.add("--order", ("random", "sorted"), "order of the items", default="random")
    group.add("--output DIR", Path, "folder for the model")
    group.add("--quiet", bool, "print nothing")
    return parser


def test_the_help_names_values_and_defaults(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = " ".join(make_parser().format_help().split())
    assert "--batch N size of a batch (default: 100)" in text
    assert "--sample X share of the items (default: all) --limit" in text
    assert "--limit SECONDS limit of the run (default: 0)" in text
    assert "--order {random,sorted} order of the items (default: random)" in text
    assert "--output DIR folder for the model --quiet print nothing" in text


def test_values_have_the_type_of_their_option():
    parsed = vars(make_parser().parse_args(["-b", "3", "--sample", "0.5", "--output", "model", "--quiet"]))
    assert parsed == dict(batch=3, sample=0.5, limit=0, order="random", output=Path("model"), quiet=True)


@pytest.mark.parametrize("option, value", [("--batch", "0"), ("--batch", "x"), ("--sample", "1"), ("--order", "none")])
def test_other_values_are_errors_that_name_them(option, value, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args([option, value])
    assert value in capsys.readouterr().err.splitlines()[-1]
