"""The relocation protocol in the simulated network: thousands of interleavings, by seed.

LAPSE_TEST_SEEDS multiplies how many.
"""

import os

import numpy as np
import pytest

from lapse import optim
from simulated_network import Network, requests_in

SEEDS_PER_SIZE = int(400 * float(os.environ.get("LAPSE_TEST_SEEDS", 1)))
SIZES = [1, 2, 3, 4, 5, 8]
LARGE = np.array([2, 3000, 9000])


class Tracked(Network):
    """A network whose programs note what they expect; by default lengths of 1, 2 and 3, and gradients as they are."""

    def __init__(self, size, seed, num_keys=7, **options):
        lengths = np.arange(num_keys) % 3 + 1
        options.setdefault("optimizer", optim.SGD(lr=1.0).parameters())
        super().__init__(size, num_keys, lengths, seed, **options)
        self.lengths = lengths
        self.sums = np.zeros(num_keys)
        # (origin, operation, position): how often another rank than the origin sent it
        self.forwards = {}

    def deliver(self, source, target, packet):
        for origin, operation, _key, position in requests_in(packet, 8 * self.lengths):
            if source != origin:
                place = origin, operation, position
                self.forwards[place] = self.forwards.get(place, 0) + 1
        super().deliver(source, target, packet)

    def push(self, rank, keys, number):
        """Push a number to all elements of each key."""
        np.add.at(self.sums, keys, number)
        return self.start(rank, "push", keys, np.full(self.lengths[keys].sum(), float(number)))

    def apply(self, rank, keys, number, rate):
        """Apply a gradient whose elements all are this number to each key; `rate` NaN: 1."""
        np.add.at(self.sums, keys, -number * (1 if np.isnan(rate) else rate))
        return self.start(rank, "gradient", keys, np.full(self.lengths[keys].sum(), float(number)), rate=rate)

    def end(self):
        """Run to the end, and check that nothing is left behind and every sum is exact."""
        self.run()
        assert all(call.done for call in self.calls), "some calls never finished"
        self.check_at_rest()
        for key in range(self.num_keys):
            np.testing.assert_array_equal(self.value(key), np.full(self.lengths[key], self.sums[key]))


def random_program(network, rank, worker, calls, hot):
    """Random pulls, pushes, gradients, localizes and questions for owners, most of them under way together."""
    random = np.random.default_rng([network.random.integers(2**31), rank, worker])
    open_calls = []
    for _ in range(calls):
        kind = str(random.choice(["pull", "push", "gradient", "localize", "locate"]))
        if random.random() < 0.2:
            network.ranks[rank].ask_in_vain(int(random.integers(0, hot)), int(random.integers(2, 4)))
        count = int(random.integers(0, 5))
        keys = np.where(
            random.random(count) < 0.5,
            random.integers(0, hot, count),
            random.integers(0, network.num_keys, count),
        )
        if kind == "push":
            open_calls.append(network.push(rank, keys, int(random.integers(1, 1000))))
        elif kind == "gradient":
            rate = float(random.choice([np.nan, 2.0, 3.0]))
            open_calls.append(network.apply(rank, keys, int(random.integers(1, 1000)), rate))
        else:
            open_calls.append(network.start(rank, kind, keys))
        if random.random() < 0.3:
            yield open_calls[-1]
        elif random.random() < 0.1:
            yield from open_calls
    yield from open_calls
    for call in open_calls:
        if call.kind == "locate":
            assert ((call.values >= 0) & (call.values < network.size)).all()
        if call.kind == "pull":
            assert not np.isnan(call.values).any(), "a position without an answer"


def run_random(size, seed, workers=2, calls=12, **options):
    network = Tracked(size, seed, **options)
    for rank in range(size):
        for worker in range(workers):
            network.worker(rank, random_program(network, rank, worker, calls, hot=2))
    network.end()
    return network


