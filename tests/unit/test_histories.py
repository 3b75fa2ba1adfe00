"""The checker of histories: it explains those that are right, and finds what is wrong with others."""

import dataclasses
import random

import numpy as np
import pytest

import histories
from histories import PULL, PUSH, SET, SYNC, Operation, WrongError, check, check_replicas, order_of


def operation(worker, kind, begin, end, number=0, seen=(0, 0)):
    return Operation(worker, worker, 0, kind, number, seen, begin, end)


def history(seed, size=120, workers=6):
    """Operations that took effect one after another, each at some time between its begin and its end."""
    choice = random.Random(seed)
    free = [0] * workers  # when a worker's last operation had ended
    state, operations = (0, 0), []
    for number in range(1, size + 1):
        worker = choice.randrange(workers)
        effect = 100 * number
        begin = choice.randint(max(free[worker] + 1, effect - 400), effect) if free[worker] < effect else effect
        end = free[worker] = effect + choice.randint(0, 90)
        kind = choice.choices([PULL, PUSH, SET], [5, 4, 1])[0]
        if kind == PUSH:
            state = (state[0], state[1] | 1 << number)
        elif kind == SET:
            state = (number, 0)
        seen = state if kind == PULL else (0, 0)
        operations.append(operation(worker, kind, begin, end, number, seen))
    choice.shuffle(operations)
    return operations


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("by_clock", [True, False])
def test_an_order_is_found_and_is_one(seed, by_clock):
    operations = history(seed)
    order = order_of(operations, by_clock)
    assert sorted(order, key=str) == sorted(operations, key=str)
    state = (0, 0)
    last_begin = {}
    for each in order:
        if each.kind == PULL:
            assert each.seen == state
        state = {PUSH: (state[0], state[1] | 1 << each.number), SET: (each.number, 0), PULL: state}[each.kind]
        line = 0 if by_clock else each.worker
        assert each.end >= last_begin.get(line, 0)  # nothing before it began after its end
        last_begin[line] = max(last_begin.get(line, 0), each.begin)


def pulls_with_pushes(operations):
    return sorted((each for each in operations if each.kind == PULL and each.seen[1]), key=lambda each: each.begin)


def change(operations, old, **new):
    return [dataclasses.replace(each, **new) if each is old else each for each in operations]


def forget_a_push(operations, choice):
    """One pull does not see a push of before it, which the pull before it has seen."""
    pulls = pulls_with_pushes(operations)
    pairs = [(a, b) for a in pulls for b in pulls if a.end < b.begin and a.seen[0] == b.seen[0] and a.seen[1]]
    first, second = choice.choice(pairs)
    return change(operations, second, seen=(second.seen[0], second.seen[1] ^ (first.seen[1] & -first.seen[1])))


def lose_a_push(operations, choice):
    """No pull sees a push that began and ended between two pulls behind the same set."""
    pulls = [each for each in operations if each.kind == PULL]
    pushes = [each for each in operations if each.kind == PUSH]
    pairs = [(a, b) for a in pulls for b in pulls if a.end < b.begin and a.seen[0] == b.seen[0]]
    lost = [push for push in pushes if any(a.end < push.begin and push.end < b.begin for a, b in pairs)]
    bit = 1 << choice.choice(lost).number
    return [dataclasses.replace(each, seen=(each.seen[0], each.seen[1] & ~bit)) for each in operations]


def see_the_future(operations, choice):
    """A pull sees a push that begins after its end."""
    pairs = [(a, b) for a in operations if a.kind == PULL for b in operations if b.kind == PUSH and b.begin > a.end]
    pull, push = choice.choice(pairs)
    return change(operations, pull, seen=(pull.seen[0], pull.seen[1] | 1 << push.number))


