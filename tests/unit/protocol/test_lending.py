"""Lent keys in the simulated network: they stay, nobody else changes them, and no update is lost.

LAPSE_TEST_SEEDS multiplies how many interleavings there are.
"""

import os

import numpy as np
import pytest

from simulated_network import Network

SEEDS = int(200 * float(os.environ.get("LAPSE_TEST_SEEDS", 1)))
KEY = 0


@pytest.fixture
def two():
    """Two ranks, of which the first owns the key, with the value 1."""
    network = Network(2, 1, 2, seed=0)
    network.start(0, "localize", [KEY])
    network.run()
    network.start(0, "push", [KEY], [1, 1])
    network.run()
    return network


def finish(network):
    network.run()
    assert all(call.done for call in network.calls)
    network.check_at_rest()


def test_a_value_is_lent_in_place_and_its_changes_stay(two):
    value = two.ranks[0].borrow(KEY)
    assert two.ranks[0].state(KEY) == "lent"
    value += 5
    assert two.ranks[0].value(KEY).tolist() == [6, 6]
    two.ranks[0].give_back(KEY)
    assert two.ranks[0].state(KEY) == "owned"
    assert two.value(KEY).tolist() == [6, 6]


def test_a_value_that_was_never_written_is_lent_as_zeros():
    network = Network(1, 1, 3, seed=0)
    value = network.ranks[0].borrow(KEY)
    assert value.tolist() == [0, 0, 0]
    value += 1
    network.ranks[0].give_back(KEY)
    assert network.value(KEY).tolist() == [1, 1, 1]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["push", "set"])
def test_a_change_by_anybody_waits_for_the_return(two, rank, kind):
    value = two.ranks[0].borrow(KEY)
    change = two.start(rank, kind, [KEY], [10, 10])
    two.run()
    assert not change.done
    value += 5
    two.ranks[0].give_back(KEY)
    two.collect(0)
    finish(two)
    assert two.value(KEY).tolist() == ([16, 16] if kind == "push" else [10, 10])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("is_awaited", [False, True])
def test_a_pull_does_not_wait_and_sees_the_value_as_it_is(two, rank, is_awaited):
    value = two.ranks[0].borrow(KEY)
    if is_awaited:
        two.start(1, "push", [KEY], [100, 100])
        two.run()
    value[0] += 5
    pull = two.start(rank, "pull", [KEY])
    two.run()
    assert pull.done
    assert pull.values.tolist() == [6, 1]
    two.ranks[0].give_back(KEY)
    two.collect(0)
    finish(two)


def test_a_lent_key_leaves_when_it_is_returned_with_what_was_pushed_meanwhile(two):
    value = two.ranks[0].borrow(KEY)
    localize = two.start(1, "localize", [KEY])
    two.run()
    two.start(0, "push", [KEY], [10, 10])
    assert not localize.done
    assert two.ranks[0].state(KEY) == "arriving"
    value += 5
    two.ranks[0].give_back(KEY)
    assert two.ranks[0].state(KEY) == "absent"
    two.collect(0)
    finish(two)
    assert localize.done
    assert two.owner(KEY) == 1
    assert two.value(KEY).tolist() == [16, 16]
    assert two.ranks[0].relocations["given_away"] >= 1
    assert sum(rank.relocations["given_away"] for rank in two.ranks) == sum(
        rank.relocations["arrived"] for rank in two.ranks
    )


@pytest.mark.parametrize("is_awaited", [False, True])
def test_a_localize_by_the_rank_that_lends_is_done_at_once(two, is_awaited):
    two.ranks[0].borrow(KEY)
    if is_awaited:
        two.start(1, "push", [KEY], [1, 1])
        two.run()
    assert two.start(0, "localize", [KEY]).done
    two.ranks[0].give_back(KEY)
    two.collect(0)
    finish(two)


def test_what_is_not_lent(two):
    first, second = two.ranks
    assert second.borrow(KEY) is None  # absent
    two.start(1, "localize", [KEY])
    assert second.borrow(KEY) is None  # arriving
    two.run()
    assert second.borrow(KEY) is not None
    assert second.borrow(KEY) is None  # lent
    assert second.borrow(KEY, shared=True) is None
    two.start(0, "push", [KEY], [1, 1])
    two.run()
    assert second.borrow(KEY) is None  # awaited
    second.give_back(KEY)
    two.collect(1)
    finish(two)
    with pytest.raises(ValueError, match="key 0 is not lent"):
        second.give_back(KEY)
    with pytest.raises(ValueError, match="key 0 is not lent"):
        first.give_back(KEY)
    replicated = Network(2, 1, 1, seed=0, replicated=[KEY])
    assert replicated.ranks[0].borrow(KEY) is None
    assert replicated.ranks[0].borrow(KEY, shared=True) is None