@pytest.mark.parametrize("size", SIZES)
def test_exact_sums_whatever_moves_meanwhile(size):
    arrived = passed_on = most_forwards = declined = 0
    for seed in range(SEEDS_PER_SIZE // size):
        network = run_random(size, seed)
        declined += sum(rank.declined for rank in network.ranks)
        arrived += sum(rank.relocations["arrived"] for rank in network.ranks)
        passed_on += sum(rank.relocations["passed_on"] for rank in network.ranks)
        most_forwards = max([most_forwards, *network.forwards.values()])
    # The runs must have been through what they are to test.
    assert size == 1 or arrived > 1000
    # Between two ranks the order of messages lets no request meet a key that is still arriving.
    assert size <= 2 or passed_on > 20
    assert size == 1 or declined > 100
    # Where messages keep their order, what the home sends on finds the key there, or arriving.
    assert most_forwards <= 1 and (size <= 2 or most_forwards == 1)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_exact_sums_when_messages_overtake_each_other(size):
    """Safety does not rest on order: an operation that finds no key goes back to the home."""
    most_forwards = 0
    for seed in range(SEEDS_PER_SIZE // size):
        network = run_random(size, seed, reorder=True)
        most_forwards = max([most_forwards, *network.forwards.values()])
    # Between two ranks an operation that finds no key has come from its home, and goes back to it.
    assert most_forwards >= (1 if size == 2 else 3), "no operation met an absent key"


@pytest.mark.parametrize("reorder", [False, True])
@pytest.mark.parametrize("size, sharing", [(2, 2), (3, 2), (4, 2), (5, 3), (5, 5)])
def test_exact_sums_if_ranks_share_memory(size, sharing, reorder):
    """A key that a rank of the same host owns is served there, every other one by messages."""
    arrived = shared = 0
    for seed in range(SEEDS_PER_SIZE // 20):
        network = run_random(size, seed, reorder=reorder, sharing=sharing)
        arrived += sum(rank.relocations["arrived"] for rank in network.ranks)
        shared += sum(rank.shared for rank in network.ranks)
    assert shared > 100
    assert arrived > 100 if sharing < size else arrived == 0


@pytest.mark.parametrize("size", [2, 3])
def test_exact_sums_of_values_that_are_not_copied_under_the_latch(size):
    """Above 16 KB; above 64 KB a value has a block of its own."""

    def program(network, rank, random, sums, calls):
        for _ in range(8):
            keys = random.integers(0, 3, 2)
            sums[keys[0]] += 1
            calls.append(network.start(rank, "localize", keys))
            calls.append(network.start(rank, "push", keys[:1], np.ones(LARGE[keys[0]])))
            calls.append(network.start(rank, "pull", keys))
            yield calls[-1 - int(random.integers(3))]

    for seed in range(SEEDS_PER_SIZE // 40):
        network = Network(size, 3, LARGE, seed, sharing=seed % 2 + 1)
        sums = np.zeros(3)
        calls = []

        for rank in range(size):
            network.worker(rank, program(network, rank, np.random.default_rng([seed, rank]), sums, calls))
        network.run()
        assert all(call.done for call in calls)
        network.check_at_rest()
        for key in range(3):
            assert (network.value(key) == sums[key]).all()


@pytest.mark.parametrize("reorder", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_worker_that_waits_reads_what_it_wrote(size, reorder):
    """One key per worker, which only it sets and pushes, one call at a time, while it moves."""

    def program(network, rank, random):
        own, value = rank, 0.0
        for _ in range(10):
            network.start(rank, "localize", random.integers(0, network.size, 2))
            number = float(random.integers(1, 100))
            kind = str(random.choice(["set", "push"]))
            call = network.start(rank, kind, [own], np.full(network.lengths[own], number))
            yield call
            value = number if kind == "set" else value + number
            call = network.start(rank, "pull", [own])
            yield call
            assert (call.values == value).all()
        network.sums[own] = value

    for seed in range(SEEDS_PER_SIZE // 4):
        network = Tracked(size, seed, num_keys=max(size, 2), reorder=reorder, sharing=seed % 3 + 1)
        for rank in range(size):
            network.worker(rank, program(network, rank, np.random.default_rng([seed, rank])))
        network.end()


@pytest.mark.parametrize("reorder", [False, True])
def test_all_workers_see_the_sets_of_one_key_in_one_order(reorder):
    """One sets 1, 2, 3, ... and waits for each; nobody's waited pulls ever go back."""

    def writer(network):
        for number in range(1, 12):
            yield network.start(0, "set", [3], np.full(network.lengths[3], float(number)))
        network.sums[3] = 11

    def reader(network, rank, random):
        last = 0.0
        for _ in range(15):
            if random.random() < 0.5:
                network.start(rank, "localize", [3])
            call = network.start(rank, "pull", [3])
            yield call
            assert (call.values == call.values[0]).all(), "a torn value"
            assert call.values[0] >= last
            last = call.values[0]

    for seed in range(SEEDS_PER_SIZE // 2):
        network = Tracked(4, seed, reorder=reorder, sharing=seed % 4 + 1)
        network.worker(0, writer(network))
        for rank in range(4):
            network.worker(rank, reader(network, rank, np.random.default_rng([seed, rank])))
        network.end()


@pytest.mark.parametrize("parked", [1, 63, 64, 65, 200])
def test_any_number_of_operations_may_wait_for_an_arriving_key(parked):
    network = Tracked(3, 0)
    key = next(key for key in range(7) if network.ranks[0].state(key) == "owned")
    other = network.ranks[1]
    network.start(1, "localize", [key])
    assert other.state(key) == "arriving"
    for _number in range(parked):
        network.push(1, [key], 1)
        network.push(2, [key], 1)
        network.start(1, "pull", [key])
    network.end()
    assert network.owner(key) == 1


def test_a_key_is_passed_on_along_a_chain_of_requesters():
    """All ask before anybody has it: each serves what is parked there and hands the key on."""
    size = 8
    network = Tracked(size, 0)
    key = next(key for key in range(7) if network.ranks[0].state(key) == "owned")
    for rank in range(1, size):
        network.start(rank, "localize", [key])
        network.push(rank, [key], rank)
        network.start(rank, "localize", [key, key])
    network.end()
    assert sum(rank.relocations["arrived"] for rank in network.ranks) == size - 1
    assert sum(rank.relocations["passed_on"] for rank in network.ranks) >= 1


@pytest.mark.parametrize("size", [1, 2, 5])
def test_where_names_the_owner_once_everything_is_at_rest(size):
    for seed in range(20):
        network = run_random(size, seed, calls=6)
        for rank in range(size):
            call = network.start(rank, "locate", [*list(range(7)), 3, 3])
            network.run()
            assert call.values.tolist() == [network.owner(key) for key in [*range(7), 3, 3]]


def test_an_empty_call_is_done_at_once():
    network = Tracked(2, 0)
    for kind in ("pull", "localize", "locate"):
        assert network.start(0, kind, []).done
    assert network.push(0, np.empty(0, int), 1).done
    assert all(network.ranks[0].take(target) is None for target in range(2))


def test_localizing_what_is_here_is_done_at_once():
    network = Tracked(1, 0)
    call = network.start(0, "localize", [0, 1, 1])
    network.end()
    assert call.done
    assert not any(network.ranks[0].relocations.values())


def test_a_key_that_was_never_written_travels_without_its_value():
    network = Tracked(2, 0)
    key = next(key for key in range(7) if network.ranks[0].state(key) == "owned")
    network.start(1, "localize", [key])
    network.end()
    kinds = [kind for *_, packet in network.trace for kind, _ in packet]
    assert "TRANSFER_ZERO" in kinds and "TRANSFER" not in kinds


def test_a_message_that_the_protocol_excludes_is_an_error():
    """Here: the same packet twice."""
    network = Tracked(3, 0)
    key = next(key for key in range(7) if network.ranks[0].state(key) == "owned")
    call = network.ranks[1].begin("localize", [key])
    network.ranks[1].step(call)
    packet = network.ranks[1].take(0)
    network.ranks[0].deliver(1, packet)
    with pytest.raises(AssertionError, match=f"protocol error at rank 0, message from rank 1.*key {key}"):
        network.ranks[0].deliver(1, packet)


def test_a_network_of_one_seed_repeats_itself():
    assert run_random(3, 7).trace == run_random(3, 7).trace != run_random(3, 8).trace


def settle(network, rank, kind, keys):
    """Start a call and deliver all that follows from it."""
    call = network.start(rank, kind, keys)
    network.run()
    assert call.done
    return call


def kinds_since(network, event):
    return [kind for *_, kinds in network.trace[event:] for kind, _ in kinds]


class Contended:
    """A key of another home than the ranks that take it from each other."""

    def __init__(self):
        self.network = Network(3, 7, 2, seed=1)
        self.key = next(key for key in range(7) if self.network.owner(key) == 0)

    def waste(self, times):
        """Let rank 1 ask in vain: rank 2 takes the key away before rank 1 needs it."""
        for _ in range(times):
            settle(self.network, 1, "localize", [self.key])
            assert self.network.owner(self.key) == 1
            settle(self.network, 2, "localize", [self.key])
            settle(self.network, 1, "pull", [self.key])

    def localize(self):
        """By rank 1: the owner, and the kinds of the messages."""
        event = len(self.network.trace)
        settle(self.network, 1, "localize", [self.key])
        return self.network.owner(self.key), kinds_since(self.network, event)


@pytest.mark.parametrize("wasted, declined", [(0, 0), (1, 0), (2, 1), (3, 3), (4, 7)])
def test_a_contended_key_stays_where_it_is(wasted, declined):
    case = Contended()
    for times in range(1, wasted + 1):
        case.waste(1)
        for _ in range(2 ** (times - 1) - 1 if times < wasted else 0):
            case.localize()
    for number in range(declined):
        owner, kinds = case.localize()
        assert owner == 0, "the first one brings it home"
        assert kinds == ([] if number else ["CONTENDED", "HAND_OVER", "TRANSFER_ZERO", "ACK"])
    assert case.localize()[0] == 1
    case.network.check_at_rest()


def test_a_relocation_that_is_of_use_begins_anew():
    case = Contended()
    case.waste(1)
    settle(case.network, 1, "localize", [case.key])
    settle(case.network, 1, "pull", [case.key])
    settle(case.network, 2, "localize", [case.key])
    case.waste(1)
    assert case.localize()[0] == 1


def test_localizes_of_a_key_that_nobody_uses_are_never_declined():
    case = Contended()
    for _ in range(5):
        settle(case.network, 2, "localize", [case.key])
        assert case.localize()[0] == 1


def test_bringing_a_key_home_that_is_there_or_on_its_way_is_answered():
    case = Contended()
    case.network.ranks[1].ask_in_vain(case.key, 2)
    assert case.localize() == (0, ["CONTENDED", "ACK"])
    settle(case.network, 2, "localize", [case.key])
    case.network.ranks[1].ask_in_vain(case.key, 2)
    calls = [case.network.start(rank, "localize", [case.key]) for rank in (0, 1)]
    case.network.run()
    assert all(call.done for call in calls) and case.network.owner(case.key) == 0
    case.network.check_at_rest()


class Steps(Network):
    """A network of ranks that take equal steps of an optimizer, which commute, while keys move."""

    def __init__(self, size, seed, optimizer, dtype, **options):
        super().__init__(size, 3, np.array([2, 9, 2]), seed, dtype, optimizer=optimizer.parameters(), **options)
        self.steps = np.zeros(3, dtype=int)
        self.gradients = self.random.normal(size=9).astype(dtype)

    def program(self, rank):
        for _ in range(10):
            keys = self.random.integers(0, 3, size=2)
            if self.random.random() < 0.4:
                yield self.start(rank, "localize", keys)
            else:
                np.add.at(self.steps, keys, 1)
                yield self.start(
                    rank,
                    "gradient",
                    keys,
                    [*self.gradients[: self.length(keys[0])], *self.gradients[: self.length(keys[1])]],
                )

    @staticmethod
    def length(key):
        return 9 if key == 1 else 2


@pytest.mark.parametrize("options", [{}, {"reorder": True}, {"sharing": 2}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "optimizer", [optim.Adagrad(lr=0.1), optim.RowWiseAdagrad(lr=0.1), optim.Adam(lr=0.1)], ids=str
)
def test_states_move_with_their_values(optimizer, dtype, options):
    for seed in range(SEEDS_PER_SIZE // 20):
        network = Steps(3, seed, optimizer, dtype, **options)
        for rank in range(3):
            network.worker(rank, network.program(rank))
        network.run()
        network.check_at_rest()
        alone = Steps(1, seed, optimizer, dtype)
        for key, count in enumerate(network.steps):
            for _ in range(count):
                alone.start(0, "gradient", [key], alone.gradients[: alone.length(key)])
        alone.run()
        for key in range(3):
            np.testing.assert_array_equal(network.value(key), alone.value(key))


def test_a_queued_gradient_that_is_not_copied_under_the_latch():
    """Above 16 KB, with its rate in front of it."""
    for seed in range(5):
        network = Network(3, 1, 30_000, seed, optimizer=optim.SGD(lr=1.0).parameters())
        for rank in range(3):
            network.start(rank, "localize", [0])
            network.start(rank, "gradient", [0], np.full(30_000, 2.0), rate=0.5)
            network.start(rank, "gradient", [0], np.full(30_000, 3.0))
        network.run()
        network.check_at_rest()
        assert (network.value(0) == -12).all()
