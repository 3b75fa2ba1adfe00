"""Distributions, alias tables and generators, without a server. Statistics: see tests/frequencies.py."""

from fractions import Fraction

import numpy as np
import pytest
from lapse.testing._sampling import pull_here

import lapse
from frequencies import assert_conform
from lapse._store import Store
from lapse.protocol._replica_memory import replicate
from lapse.sampling._draws import Generator, Table
from lapse.sampling.schemes import make_sampler

FULL = 2**32


def draw(distribution, count, seed=1, worker=0, purpose=1):
    table = Table(distribution.low, distribution.high, distribution.weights)
    return table.draw(Generator(seed, worker, purpose), count)


def weights_of_words(count):
    """Frequencies as Zipf's law has them, to the power that word2vec takes."""
    return (1.0 / np.arange(1, count + 1)) ** 0.75


TABLES = {
    "one": [3.0],
    "equal": [0.1] * 7,
    "two": [1.0, 1e-9],
    "zeros": [0, 0, 5, 0, 1, 0, 0],
    "one of many": [0.0] * 50 + [1e-300] + [0.0] * 50,
    "words": weights_of_words(1000),
    "huge": [1e308, 1e308, 1e307],
    "tiny": [5e-324, 1e-323, 0],
    "random": np.random.default_rng(5).exponential(size=10007),
    "steep": 0.5 ** np.arange(200),
}


@pytest.mark.parametrize("weights", TABLES.values(), ids=TABLES)
def test_an_alias_table_has_the_probabilities_to_2_to_the_minus_32(weights):
    distribution = lapse.Weighted(weights)
    parts = Table(distribution.low, distribution.high, distribution.weights).parts()
    total = sum(Fraction(float(w)) for w in weights)
    size = len(weights) * FULL
    assert sum(parts.tolist()) == size
    for part, weight in zip(parts.tolist(), weights):
        exact = Fraction(float(weight)) / total
        assert abs(Fraction(part, size) - exact) <= Fraction(1, FULL)
        assert part == 0 or weight > 0


def test_each_key_is_off_by_a_few_parts_only():
    weights = weights_of_words(50000)
    parts = Table(0, len(weights), weights).parts()
    exact = weights / weights.sum() * (len(weights) * FULL)
    relative = np.abs(parts - exact)[1:] / exact[1:]
    assert relative.max() < 1e-9


@pytest.mark.parametrize("weights", [TABLES["words"], TABLES["zeros"], [1.0] * 100, [2.0]])
@pytest.mark.parametrize("offset", [0, 12])
def test_weighted_draws_conform(weights, offset):
    keys = draw(lapse.Weighted(weights, offset), 400_000)
    assert keys.dtype == np.int64 and keys.min() >= offset
    assert_conform(np.bincount(keys - offset, minlength=len(weights)), weights)


@pytest.mark.parametrize("low, high", [(0, 1), (5, 12), (1000, 2000)])
def test_uniform_draws_conform(low, high):
    keys = draw(lapse.Uniform(low, high), 200_000)
    assert keys.min() >= low and keys.max() < high
    assert_conform(np.bincount(keys - low, minlength=high - low), np.ones(high - low))


def test_successive_draws_are_independent():
    weights = np.array([5.0, 1, 2, 0.5])
    keys = draw(lapse.Weighted(weights), 400_001)
    for distance in (1, 2, 32):
        pairs = keys[:-distance] * 4 + keys[distance:]
        pairs = pairs[:: distance + 1]  # those that share no draw
        assert_conform(np.bincount(pairs, minlength=16), np.outer(weights, weights).ravel())


def test_keys_of_weight_zero_are_never_drawn():
    weights = np.random.default_rng(3).random(3001) * (np.arange(3001) % 3 == 1)
    keys = draw(lapse.Weighted(weights), 2_000_000)
    assert set((keys % 3).tolist()) == {1}


def test_a_huge_table():
    count = 3_000_000
    weights = weights_of_words(count)
    keys = draw(lapse.Weighted(weights, 10), 1_000_000) - 10
    assert keys.min() >= 0 and keys.max() < count
    edges = np.array([0, 1, 2, 4, 10, 100, 1000, 10**4, 10**5, 10**6])
    slots = np.searchsorted(edges, keys, side="right") - 1
    assert_conform(np.bincount(slots, minlength=len(edges)), np.add.reduceat(weights, edges))


