"""Normal equations against NumPy's, draws against the distribution that they come from, sums over draws."""

import numpy as np
import pytest
from lapse.apps.mf._solver import Equations

from lapse.apps.mf import posterior
from lapse.apps.mf.posterior import Moments
from lapse.apps.mf.sides import Lines


def random_case(length, ratings, seed=0, others=50):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.7, (others, length)).astype(np.float32)
    return values, rng.integers(0, others, ratings).astype(np.int32), rng.uniform(1, 5, ratings).astype(np.float32)


def features(values, places, biases):
    x = values[places].astype(np.float64)
    if biases:
        x[:, -1] = 1
    return x


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("rank, ratings", [(1, 3), (5, 1), (7, 40), (8, 4), (16, 33), (33, 200), (64, 3000)])
def test_a_row_minimizes_the_squared_errors(rank, ratings, biases):
    values, places, numbers = random_case(rank + biases, ratings)
    equations = Equations(rank=rank, biases=biases, mean=3.0, regularization=0.2, bias_regularization=0.05)
    x = features(values, places, biases)
    target = numbers.astype(np.float64) - 3.0 - (values[places][:, -1] if biases else 0)
    weights = np.full(rank + biases, 0.2 * ratings)
    if biases:
        weights[-1] = 0.05 * ratings
    expected = np.linalg.solve(x.T @ x + np.diag(weights), x.T @ target)
    np.testing.assert_allclose(equations.solve(values, places, numbers), expected, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("rank, ratings", [(4, 2), (9, 70), (32, 0)])
def test_a_row_of_counts_minimizes_the_weighted_errors_of_all_cells(rank, ratings):
    values, places, counts = random_case(rank, ratings)
    places = np.unique(places)
    counts = counts[: len(places)].copy()
    counts[: len(places) // 3] = 0  # a count of 0 is a cell without any
    everything = values.astype(np.float64)
    equations = Equations(
        rank=rank, biases=False, implicit=True, scale=3.0, prior=everything.T @ everything + 0.5 * np.eye(rank)
    )
    confidence, wanted = np.ones(len(values)), np.zeros(len(values))
    confidence[places] += 3.0 * counts
    wanted[places] = counts > 0
    matrix = (everything * confidence[:, None]).T @ everything + 0.5 * np.eye(rank)
    expected = np.linalg.solve(matrix, everything.T @ (confidence * wanted))
    np.testing.assert_allclose(equations.solve(values, places, counts), expected, rtol=2e-3, atol=2e-5)


def test_many_ratings_are_added_up_precisely():
    values, places, numbers = random_case(6, 300_000)
    equations = Equations(rank=5, biases=True, mean=3.0, regularization=1e-9, bias_regularization=1e-9)
    x = features(values, places, True)
    expected = np.linalg.lstsq(x, numbers - 3.0 - values[places][:, -1].astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(equations.solve(values, places, numbers), expected, atol=2e-5)


def test_draws_have_the_mean_and_covariance_of_the_posterior():
    values, places, numbers = random_case(4, 5)
    precision = np.diag([1.0, 2.0, 3.0, 4.0])
    equations = Equations(rank=3, biases=True, mean=3.0, scale=0.7, prior=precision, shift=precision @ np.full(4, 0.3))
    draws = np.array([equations.solve(values, places, numbers, seed=seed) for seed in range(20_000)], np.float64)
    x = features(values, places, True)
    matrix = precision + 0.7 * x.T @ x
    target = numbers.astype(np.float64) - 3.0 - values[places][:, -1]
    mean = np.linalg.solve(matrix, precision @ np.full(4, 0.3) + 0.7 * x.T @ target)
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(draws.T), np.linalg.inv(matrix), atol=0.02)
    assert np.array_equal(draws[0], equations.solve(values, places, numbers, seed=0))


def test_a_row_has_a_mean_of_its_own():
    values, places, numbers = random_case(4, 5)
    precision, mean = np.diag([1.0, 2.0, 3.0, 4.0]) + 0.2, np.array([0.5, -1.0, 2.0, 0.3], np.float32)
    everywhere = Equations(rank=3, biases=True, prior=precision, shift=precision @ (mean + 0.1))
    own = Equations(rank=3, biases=True, prior=precision, shift=precision @ np.full(4, 0.1))
    expected = everywhere.solve(values, places, numbers)
    np.testing.assert_allclose(own.solve(values, places, numbers, row_mean=mean), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="row_mean has 3 elements instead of 4"):
        own.solve(values, places, numbers, row_mean=mean[:3])


def test_a_row_without_ratings_is_zero_unless_it_is_drawn():
    equations = Equations(rank=3, biases=True)
    nothing = np.empty((0, 4), np.float32), np.empty(0, np.int32), np.empty(0, np.float32)
    assert not equations.solve(*nothing).any()
    prior = Equations(rank=3, biases=True, prior=np.eye(4), shift=np.full(4, 5.0))
    draws = np.array([prior.solve(*nothing, seed=seed) for seed in range(5000)])
    np.testing.assert_allclose(draws.mean(0), np.full(4, 5.0), atol=0.1)


def test_what_cannot_be_solved_is_refused():
    values, places, numbers = random_case(4, 2)
    with pytest.raises(ValueError, match="larger regularization"):
        Equations(rank=4, biases=False).solve(values, places, numbers)
    values[places[0]] = np.nan
    with pytest.raises(ValueError, match="larger regularization"):
        Equations(rank=4, biases=False, regularization=1.0).solve(values, places, numbers)
    with pytest.raises(IndexError, match="rating 0"):
        Equations(rank=4, biases=False).solve(values, np.array([99], np.int32), numbers[:1])
    with pytest.raises(ValueError, match="shapes"):
        Equations(rank=4, biases=True, prior=np.eye(4))


def test_lines_are_sorted_and_cut():
    lines = Lines.of(np.array([2, 0, 2, 2]), np.array([5, 1, 3, 3]), np.array([1, 2, 4, 3]), 4)
    assert lines.starts.tolist() == [0, 1, 1, 4, 4] and lines.others.tolist() == [1, 3, 3, 5]
    assert lines.values.tolist() == [2, 3, 4, 1] and len(lines) == 4
    assert lines.cut(1).tolist() == [0, 1, 3, 4] and lines.cut(100).tolist() == [0, 4]
    assert Lines.of(np.empty(0, np.int64), np.empty(0), np.empty(0), 0).cut(5).tolist() == [0]


def test_the_prior_that_is_drawn_is_that_of_the_values():
    rng = np.random.default_rng(1)
    covariance = np.array([[0.5, 0.2], [0.2, 0.3]])
    values = rng.multivariate_normal([1.0, -2.0], covariance, 20_000).astype(np.float32)
    moments = Moments.of(values)
    priors = [posterior.draw_prior(moments, rng) for _ in range(200)]
    means, precisions = [prior.mean for prior in priors], [prior.precision for prior in priors]
    np.testing.assert_allclose(np.mean(means, 0), [1.0, -2.0], atol=0.01)
    np.testing.assert_allclose(np.linalg.inv(np.mean(precisions, 0)), covariance, rtol=0.05)
    assert 0.5 < np.std(means, 0)[0] / np.sqrt(covariance[0, 0] / 20_000) < 1.5


def test_wishart_draws_have_the_mean_of_their_distribution():
    rng = np.random.default_rng(2)
    scale = np.array([[2.0, 0.5], [0.5, 1.0]])
    draws = [posterior.draw_wishart(7, scale, rng) for _ in range(20_000)]
    np.testing.assert_allclose(np.mean(draws, 0), 7 * scale, rtol=0.03)


def test_the_noise_is_that_of_the_errors():
    draws = [posterior.draw_noise(250.0, 1000, np.random.default_rng(seed)) for seed in range(300)]
    assert np.mean(draws) == pytest.approx(4.0, rel=0.02)
