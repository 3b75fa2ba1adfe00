"""Small jobs in every order of their messages; `make model` explores more of them."""

import pytest

import model

SMALL = ["contended", "three", "sets", "rounds of two", "set, rounds of two", "work, two"]
SMALL += ["push behind a set", "push behind a set, 2"]


@pytest.mark.parametrize("name", SMALL)
def test_every_order_of_messages_ends_well(name):
    states, ends, are_all = model.explore(model.JOBS[name])
    assert are_all
    assert states > ends > 10


@pytest.mark.parametrize("name", model.FAULTS)
def test_a_planted_fault_is_found(name):
    assert model.find(model.FAULTS[name], SMALL)


def test_random_orders_end_well():
    model.wander(model.JOBS["rounds and a set"], 300)
