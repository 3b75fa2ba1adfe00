"""What workers of real jobs saw, explained; `make histories` records more."""

import pytest

import histories
import shim
from histories import Job


@pytest.mark.parametrize(
    "job",
    [
        Job(2, 3, 100, 1, "messages"),
        Job(4, 2, 100, 2, "pairs"),
        Job(3, 3, 100, 3, "messages"),
        Job(3, 2, 100, 4, "shared"),
    ],
    ids=str,
)
def test_operations_of_a_job_have_an_order(job):
    operations, hosts, replicated = histories.record(job)
    counts = histories.check_job(operations, hosts, replicated)
    assert min(counts.values()) > 0
    assert set(counts) == {histories.PULL, histories.PUSH, histories.SET, histories.SYNC}


@pytest.mark.parametrize(
    "kind, old", [("PUSH", False), ("SET", False), ("TRANSFER", True), ("PULL_REPLY", True), ("DELTA", False)]
)
def test_a_value_that_is_changed_on_its_way_is_found(kind, old):
    env = shim.spoiling(kind, 6, 8 * histories.LENGTH, old)
    with pytest.raises(histories.WrongError):
        histories.check_job(*histories.record(Job(3, 2, 100, 5), env))
