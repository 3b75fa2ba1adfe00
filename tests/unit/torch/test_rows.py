"""The distinct rows of a batch, gathered and summed, against NumPy."""

import itertools

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch, which is not installed: pip install 'lapse[torch]'")
from lapse.torch import _rows

RNG = np.random.default_rng(0)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.mark.parametrize("count, limit", [(0, 5), (1, 1), (7, 3), (1000, 10), (5000, 1_000_000), (5000, 2**40)])
def test_distinct_keys_are_in_the_order_of_their_first_occurrence(count, limit):
    distinct = _rows.Distinct()
    for _ in range(3):  # the table is used again
        ids = RNG.integers(0, limit, count)
        keys, places, bad = distinct.of(ids, limit, 5)
        assert bad == -1
        np.testing.assert_array_equal(keys[places], ids + 5)
        _, first = np.unique(ids, return_index=True)
        np.testing.assert_array_equal(keys, ids[np.sort(first)] + 5)


@pytest.mark.parametrize("bad", [-1, 10, 2**62, -(2**63)])
def test_the_first_id_outside_the_range_is_found(bad):
    assert _rows.Distinct().of(np.array([3, 9, bad, -7]), 10, 0)[2] == 2


def places_of(count, rows):
    return _rows.Distinct().of(RNG.integers(0, rows, count), rows, 0)[:2]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_rows_are_gathered_and_their_gradients_summed(count, dtype):
    keys, places = places_of(count, 40)
    rows, out = RNG.normal(size=(len(keys), 9)).astype(dtype), np.empty((count, 9), dtype)
    _rows.gather(rows, places, out)
    np.testing.assert_array_equal(out, rows[places])
    gradients, sums = RNG.normal(size=out.shape).astype(dtype), np.full_like(rows, np.nan)
    _rows.sum_gradients(gradients, places, sums)
    expected = np.zeros_like(rows)
    np.add.at(expected, places, gradients)
    np.testing.assert_allclose(sums, expected, atol=1e-5)


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("skipped", [-1, 2])
@pytest.mark.parametrize("is_mean", [False, True])
def test_bags_are_summed_and_their_gradients_spread(is_mean, skipped, factors, dtype):
    keys, places = places_of(60, 9)
    starts = np.array([0, 0, 5, 6, 40, 60, 60])
    rows = RNG.normal(size=(len(keys), 7)).astype(dtype)
    weights = RNG.normal(size=60).astype(dtype) if factors else None
    matrix = np.zeros((6, len(keys)))  # bags = matrix @ rows
    for bag, (first, end) in enumerate(itertools.pairwise(starts)):
        counted = [i for i in range(first, end) if places[i] != skipped]
        for i in counted:
            matrix[bag, places[i]] += (weights[i] if factors else 1) / (len(counted) if is_mean else 1)
    bags, sums = np.full((6, 7), np.nan, dtype), np.full_like(rows, np.nan)
    _rows.sum_bags(rows, places, starts, weights, skipped, is_mean, bags)
    np.testing.assert_allclose(bags, matrix @ rows, atol=1e-5)
    gradients = RNG.normal(size=bags.shape).astype(dtype)
    _rows.sum_bag_gradients(gradients, places, starts, weights, skipped, is_mean, sums)
    np.testing.assert_allclose(sums, matrix.T @ gradients, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_the_first_row_that_is_not_finite_is_found(bad, length, dtype):
    rows = (RNG.uniform(-0.5, 0.5, (50, length)) * float(np.finfo(dtype).max)).astype(dtype)
    assert _rows.first_not_finite(rows) == -1
    rows[31, length // 2] = rows[40, 0] = bad
    assert _rows.first_not_finite(rows) == 31