def test_a_shared_value_stays_until_the_last_has_returned_it(two):
    rank = two.ranks[0]
    values = [rank.borrow(KEY, shared=True) for _ in range(3)]
    assert len({value.ctypes.data for value in values}) == 1
    assert rank.borrow(KEY) is None
    rank.give_back(KEY)
    localize = two.start(1, "localize", [KEY])
    two.run()
    assert rank.borrow(KEY, shared=True) is None  # others have waited long enough
    rank.give_back(KEY)
    two.collect(0)
    two.run()
    assert not localize.done
    values[0] += 5
    rank.give_back(KEY)
    two.collect(0)
    finish(two)
    assert two.owner(KEY) == 1
    assert two.value(KEY).tolist() == [6, 6]


def test_so_many_as_the_state_can_count_share_a_value(two):
    rank = two.ranks[0]
    lent = 0
    while rank.borrow(KEY, shared=True) is not None:
        lent += 1
    assert lent > 100
    two.start(1, "localize", [KEY])
    two.run()
    for _ in range(lent):
        assert two.ranks[0].state(KEY) == "arriving"
        rank.give_back(KEY)
    two.collect(0)
    finish(two)
    assert two.owner(KEY) == 1


class Lending(Network):
    """A network whose programs note what they push and what they change in place."""

    def __init__(self, size, seed, **options):
        self.lengths = np.arange(5) % 3 + 1
        super().__init__(size, 5, self.lengths, seed, **options)
        self.sums = np.zeros(5)
        self.lent = self.refused = 0

    def program(self, rank, worker, rounds=15):
        """Calls that nobody waits for while something is lent; then all are waited for."""
        random = np.random.default_rng([self.random.integers(2**31), rank, worker])
        calls = []
        for _ in range(rounds):
            keys = random.integers(0, self.num_keys, int(random.integers(1, 4)))
            kind = str(random.choice(["push", "pull", "localize", "borrow", "borrow"]))
            if kind == "borrow":
                yield from calls
                yield from self.change_in_place(rank, np.unique(keys), random)
            elif kind == "push":
                number = int(random.integers(1, 1000))
                np.add.at(self.sums, keys, number)
                calls.append(self.start(rank, "push", keys, np.full(self.lengths[keys].sum(), float(number))))
            else:
                calls.append(self.start(rank, kind, keys))
            if random.random() < 0.3:
                yield calls[-1] if calls else 0.1
        yield from calls

    def change_in_place(self, rank, keys, random):
        shared = bool(random.random() < 0.5)
        values = {key: self.ranks[rank].borrow(key, shared) for key in keys.tolist()}
        values = {key: value for key, value in values.items() if value is not None}
        self.lent += len(values)
        self.refused += len(keys) - len(values)
        for key, value in values.items():
            self.sums[key] += 7
            value += 7
        before = {key: value.copy() for key, value in values.items()}
        for _ in range(int(random.integers(4))):
            yield float(random.exponential(3.0))
        for key, value in values.items():
            if not shared:
                np.testing.assert_array_equal(value, before[key], "somebody else has changed a value that is lent")
            self.ranks[rank].give_back(key)
            self.collect(rank)

    def advance(self, rank, program, waiting_for):
        if isinstance(waiting_for, float):
            return self.after(waiting_for, lambda: self.advance(rank, program, None))
        return super().advance(rank, program, waiting_for)


