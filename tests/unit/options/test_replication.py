"""What `lapse.Replication` accepts, and the levels that follow from rates."""

import dataclasses

import numpy as np
import pytest

import lapse
from lapse.options.replication import MAX_LEVEL


def test_without_rates_every_key_takes_part_in_every_round():
    assert lapse.Replication().levels() is None


def test_a_key_takes_part_as_often_as_it_gathers_enough():
    replication = lapse.Replication(rates=[100, 40, 39, 20, 10, 9, 1, 0], enough=40)
    assert replication.levels().tolist() == [0, 0, 0, 1, 2, 2, 5, MAX_LEVEL]


def test_rates_are_copied_and_cannot_be_changed():
    rates = np.array([1.0, 2.0])
    replication = lapse.Replication(rates=rates)
    rates[0] = 99
    assert replication.rates.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        replication.rates[0] = 5
    assert dataclasses.replace(replication, wire="bfloat16").rates.tolist() == [1, 2]


@pytest.mark.parametrize(
    "given, error, text",
    [
        ({"combine": "mean"}, ValueError, "combine is 'mean', but must be one of sum, adaptive, adagrad"),
        ({"combine": 3}, TypeError, "combine must be a string, not 3"),
        ({"wire": "float16"}, ValueError, "wire is 'float16', but must be one of exact, bfloat16"),
        ({"curvature": -1.0}, ValueError, "curvature is -1.0"),
        ({"enough": float("nan")}, ValueError, "enough is nan"),
        ({"rates": [[1.0]]}, ValueError, "one-dimensional"),
        ({"rates": [1.0, -2.0]}, ValueError, "rates has -2.0"),
        ({"rates": [1.0, float("inf")]}, ValueError, "rates has inf"),
        ({"combine": "adagrad", "average": True}, ValueError, "leave average out"),
        ({"combine": "adagrad", "curvature": 0.2}, ValueError, 'curvature=0.2 has no effect with combine="adagrad"'),
        ({"combine": "adagrad", "in_place": True}, ValueError, 'not with "adagrad": leave it out'),
        ({"in_place": 1}, TypeError, "in_place must be True or False, not 1"),
        ({"enough": 3}, ValueError, "enough=3.0 has no effect without rates: leave it out"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, error, text):
    with pytest.raises(error, match=text):
        lapse.Replication(**given)
