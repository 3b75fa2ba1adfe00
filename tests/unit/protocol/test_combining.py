"""What the changes of several ranks come to: the rules, levels and bfloat16, in the simulated network."""

import numpy as np
import pytest

from simulated_network import Network

LENGTH = 6
NUM_KEYS = 12
CURVATURE = 0.3


def make_network(size, seed, num_keys=NUM_KEYS, length=LENGTH, **options):
    return Network(size, num_keys, length, seed, "float32", replicated=range(num_keys), **options)


def settle(network):
    """Bring everything to all ranks, and check that replicas are equal."""
    for rank in range(network.size):
        network.worker(rank, network.sync(rank))
    network.run()
    network.check_at_rest()


def set_all(network, values):
    network.worker(0, iter([network.start(0, "set", range(len(values)), values.reshape(-1))]))
    network.run()


def push_keys(network, keys, changes):
    """Each rank pushes its change to these keys."""
    for rank, change in enumerate(changes):
        network.start(rank, "push", keys, change.reshape(-1))


def push_all(network, changes):
    """Each rank pushes its change to every key, and all of it is carried out."""
    push_keys(network, range(len(changes[0])), changes)
    network.run()


def values_of(network, num_keys=NUM_KEYS):
    return np.array([network.ranks[0].value(key) for key in range(num_keys)])


def homes_of(network, num_keys=NUM_KEYS):
    return np.array([network.ranks[0].route(key) for key in range(num_keys)])


def saturation(x, ranks):
    return np.where(x < 1e-9, 1.0, np.expm1(-x) / (ranks * np.minimum(np.expm1(-x / ranks), -1e-300)))


