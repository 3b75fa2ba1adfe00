"""`benchmarks/scaling_model.py`: the model's arithmetic, on a training whose figures are known."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[3] / "benchmarks" / "scaling_model.py"


@pytest.fixture(scope="module")
def model():
    spec = importlib.util.spec_from_file_location("scaling_model", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling_model"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scaling_model"]


def training(model, keys=1000, uses=1e9, level=0, begin=1e4):
    """Ten rounds of an epoch in which all ranks change all keys, unless the round is late."""
    return model.Training(
        items=1e5,
        item=1.0,
        alone=1.0,
        begin=begin,
        uses=np.full(keys, uses),
        levels=np.full(keys, level),
        bytes=np.full(keys, 200),
        length=np.full(keys, 100),
        has_curvature=False,
    )


def costs(model, **others):
    free = dict(delay=0, look=0, gigabits=1e9, message=0, record=0, access=0, combine=0, gather=0, directions=0)
    return model.Primitives(**{**free, **others})


def test_rounds_that_cost_nothing_are_linear(model):
    for hosts in (1, 2, 8, 1000):
        row = model.estimate(training(model), costs(model), hosts)
        assert row.seconds == pytest.approx(0.1 / hosts) and row.waiting == pytest.approx(0)


def test_a_full_round_moves_every_value_twice(model):
    row = model.estimate(training(model), costs(model), 4)
    assert row.rounds == pytest.approx(10) and row.messages == pytest.approx(10 * 2 * 3)
    assert row.megabytes == pytest.approx(10 * 2 * (0.75 * 1000 * 208 + 3 * 24) / 1e6)


def test_keys_of_a_level_take_part_as_rarely(model):
    every, fourth = (model.estimate(training(model, level=level), costs(model), 4).megabytes for level in (0, 2))
    assert fourth == pytest.approx(every / 4, rel=0.01)


def test_a_late_round_sets_the_pace(model):
    """Workers stop at 1.5 times the work of a round: 15,000 of 100,000 items in each."""
    row = model.estimate(training(model), costs(model, delay=10_000), 8)
    assert row.rounds == pytest.approx(100 / 15)
    assert row.seconds == pytest.approx(100 / 15 * 0.03 + 0.03)  # three trips each, and the meeting at the end


def test_dilation_leaves_only_the_network(model):
    plain, dilated = (
        model.kinds_of_rounds(training(model), costs(model, delay=1, message=5, dilation=times), 8, 1e4)[0].seconds
        for times in (1, 10)
    )
    assert dilated["trips"] == plain["trips"] and dilated["messages"] == pytest.approx(plain["messages"] / 10)


def test_an_exchange_by_rows_and_columns_sends_fewer_messages(model):
    one, two = (model.estimate(training(model), costs(model, steps=steps), 64).messages for steps in (1, 2))
    assert one == pytest.approx(10 * 2 * 63) and two == pytest.approx(10 * 2 * 2 * 7)


def test_workers_that_wait_for_each_round_do_no_more_meanwhile(model):
    waiting = model.replace(training(model), late=0.0)
    row = model.estimate(waiting, costs(model, delay=1000), 8)
    assert row.rounds == pytest.approx(10)
    assert row.seconds == pytest.approx(10 * (1e4 / 8 + 3000) / 1e6 + 0.003)


def test_half_of_the_work_of_a_round_hides_as_much_of_it(model):
    half = model.replace(training(model), late=0.5)
    hidden, shown = (model.estimate(half, costs(model, delay=delay), 8) for delay in (200, 1000))
    assert hidden.seconds == pytest.approx(0.1 / 8 + 0.0006)
    assert shown.seconds == pytest.approx(10 * (1e4 / 8 / 2 + 3000) / 1e6 + 0.003)
