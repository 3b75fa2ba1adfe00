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
#: The messages that only one kind of call sends: other jobs would be explored in vain.
SENT_BY = {"GRADIENT": "gradient", "GRADIENT_DELTA": "gradient", "SET": "set", "PULL": "pull", "PULL_REPLY": "pull"}


@pytest.mark.parametrize("name", SMALL)
def test_every_order_of_messages_ends_well(name):
    states, ends, are_all = model.explore(model.JOBS[name])
    assert are_all
    assert states > ends > 10


def jobs_that_send(message):
    """The small jobs in which there may be such a message."""
    jobs = [name for name in SMALL if bool(model.JOBS[name].replicated) == message.endswith(OF_REPLICAS)]
    return [name for name in jobs if message not in SENT_BY or SENT_BY[message] in kinds_of_calls(model.JOBS[name])]


def kinds_of_calls(job):
    return {kind for calls in job.calls for kind, _ in calls}


@pytest.mark.parametrize("name", model.FAULTS)
def test_a_planted_fault_is_found(name):
    assert model.find(model.FAULTS[name], OTHERS.get(name) or jobs_that_send(name.split()[-1]))


@pytest.mark.parametrize("name", model.FAULTS)
def test_a_planted_fault_is_found_at_random(name):
    assert model.find_at_random(model.FAULTS[name])


def test_random_orders_end_well():
    visited = model.wander(model.JOBS["rounds and a set"], 300)
    assert visited.orders == 300
    assert visited.states > visited.ends > 100
    for seed in range(100):
        model.wander(model.random_job(seed), 10, seed)
