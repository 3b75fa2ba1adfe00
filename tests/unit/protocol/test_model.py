"""Small jobs in every order of their messages; `make model` explores more of them."""

import pytest

import model

SMALL = ["contended", "three", "sets", "rounds of two", "set, rounds of two", "work, two"]
SMALL += ["push behind a set", "push behind a set, 2", "declined", "borrowed", "set by a member", "work of members"]
SMALL += ["borrowed replica", "borrowed replica and a set", "borrowed at home"]
SMALL += ["gradients", "steps", "gradients, rounds of two", "gradient behind a set", "gradient behind a set, 2"]
#: A fault about ranks that share memory, and one that is found late in the small ones.
OTHERS = {"lose ROUND_NEWS": ["leader and member"], "lose CONTENDED": ["declined"]}
OF_REPLICAS = ("DELTA", "SUM", "ROUND_END", "SUMS_END", "REPLACE", "APPLIED")


@pytest.mark.parametrize("name", SMALL)
def test_every_order_of_messages_ends_well(name):
    states, ends, are_all = model.explore(model.JOBS[name])
    assert are_all
    assert states > ends > 10


@pytest.mark.parametrize("name", model.FAULTS)
def test_a_planted_fault_is_found(name):
    of_replicas = name.endswith(OF_REPLICAS)
    jobs = [each for each in SMALL if bool(model.JOBS[each].replicated) == of_replicas]
    assert model.find(model.FAULTS[name], OTHERS.get(name, jobs))


@pytest.mark.parametrize("name", model.FAULTS)
def test_a_planted_fault_is_found_at_random(name):
    assert model.find_at_random(model.FAULTS[name])


def test_random_orders_end_well():
    visited = model.wander(model.JOBS["rounds and a set"], 300)
    assert visited.orders == 300
    assert visited.states > visited.ends > 100
    for seed in range(100):
        model.wander(model.random_job(seed), 10, seed)
