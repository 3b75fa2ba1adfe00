"""The benchmark program's own rules: what a row must have, how targets are judged, how turns are taken."""

import argparse
import json
import math
from itertools import count

import pytest

from lapse.bench import _program, _tables
from lapse.bench._groups import FULL, MODULES, NORMAL, RENAMED, Context, Group, Job, load
from lapse.bench._rows import Row, at_least, at_most
from lapse.bench._timing import Sample, interleaved

CONTEXT = Context(Group("g", "title", run=None), Job())


def row(measured=2.0, reference=1.0, **others):
    return CONTEXT.row("pull", {"batch": 10}, measured, reference, unit="us", **{"reference_name": "a copy", **others})


@pytest.mark.parametrize("reference", [0.0, -1.0, math.nan, math.inf])
def test_row_needs_a_reference(reference):
    with pytest.raises(ValueError, match="g: pull, batch 10: the reference is"):
        row(reference=reference)


def test_row_needs_to_say_what_its_reference_is():
    with pytest.raises(ValueError, match="no reference"):
        row(reference_name="")
    with pytest.raises(TypeError):
        Row("g", "pull", {}, 1.0, "us")


def test_ratio_is_that_of_the_rounds():
    ours, theirs = Sample((1.0, 10.0, 4.0)), Sample((1.0, 5.0, 1.0))
    made = row(ours, theirs)
    assert (made.value, made.reference, made.ratio, made.quartiles) == (4.0, 1.0, 2.0, (1.5, 3.0))


@pytest.mark.parametrize(
    "target, reached",
    [
        (at_most(2), True),
        (at_most(1.9), False),
        (at_least(2), True),
        (at_least(2.1), False),
        (at_most(4, "value"), True),
        (None, None),
    ],
)
def test_targets(target, reached):
    assert row(4.0, 2.0, target=target).reached is reached


def test_rows_survive_json():
    made = row(Sample((1.0, 2.0)), Sample((1.0, 1.0)), target=at_most(3), note="n")
    figures = json.loads(json.dumps(made.as_dict()))
    assert figures["reached"] is True
    assert Row.from_dict(figures) == made


def test_turns_are_taken_and_the_first_round_does_not_count():
    clock, order = count(), []

    def measure(name):
        order.append(name)
        return float(next(clock))

    found = interleaved({"a": lambda: measure("a"), "b": lambda: measure("b")}, rounds=3)
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert found["a"].values == (2.0, 5.0, 6.0)


def test_tables_have_every_parameter_and_reference():
    other = CONTEXT.row("push", {"length": 5}, 1.0, 3.0, unit="us", reference_name="an add", target=at_most(0.1))
    text = _tables.of_group([row(), other])
    assert all(word in text for word in ("batch", "length", "a copy", "an add", "MISSED"))
    assert "g: push, length 5" in _tables.of_targets([row(), other])


def test_extent_chooses_the_jobs():
    group = Group("g", "title", run=None, jobs=(Job(2), Job(4, NORMAL), Job(8, FULL)))
    chosen = {extent: [job.ranks for _, job in group.chosen_jobs(*extent)] for extent in ((1, 0), (0, 0), (0, 1))}
    assert chosen == {(1, 0): [2], (0, 0): [2, 4], (0, 1): [2, 4, 8]}


def test_every_group_has_a_smoke_test_and_a_docstring():
    for group in load().values():
        assert group.chosen_jobs(quick=True, full=False), group.name
    for module in MODULES:
        assert __import__(module, fromlist=["__doc__"]).__doc__


def test_former_names_of_groups_are_accepted_with_a_hint(capsys):
    parser = argparse.ArgumentParser()
    _program.add_options(parser)
    with pytest.raises(SystemExit):  # the unknown group stops the program before it measures anything
        _program.run(parser, parser.parse_args(["siblings", "no_such_group"]))
    message = capsys.readouterr().err
    assert "note: the group siblings is now called host-peers" in message
    assert "no group no_such_group: choose from local, host-peers" in message
    assert set(RENAMED.values()) <= set(load()) and not set(RENAMED) & set(load())