def test_a_range_of_nearly_all_possible_keys():
    keys = draw(lapse.Uniform(0, 2**32 - 2), 200_000)
    assert_conform(np.bincount(keys >> 24, minlength=256)[:255], np.ones(255))
    assert keys.min() >= 0 and 2**31 < keys.max() < 2**32 - 2


def test_draws_depend_on_seed_worker_and_purpose_alone():
    distribution = lapse.Uniform(0, 10**6)
    first = draw(distribution, 100, 7, 3, 1)
    np.testing.assert_array_equal(draw(distribution, 100, 7, 3, 1), first)
    for other in [(8, 3, 1), (7, 4, 1), (7, 3, 2), (3, 7, 1)]:
        assert (draw(distribution, 100, *other) != first).sum() > 90


def test_draws_do_not_depend_on_how_many_are_made_at_once():
    distribution = lapse.Weighted(weights_of_words(100))
    table, generator = Table(0, 100, distribution.weights), Generator(1, 2, 3)
    parts = [table.draw(generator, count) for count in (1, 0, 31, 32, 33, 3)]
    np.testing.assert_array_equal(np.concatenate(parts), draw(distribution, 100, 1, 2, 3))


# What a scheme finds, in a store that nobody changes --------------------------------------------------


def find(weights, count, group_size=250, replicated=(), scheme="local", **options):
    store = Store(len(weights), 2, "float32", 0, 3)
    replicate(store, replicated)
    distribution = lapse.Weighted(weights)
    if scheme in ("pool", "local"):
        options["group_size"] = group_size
    sampling = lapse.Sampling(scheme, distribution, **options)
    sampler = make_sampler(sampling, Table(0, len(weights), distribution.weights), 1, 0)
    here = store.is_here(np.arange(len(weights)))
    return *pull_here(sampler, store, count), here


@pytest.mark.parametrize("scheme", ["naive", "preloc", "pool"])
def test_other_draws_conform_wherever_the_keys_are(scheme):
    weights = weights_of_words(60)
    keys, found, here = find(weights, 100_000, scheme=scheme)
    np.testing.assert_array_equal(here[keys], found)
    assert_conform(np.bincount(keys, minlength=60), weights)


def test_local_draws_conform_among_what_is_here():
    weights = weights_of_words(60)
    keys, found, here = find(weights, 100_000)
    assert found.all() and here[keys].all()
    assert_conform(np.bincount(keys, minlength=60), weights * here)


def test_a_search_without_result_ends_with_a_key_that_is_elsewhere():
    weights = np.ones(60)
    _, _, here = find(weights, 0)
    keys, found, _ = find(weights * ~here, 50, group_size=1)
    assert not found.any() and not here[keys].any()
    weights[here] = 1e-3
    keys, found, _ = find(weights, 2000, group_size=1)
    np.testing.assert_array_equal(here[keys], found)
    assert 0 < found.sum() < 500


def test_local_draws_give_replicated_keys_exactly_their_probability():
    """Drawing among all that is here would give the first two more than half as much again."""
    weights = weights_of_words(60)
    replicated = [0, 1, 2, 3, 40]
    keys, found, here = find(weights, 200_000, replicated=replicated)
    assert found.all() and here[keys].all() and not here.all()
    relocated = np.setdiff1d(np.arange(60), replicated)
    expected = weights / weights.sum()
    expected[relocated] *= expected[relocated].sum() / expected[relocated][here[relocated]].sum()
    assert_conform(np.bincount(keys, minlength=60), expected * here)


def test_a_search_without_result_never_ends_with_a_replicated_key():
    weights = np.ones(60)
    _, _, here = find(weights, 0)
    weights[here] = 0
    replicated = list(np.flatnonzero(~here)[:5])
    keys, found, _ = find(weights, 3000, group_size=1, replicated=replicated)
    assert np.isin(keys[found], replicated).all() and not np.isin(keys[~found], replicated).any()
    assert_conform(np.bincount(keys, minlength=60), weights)


# Arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((0, 0), ValueError, ["Uniform(0, 0)", "no keys", "1"]),
        ((5, 3), ValueError, ["Uniform(5, 3)", "6"]),
        ((-1, 3), ValueError, ["low", "-1", "0"]),
        ((0, 2**32), ValueError, ["high", str(2**32)]),
        ((0.0, 3), TypeError, ["low", "0.0", "int"]),
        ((0, True), TypeError, ["high", "True", "int"]),
        ((0, "3"), TypeError, ["high", "'3'", "int"]),
    ],
)
def test_bad_bounds(arguments, error, words):
    with pytest.raises(error) as caught:
        lapse.Uniform(*arguments)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (([],), ValueError, ["shape (0,)"]),
        (([[1.0, 2.0]],), ValueError, ["shape (1, 2)"]),
        ((3.0,), ValueError, ["shape ()"]),
        (([1, -2.0],), ValueError, ["-2.0 at 1", "negative"]),
        (([1, np.nan],), ValueError, ["nan at 1", "finite"]),
        (([np.inf, 1],), ValueError, ["inf at 0", "finite"]),
        (([0, 0.0, 0],), ValueError, ["3 weights", "positive"]),
        ((["a"],), TypeError, ["real numbers"]),
        (([1j],), TypeError, ["real numbers"]),
        (([True, False],), TypeError, ["real numbers", "bool"]),
        ((None,), TypeError, ["real numbers"]),
        (([1.0], -1), ValueError, ["offset", "-1"]),
        (([1.0], 1.5), TypeError, ["offset", "1.5"]),
    ],
)
def test_bad_weights(arguments, error, words):
    with pytest.raises(error) as caught:
        lapse.Weighted(*arguments)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(scheme="pol"), ValueError, ["'pol'", "pool"]),
        (dict(scheme=3), TypeError, ["scheme", "3"]),
        (dict(distribution=[1, 2]), TypeError, ["distribution", "[1, 2]", "lapse.Uniform"]),
        (dict(reuse=0), ValueError, ["reuse", "0", "1"]),
        (dict(reuse=1.0), TypeError, ["reuse", "1.0"]),
        (dict(group_size=0), ValueError, ["group_size", "0", "1"]),
        (dict(group_size=2**30), ValueError, ["group_size", str(2**30)]),
        (dict(group_size=None), TypeError, ["group_size", "None"]),
        (dict(postpone=1), TypeError, ["postpone", "1", "True or False"]),
        (dict(scheme="naive", reuse=4), ValueError, ["reuse=4", "no effect", "naive"]),
        (dict(scheme="preloc", group_size=20), ValueError, ["group_size=20", "no effect", "preloc"]),
        (dict(scheme="local", postpone=True), ValueError, ["postpone=True", "no effect", "local"]),
    ],
)
def test_bad_sampling(arguments, error, words):
    with pytest.raises(error) as caught:
        lapse.Sampling(**{"scheme": "pool", "distribution": lapse.Uniform(0, 3), **arguments})
    assert all(word in str(caught.value) for word in words)


def test_descriptions_are_values():
    weights = np.array([1.0, 2.0])
    weighted = lapse.Weighted(weights, 3)
    weights[0] = 7
    assert weighted.weights[0] == 1 and not weighted.weights.flags.writeable
    assert weighted == lapse.Weighted([1, 2], 3) and hash(weighted) == hash(lapse.Weighted([1, 2], 3))
    assert weighted != lapse.Weighted([1, 2], 4) and weighted != lapse.Weighted([1, 3], 3)
    assert (weighted.low, weighted.high) == (3, 5)
    assert lapse.Uniform(1, 3) == lapse.Uniform(1, 3) != weighted
    first, same = (lapse.Sampling("pool", lapse.Weighted([1, 2], 3), reuse=4) for _ in range(2))
    assert first == same and hash(first) == hash(same) and repr(first) == repr(same)
    assert first != lapse.Sampling("pool", lapse.Weighted([1, 2], 3), reuse=5)
    assert repr(first) != repr(lapse.Sampling("pool", lapse.Weighted([1, 2.5], 3), reuse=4))
    assert first.group_size == 250 and first.postpone is False
    with pytest.raises(AttributeError):
        first.reuse = 3
    with pytest.raises(AttributeError):
        weighted.offset = 3