def combine(base, total, weights, contributors, curvature, gathered=None, last=0.0):
    """The adaptive rule, with all directions, for keys of one home, to which alone something was pushed.

    `gathered` are the weights of all rounds so far, if there were others; of the last one `last`, of which the
    contributions that are combined know nothing.
    """
    moment, weight = np.zeros((base.shape[1],) * 2), 0.0
    for value, change, root in zip(base, total, np.sqrt(weights if gathered is None else gathered)):
        after = value + change / contributors
        moment += root / 2 * (np.outer(value, value) + np.outer(after, after))
        weight += root
    scales, directions = np.linalg.eigh(moment / weight)
    scales = curvature * np.maximum(scales, 0)
    factors = saturation(np.outer(weights, scales), contributors) * np.exp(-last * scales)
    return (factors * (total @ directions)) @ directions.T


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("times", [1, 40])
def test_the_adaptive_rule_is_that_of_its_page(size, times):
    random = np.random.default_rng([size, times])
    base = random.standard_normal((NUM_KEYS, LENGTH)).astype("f4")
    for home in range(size):
        network = make_network(size, 0, combine="adaptive", constant=CURVATURE)
        mine = np.flatnonzero(homes_of(network) == home)
        changes = random.standard_normal((size, len(mine), LENGTH)).astype("f4")
        set_all(network, base)
        for _ in range(times):
            push_keys(network, mine, changes / times)
        network.run()
        settle(network)
        weights = np.full(len(mine), float(size * times))
        expected = base.astype("f8")
        expected[mine] += combine(expected[mine], changes.sum(axis=0, dtype="f8"), weights, size, CURVATURE)
        np.testing.assert_allclose(values_of(network), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("size", [2, 4])
def test_of_what_was_computed_while_a_round_was_under_way_only_what_that_has_left_is_added(size):
    """Else it overshoots: it heads for where the round has brought the value already."""
    random = np.random.default_rng(size)
    network = make_network(size, 0, combine="adaptive", constant=CURVATURE)
    base = random.standard_normal((NUM_KEYS, LENGTH)).astype("f4")
    mine = np.flatnonzero(homes_of(network) == 0)
    first, late = 0.1 * random.standard_normal((2, size, len(mine), LENGTH)).astype("f4")
    set_all(network, base)
    push_keys(network, mine, first)
    network.run()
    for rank in range(size):
        network.start(rank, "sync", [])
    push_keys(network, mine, late)  # the contributions are on their way
    network.run()
    settle(network)
    weights = np.full(len(mine), float(size))
    expected = base[mine].astype("f8")
    expected += combine(expected, first.sum(axis=0, dtype="f8"), weights, size, CURVATURE)
    gathered = 1.98 * weights  # 2% of the first ones are forgotten
    expected += combine(expected, late.sum(axis=0, dtype="f8"), weights, size, CURVATURE, gathered, size)
    np.testing.assert_allclose(values_of(network)[mine], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_the_curvature_is_that_of_the_values_of_all_homes(size):
    """A home of few keys, or of rare ones, must not take additions for harmless that meet large values elsewhere."""
    network = make_network(size, 0, num_keys=24, combine="adaptive", constant=1.0)
    homes = homes_of(network, 24)
    large, small = np.flatnonzero(homes != 0), np.flatnonzero(homes == 0)
    base = np.full((24, LENGTH), 1e-3, "f4")
    base[large] = 10.0
    set_all(network, base)
    push_keys(network, large, np.full((size, len(large), LENGTH), 1e-3, "f4"))
    network.run()
    settle(network)
    change = np.full((size, len(small), LENGTH), 1e-3, "f4")
    push_keys(network, small, change)
    network.run()
    settle(network)
    np.testing.assert_allclose(values_of(network, 24)[small], 2e-3, rtol=0.02)  # the mean of all changes, not their sum


def test_ranks_that_are_no_home_take_what_others_have_combined():
    network = make_network(6, 0, num_keys=2, combine="adaptive", constant=CURVATURE)
    assert len(set(homes_of(network, 2).tolist())) < network.size
    change = np.full((network.size, 2, LENGTH), 0.5, "f4")
    for _ in range(3):
        push_keys(network, range(2), change)
        network.run()
        settle(network)
    assert (values_of(network, 2) > 0.5).all()


def test_the_curvature_is_renewed_in_each_round_while_it_grows():
    """An old one would be too small: sums of growing changes would overshoot."""
    network = make_network(2, 0, combine="adaptive", constant=CURVATURE)
    mine = np.flatnonzero(homes_of(network) == 0)
    set_all(network, np.full((NUM_KEYS, LENGTH), 1e-2, "f4"))
    gathered = np.zeros(len(mine))
    for _ in range(12):
        before = values_of(network)[mine]
        push_keys(network, mine, np.array([before, before]))
        network.run()
        settle(network)  # two rounds
        gathered = 0.98 * gathered + 2
        weights = np.full(len(mine), 2.0)
        expected = before + combine(before.astype("f8"), 2.0 * before, weights, 2, CURVATURE, gathered)
        np.testing.assert_allclose(values_of(network)[mine], expected, rtol=1e-3)


def test_the_contribution_of_one_rank_alone_is_taken_as_it_is():
    for options in ({"combine": "adaptive", "constant": 10.0}, {"combine": "adagrad"}):
        network = make_network(3, 0, **options)
        change = np.random.default_rng(1).random((NUM_KEYS, LENGTH)).astype("f4")
        network.start(1, "push", range(NUM_KEYS), change.reshape(-1))
        network.run()
        settle(network)
        np.testing.assert_array_equal(values_of(network), change)


@pytest.mark.parametrize("size", [2, 4])
def test_few_steps_are_added_and_many_averaged(size):
    random = np.random.default_rng(size)
    base = np.ones((NUM_KEYS, LENGTH), "f4") + 0.01 * random.standard_normal((NUM_KEYS, LENGTH)).astype("f4")
    change = np.full((NUM_KEYS, LENGTH), 0.25, "f4")  # along the direction in which all values lie
    moved = {}
    for constant in (1e-9, 1e9):
        network = make_network(size, 0, combine="adaptive", constant=constant)
        set_all(network, base)
        push_all(network, [change] * size)
        settle(network)
        moved[constant] = values_of(network) - base
    np.testing.assert_allclose(moved[1e-9], size * change, rtol=1e-3)
    np.testing.assert_allclose(moved[1e9], change, rtol=2e-2)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 33, 100])