def see_an_old_value(operations, choice):
    """A pull sees what was there before a set that ended before it began, and that another pull has seen."""
    pulls = [each for each in operations if each.kind == PULL]
    pairs = [(a, b) for a in pulls for b in pulls if a.end < b.begin and a.seen[0] != b.seen[0]]
    pairs = [(a, b) for a, b in pairs if any(c.kind == SET and a.end < c.begin and c.end < b.begin for c in operations)]
    old, new = choice.choice(pairs)
    return change(operations, new, seen=old.seen)


def see_what_nobody_wrote(operations, choice):
    """A pull sees a set that nobody made."""
    pull = choice.choice([each for each in operations if each.kind == PULL])
    return change(operations, pull, seen=(10**6, 0))


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("spoil", [forget_a_push, lose_a_push, see_the_future, see_an_old_value, see_what_nobody_wrote])
def test_a_history_that_was_spoiled_is_found(spoil, seed):
    with pytest.raises(WrongError):
        check(spoil(history(seed), random.Random(seed)))


def test_a_stale_pull_of_another_worker_is_only_sequentially_consistent():
    operations = [operation(0, PUSH, 0, 1, 3), operation(1, PULL, 2, 3)]
    order_of(operations, by_clock=False)
    with pytest.raises(WrongError, match="^sequentially consistent, but not linearizable"):
        check(operations)


def test_a_worker_that_does_not_see_its_own_push_is_not_even_that():
    with pytest.raises(WrongError, match="^not sequentially consistent"):
        check([operation(0, PUSH, 0, 1, 3), operation(0, PULL, 2, 3)])


def test_two_workers_that_see_two_sets_in_different_orders():
    """Each reads the other's set after its own: there is no order of the two sets."""
    operations = [
        operation(0, SET, 0, 1, 1),
        operation(1, SET, 0, 1, 2),
        *(operation(2, PULL, t, t + 1, seen=(s, 0)) for t, s in ((2, 1), (4, 2))),
        *(operation(3, PULL, t, t + 1, seen=(s, 0)) for t, s in ((2, 2), (4, 1))),
    ]
    with pytest.raises(WrongError, match="^not sequentially consistent"):
        check(operations)


def test_values_name_what_made_them():
    vector = histories.vector_of_set(7) + histories.vector_of_push(0) + histories.vector_of_push(27)
    assert histories.read_vector(vector) == (7, 1 | 1 << 27)
    with pytest.raises(WrongError, match="push 27 took effect 2 times"):
        histories.read_vector(vector + histories.vector_of_push(27))
    with pytest.raises(WrongError, match="no pushes add up"):
        histories.read_vector(vector + np.full(histories.LENGTH, 0.5))


def test_replicas_may_differ_for_a_while():
    pushes = [operation(0, PUSH, 0, 1, 1), operation(1, PUSH, 0, 1, 2)]
    check_replicas(
        [*pushes, operation(0, PULL, 2, 3, seen=(0, 0b10)), operation(1, PULL, 2, 3, seen=(0, 0b100))], [0, 1]
    )


@pytest.mark.parametrize(
    "last",
    [
        operation(0, PULL, 4, 5, seen=(0, 0b1000)),  # not its own first push
        operation(1, PULL, 4, 5, seen=(0, 0b1000)),  # the second push of worker 0 without the first
        operation(1, PULL, 12, 13, seen=(0, 0b10)),  # less than what it saw before
        operation(1, PULL, 22, 23, seen=(0, 0b1010)),  # not what came before a sync of the other rank
        operation(1, PULL, 4, 5, seen=(0, 0b100000)),  # what had not begun
    ],
)
def test_replicas_that_break_a_promise_are_found(last):
    operations = [
        operation(0, PUSH, 0, 1, 1),
        operation(0, PUSH, 2, 3, 3),
        operation(1, PULL, 10, 11, seen=(0, 0b1010)),
        operation(0, PUSH, 14, 15, 4),
        operation(0, SYNC, 16, 20),
        operation(0, PUSH, 30, 31, 5),
    ]
    check_replicas(operations, [0, 1])
    with pytest.raises(WrongError):
        check_replicas([*operations, last], [0, 1])