@pytest.mark.parametrize(
    "size, sharing, reorder", [(1, 1, False), (2, 1, False), (3, 1, True), (3, 2, False), (4, 2, True)]
)
def test_exact_sums_whatever_is_lent_and_moves_meanwhile(size, sharing, reorder):
    lent = refused = 0
    for seed in range(SEEDS // size):
        network = Lending(size, seed, sharing=sharing, reorder=reorder)
        for rank in range(size):
            for worker in range(2):
                network.worker(rank, network.program(rank, worker))
        finish(network)
        for key in range(network.num_keys):
            np.testing.assert_array_equal(network.value(key), np.full(network.lengths[key], network.sums[key]))
        lent += network.lent
        refused += network.refused
    # The runs must have been through what they are to test.
    assert lent > 100
    assert refused > 20


# Replicas --------------------------------------------------------------------------------------------


@pytest.fixture
def replicas():
    """Two ranks with replicas of the key, at rest, with the value 1; its home is `home`."""
    network = Network(2, 1, 2, seed=0, replicated=[KEY], in_place=True)
    network.home = network.ranks[0].route(KEY)
    network.start(network.home, "set", [KEY], [1, 1])
    network.run()
    return network


def synchronize(network):
    for rank in range(network.size):
        network.start(rank, "sync", [])
        network.collect(rank)
    network.run()


def values(network):
    return [rank.value(KEY).tolist() for rank in network.ranks]


def test_a_replica_that_may_not_be_borrowed_is_not_lent():
    network = Network(2, 1, 2, seed=0, replicated=[KEY])
    assert network.ranks[0].borrow(KEY) is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_replica_is_changed_in_place_and_all_ranks_learn_of_it(replicas, rank):
    value = replicas.ranks[rank].borrow(KEY)
    value += 5
    assert replicas.ranks[rank].value(KEY).tolist() == [6, 6]
    replicas.ranks[rank].give_back(KEY)
    with pytest.raises(ValueError, match="not lent"):
        replicas.ranks[rank].give_back(KEY)
    synchronize(replicas)
    assert values(replicas) == [[6, 6], [6, 6]]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_others_push_and_rounds_bring_shows_at_once_and_reaches_the_borrower_at_the_return(replicas, rank):
    borrower, other = replicas.ranks[rank], replicas.ranks[1 - rank]
    value = borrower.borrow(KEY)
    value += 5
    replicas.start(rank, "push", [KEY], [10, 20])
    replicas.start(1 - rank, "push", [KEY], [100, 200])
    replicas.run()
    assert value.tolist() == [6, 6]
    assert borrower.value(KEY).tolist() == [16, 26]
    synchronize(replicas)  # takes what was changed so far
    value += 1
    assert value.tolist() == [7, 7]
    assert values(replicas)[rank] == [117, 227]
    assert values(replicas)[1 - rank] == [116, 226]
    assert borrower.borrow(KEY, shared=True) is None
    borrower.give_back(KEY)
    assert borrower.borrow(KEY).tolist() == [117, 227]
    borrower.give_back(KEY)
    synchronize(replicas)
    assert other.value(KEY).tolist() == [117, 227]
    assert borrower.value(KEY).tobytes() == borrower.base(KEY).tobytes() == other.value(KEY).tobytes()


@pytest.mark.parametrize("setter", [0, 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_set_is_not_undone_by_the_return_of_what_was_borrowed_before(replicas, rank, setter):
    value = replicas.ranks[rank].borrow(KEY)
    value += 5  # before the set, hence void
    call = replicas.start(setter, "set", [KEY], [50, 60])
    replicas.run()
    assert call.done
    assert values(replicas) == [[50, 60], [50, 60]]
    value += 1  # behind it
    assert values(replicas)[rank] == [51, 61]
    replicas.ranks[rank].give_back(KEY)
    synchronize(replicas)
    assert values(replicas) == [[51, 61], [51, 61]]


def test_a_replica_is_lent_to_one_or_to_several_who_share_it(replicas):
    rank = replicas.ranks[0]
    assert rank.borrow(KEY) is not None
    assert rank.borrow(KEY) is None
    assert rank.borrow(KEY, shared=True) is None
    rank.give_back(KEY)
    assert all(rank.borrow(KEY, shared=True) is not None for _ in range(3))
    assert rank.borrow(KEY) is None
    for _ in range(3):
        rank.give_back(KEY)
    assert rank.borrow(KEY) is not None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_replica_that_is_returned_unchanged_sends_nothing_and_gets_what_came_meanwhile(replicas, rank):
    borrower = replicas.ranks[rank]
    sent = borrower.replica_counters
    borrower.borrow(KEY)
    replicas.start(1 - rank, "push", [KEY], [100, 200])
    synchronize(replicas)
    borrower.give_back(KEY, weight=0)
    assert borrower.borrow(KEY).tolist() == [101, 201]
    borrower.give_back(KEY, weight=0)
    synchronize(replicas)
    if rank != replicas.home:  # the home sends sums
        assert borrower.replica_counters == sent
    assert values(replicas) == [[101, 201], [101, 201]]