def test_lengths_below_and_above_the_number_of_directions(length):
    """The moment's eigenvectors follow it: with one direction that stands out the sum saturates along it alone."""
    random = np.random.default_rng(length)
    network = make_network(2, 0, length=length, combine="adaptive", constant=100.0)
    along = random.standard_normal(length)
    along /= np.linalg.norm(along)
    across = random.standard_normal(length)
    across -= across @ along * along
    across /= max(np.linalg.norm(across), 1e-9)
    set_all(network, np.outer(random.uniform(1, 2, NUM_KEYS), along).astype("f4"))
    before = values_of(network)
    change = (along + across).astype("f4") * np.float32(1e-3)
    push_all(network, [np.tile(change, (NUM_KEYS, 1))] * 2)
    settle(network)
    moved = values_of(network) - before
    np.testing.assert_allclose(moved @ along, 1e-3, rtol=0.02)
    if length > 1:
        np.testing.assert_allclose(moved @ across, 2e-3, rtol=0.02)


def test_adagrad_steps_made_while_a_round_is_under_way_are_scaled_by_the_squares_that_it_brings():
    random = np.random.default_rng(0)
    half = LENGTH // 2
    base, mine, other, late = (random.random((NUM_KEYS, LENGTH)).astype("f4") for _ in range(4))
    network = make_network(2, 0, combine="adagrad")
    set_all(network, base)
    push_all(network, [mine, other])
    network.start(0, "sync", [])
    network.start(0, "push", range(NUM_KEYS), late.reshape(-1))  # the contributions are on their way
    network.run()
    settle(network)

    def roots(squares):
        return np.sqrt(squares, dtype="f8")

    g, a, b, c = (each[:, half:].astype("f8") for each in (base, mine, other, late))
    round_one = (roots(g + a + b) - roots(g)) / (roots(g + a) + roots(g + b) - 2 * roots(g))
    later = (roots(g + a + b + c) - roots(g + a + b)) / (roots(g + a + c) - roots(g + a))
    expected = base[:, :half] + round_one * (mine + other)[:, :half] + later * late[:, :half]
    np.testing.assert_allclose(values_of(network)[:, :half], expected, rtol=1e-4)
    np.testing.assert_allclose(values_of(network)[:, half:], (base + mine + other + late)[:, half:], rtol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_adagrad_scales_each_parameter_by_the_growth_of_all_squares(size):
    random = np.random.default_rng(size)
    half = LENGTH // 2
    base = random.random((NUM_KEYS, LENGTH)).astype("f4")
    base[:3, half:] = 0  # never updated before
    changes = [random.random((NUM_KEYS, LENGTH)).astype("f4") for _ in range(size)]
    for change in changes:
        change[:, :half] -= 0.5
    network = make_network(size, 0, combine="adagrad")
    set_all(network, base)
    push_all(network, changes)
    settle(network)
    squares = base[:, half:].astype("f8")
    grown = [np.sqrt(squares + change[:, half:]) - np.sqrt(squares) for change in changes]
    total = np.sum(changes, axis=0, dtype="f8")
    factor = (np.sqrt(squares + total[:, half:]) - np.sqrt(squares)) / np.sum(grown, axis=0)
    np.testing.assert_allclose(values_of(network)[:, half:], base[:, half:] + total[:, half:], rtol=1e-5)
    np.testing.assert_allclose(
        values_of(network)[:, :half], base[:, :half] + factor * total[:, :half], rtol=1e-3, atol=1e-4
    )
    assert (factor < 1).all()


@pytest.mark.parametrize("combine", ["sum", "adaptive", "adagrad"])
@pytest.mark.parametrize("wire", ["exact", "bfloat16"])
@pytest.mark.parametrize("size, sharing", [(2, 1), (3, 1), (5, 1), (8, 1), (4, 2), (5, 2), (8, 3)])
def test_replicas_are_equal_to_the_last_bit_with_every_rule(size, sharing, wire, combine):
    """Beside pushes, sets and synchronizations of all ranks, and with levels."""

    def program(network, rank, random):
        for number in range(25):
            while network.ranks[rank].runs_ahead:
                yield None
            keys = random.choice(NUM_KEYS, 3, replace=False)
            kind = "set" if number == 12 and rank == 1 else "push"
            yield network.start(rank, kind, keys, random.random(3 * LENGTH) * 10.0 ** random.integers(-4, 2))
            if random.random() < 0.1:
                yield from network.sync(rank)

    for seed in range(4):
        levels = np.arange(NUM_KEYS) % 4
        network = make_network(
            size,
            seed,
            combine=combine,
            constant=0.1,
            wire=wire,
            levels=levels,
            max_pending=4,
            interval=0.02 * (seed % 2),
            sharing=sharing,
        )
        for rank in range(size):
            network.worker(rank, program(network, rank, np.random.default_rng([seed, rank])))
        network.run()
        settle(network)
        assert np.isfinite(values_of(network)).all()


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_with_bfloat16_errors_do_not_add_up(length):
    """Each push is far below the precision of the value; what rounding keeps back comes with the next ones."""
    network = make_network(3, 0, num_keys=4, length=length, wire="bfloat16", max_pending=4)
    set_all(network, np.full((4, length), 100.0, "f4"))
    pushes = 300
    for _ in range(pushes):
        for rank in range(3):
            network.start(rank, "push", range(4), np.full(4 * length, 1.0 + 2**-9))
        network.run()
    settle(network)
    values = values_of(network, 4)
    assert abs(values - (100 + 3 * pushes * (1 + 2**-9))).max() < 0.1
    assert network.ranks[0].replica_counters[0] > pushes / 2


def test_bfloat16_takes_half_of_the_bytes_and_keeps_what_is_not_a_number():
    sizes = {}
    for wire in ("exact", "bfloat16"):
        network = make_network(2, 0, length=64, wire=wire)
        change = np.ones((NUM_KEYS, 64), "f4")
        change[0, :4] = np.inf, -np.inf, np.nan, 3.4e38
        sent = []
        push = network.ranks[0].begin("push", range(NUM_KEYS), change.reshape(-1))
        while not network.ranks[0].step(push):
            pass
        network.ranks[0].step(network.ranks[0].begin("sync", []))
        while (packet := network.ranks[0].take(1)) is not None:
            sent.append(packet)
        assert push.done
        for packet in sent:
            network.ranks[1].deliver(0, packet)
        network.collect(1)
        network.run()
        sizes[wire] = sum(map(len, sent))
        first = network.ranks[1].value(0)
        assert first[0] == np.inf and first[1] == -np.inf and np.isnan(first[2]) and 3.3e38 < first[3] < np.inf
    assert sizes["bfloat16"] < 0.6 * sizes["exact"]


def test_a_key_takes_part_in_every_second_fourth_eighth_round():
    levels = [0, 1, 2, 3]
    network = make_network(2, 0, num_keys=4, levels=levels, max_pending=4)
    seen = []
    for _ in range(16):
        for rank in range(2):
            network.start(rank, "push", range(4), np.ones(4 * LENGTH))
        network.run()
        seen.append([network.ranks[0].base(key)[0] for key in range(4)])
    changes = (np.diff(np.array(seen), axis=0) > 0).sum(axis=0)
    assert changes[0] >= 14
    for level in (1, 2, 3):
        assert abs(changes[level] - 16 / 2**level) <= 1
    settle(network)
    assert (values_of(network, 4) == 32).all(), "a synchronization leaves nothing behind"


@pytest.mark.parametrize("level", [1, 3, 7])
def test_the_keys_of_a_level_take_turns(level):
    """Each round has as much to send as the next."""
    per_round, rounds = 2, 2**level
    number = per_round * rounds
    network = make_network(2, 0, num_keys=number, levels=[level] * number, max_pending=number)
    sent = []
    for _ in range(rounds):
        before = network.ranks[0].replica_counters[1]
        for rank in range(2):
            network.start(rank, "push", range(number), np.ones(number * LENGTH))
        network.run()
        sent.append(network.ranks[0].replica_counters[1] - before)
    turns = min(rounds, 64)
    assert sent.count(number // turns) == turns and sum(sent) == number  # a contribution or a sum of each key
    settle(network)
    assert (values_of(network, number) == 2 * rounds).all()


def test_all_ranks_send_a_key_of_a_high_level_in_the_same_round():
    """Also when one rank alone asks for a synchronization: contributions to a key are not sent apart."""
    network = make_network(3, 0, num_keys=4, levels=[5] * 4)
    for rank in range(3):
        network.start(rank, "push", range(4), np.ones(4 * LENGTH))
    network.worker(1, network.sync(1))
    network.run()
    for rank in network.ranks:
        assert (rank.base(0) == 3).all()
    sent = sum(rank.replica_counters[1] for rank in network.ranks)
    assert sent == 4 * (2 + 2)  # to the home and from it, once
