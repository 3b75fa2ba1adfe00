"""The arithmetic of matrix factorization: gradients against finite differences, errors against a slow computation."""

import numpy as np
import pytest
from lapse.apps.mf._model import Model


def make_model(rank=5, biases=True, adagrad=False, low=-1.0, high=2.0):
    return Model(
        rank=rank,
        biases=biases,
        adagrad=adagrad,
        mean=0.3,
        low=low,
        high=high,
        regularization=0.07,
        bias_regularization=0.03,
    )


def objective(model, values, row, column, rating, factor_weight=0.07, bias_weight=0.03):
    """What a step goes down on, in double precision and in so many words."""
    p, q = (values[i].astype(np.float64) for i in (row, column))
    rank = model.rank
    score = p[:rank] @ q[:rank]
    penalty = factor_weight * (p[:rank] @ p[:rank] + q[:rank] @ q[:rank])
    if model.biases:
        score += 0.3 + p[rank] + q[rank]
        penalty += bias_weight * (p[rank] ** 2 + q[rank] ** 2)
    return ((rating - score) ** 2 + penalty) / 2


def finite_differences(model, values, row, column, rating, step=1e-5):
    gradient = np.zeros(values.shape)
    for at in np.ndindex(values.shape[0], model.rank + model.biases):
        shifted = [values.astype(np.float64) for _ in range(2)]
        shifted[0][at] += step
        shifted[1][at] -= step
        up, down = (objective(model, each, row, column, rating) for each in shifted)
        gradient[at] = (up - down) / (2 * step)
    return gradient


def random_values(model, count=4, seed=0):
    return np.random.default_rng(seed).normal(0, 0.5, (count, model.length)).astype(np.float32)


def indexes(*numbers):
    return np.array(numbers, np.int32)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 7, 8, 9, 16, 23, 40])
def test_a_step_goes_down_the_gradient(rank, biases):
    model = make_model(rank, biases)
    values = random_values(model)
    expected = -0.01 * finite_differences(model, values, 1, 3, 0.8)
    trained = values.copy()
    model.train(trained, indexes(1), indexes(3), np.array([0.8], np.float32), 0.01)
    np.testing.assert_allclose(trained - values, expected, atol=2e-6)
    assert np.array_equal(trained[[0, 2]], values[[0, 2]])


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("rank", [1, 8, 11])
def test_adagrad_divides_by_the_root_of_the_accumulated_squares(rank, biases):
    model = make_model(rank, biases, adagrad=True)
    width = rank + biases
    values = random_values(model)
    values[:, width:] = np.abs(values[:, width:])
    gradient = finite_differences(model, values, 1, 3, 0.8)[:, :width]
    squares = values[:, width:] + gradient**2
    expected = np.where(gradient == 0, 0, -0.1 * gradient / np.sqrt(squares + 1e-6))
    trained = values.copy()
    model.train(trained, indexes(1), indexes(3), np.array([0.8], np.float32), 0.1)
    np.testing.assert_allclose(trained[:, :width] - values[:, :width], expected, atol=1e-5)
    np.testing.assert_allclose(trained[:, width:], squares, rtol=1e-4)


def test_ratings_are_trained_one_after_the_other():
    model = make_model()
    values = random_values(model)
    rows, columns, ratings = indexes(0, 0, 1), indexes(2, 3, 2), np.array([1, -0.5, 0.25], np.float32)
    together, apart = values.copy(), values.copy()
    model.train(together, rows, columns, ratings, 0.05)
    for i in range(3):
        model.train(apart, rows[i : i + 1], columns[i : i + 1], ratings[i : i + 1], 0.05)
    assert np.array_equal(together, apart)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("rank", [1, 8, 13])
def test_errors_agree_with_a_slow_direct_computation(rank, biases):
    model = make_model(rank, biases, low=-0.5, high=0.5)
    values = random_values(model, 10)
    rng = np.random.default_rng(1)
    rows, columns = rng.integers(0, 5, 200).astype(np.int32), rng.integers(5, 10, 200).astype(np.int32)
    ratings = rng.normal(size=200).astype(np.float32)
    squares = clipped = penalty = absolute = 0.0
    for row, column, rating in zip(rows, columns, ratings.astype(np.float64)):
        p, q = values[row].astype(np.float64), values[column].astype(np.float64)
        score = sum(p[k] * q[k] for k in range(rank)) + (0.3 + p[rank] + q[rank] if biases else 0)
        squares += (rating - score) ** 2
        clipped += (rating - min(max(score, -0.5), 0.5)) ** 2
        absolute += abs(rating - min(max(score, -0.5), 0.5))
        penalty += 2 * objective(model, values, row, column, rating) - (rating - score) ** 2
    expected = (squares, clipped, penalty, absolute)
    np.testing.assert_allclose(model.evaluate(values, rows, columns, ratings), expected, rtol=1e-5)


def test_what_is_not_a_number_stays_so():
    model = make_model()
    values = np.full((2, model.length), np.nan, np.float32)
    sums = model.evaluate(values, indexes(0), indexes(1), np.ones(1, np.float32))
    assert np.isnan(sums).all()


def test_places_outside_of_the_values_are_refused():
    model = make_model()
    values, one = random_values(model), np.ones(1, np.float32)
    for row, column in ((4, 0), (0, 4), (-1, 0), (2, 2)):
        with pytest.raises(IndexError, match="rating 0"):
            model.train(values, indexes(row), indexes(column), one, 0.1)
    with pytest.raises(ValueError, match="elements"):
        model.train(values[:, :3].copy(), indexes(0), indexes(1), one, 0.1)
    with pytest.raises(ValueError, match="2 rows"):
        model.train(values, indexes(0, 1), indexes(2), one, 0.1)
    with pytest.raises(ValueError, match="rank is 0"):
        make_model(0)
