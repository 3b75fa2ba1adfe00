"""How options of the applications are declared."""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.apps._shared.options import Group, add_shared_options, fraction, natural_int, new_parser, positive_int
from lapse.apps.kge import options as kge
from lapse.apps.mf import options as mf
from lapse.apps.word2vec import options as word2vec


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


@pytest.mark.parametrize("value", ["0.5", "0", "-1", "nan", "inf", "fast"])
def test_computing_cannot_be_sped_up(value, capsys):
    parser = new_parser("app", None)
    add_shared_options(parser, epochs=1, dim=1)
    assert parser.parse_args(["--slow-down", "1.5"]).slow_down == 1.5
    with pytest.raises(SystemExit):
        parser.parse_args(["--slow-down", value])
    assert value in capsys.readouterr().err.splitlines()[-1]


# Fuzzing ------------------------------------------------------------------------------------------

APPS = {"kge": kge, "mf": mf, "word2vec": word2vec}
FLAGS = {
    name: sorted({flag for action in app.make_parser()._actions for flag in action.option_strings} - {"-h", "--help"})
    for name, app in APPS.items()
}
VALUES = st.sampled_from(
    [
        "0",
        "1",
        "7",
        "-1",
        "0.5",
        "1e9",
        "nan",
        "inf",
        "9" * 30,
        "",
        "x",
        "a,b,c",
        "1,3,2",
        ",,",
        "complex",
        "\udce9",
        "/",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(APPS)), st.data())
def test_any_command_line_is_parsed_or_refused_with_a_message(name, data):
    words = data.draw(st.lists(st.sampled_from(FLAGS[name]) | VALUES | st.text(max_size=4), max_size=6))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            args = APPS[name].parse(words)
    except SystemExit as ended:
        assert (ended.code == 2 and ": error: " in said.getvalue()) or ended.code == 0
    else:
        assert args.given <= vars(args).keys() and args.epochs >= 1
