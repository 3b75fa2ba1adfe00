"""Products with the matrix of who has rated what, against NumPy's; effects against the distribution they come from."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from lapse.apps.mf._incidence import Incidence, draw_normals, padded

from lapse.apps._shared import memory
from lapse.apps._shared.job import AppError
from lapse.apps.mf import options as mf_options
from lapse.apps.mf import posterior, train
from lapse.apps.mf.posterior import Moments, Prior
from lapse.apps.mf.side_information import SideInformation
from lapse.apps.mf.sides import Lines
from mpi4py import MPI

ROWS, COLUMNS, LENGTH = 12, 7, 3


class Together:
    """Workers that only add up."""

    def __init__(self, count):
        self.num_workers = count
        self._barrier = threading.Barrier(count, timeout=60)
        self._shares = [None] * count

    def run(self, function):
        with ThreadPoolExecutor(self.num_workers) as pool:
            return list(pool.map(function, [Worker(self, number) for number in range(self.num_workers)]))

    def add(self, number, share):
        self._shares[number] = share
        self._barrier.wait()
        total = sum(self._shares[1:], self._shares[0])
        self._barrier.wait()
        return total


class Worker:
    def __init__(self, together, number):
        self.id, self._together = number, together

    def allreduce(self, share):
        return self._together.add(self.id, np.asarray(share))


def random_cells(rows=ROWS, columns=COLUMNS, seed=0):
    """Dense ones and zeros, with a row and a column that have no rating."""
    cells = np.random.default_rng(seed).random((rows, columns)) < 0.4
    cells[3], cells[:, 2] = False, False
    return cells


def lines_of(cells):
    rows, columns = np.nonzero(cells)
    return Lines.of(rows, columns, np.zeros(len(rows)), len(cells))


def draw(cells, values, prior, seed, workers=1):
    """Draw the effects of the rows on the columns; rows and columns are divided between the workers."""
    row_bounds, column_bounds = (np.linspace(0, count, workers + 1).astype(int) for count in cells.shape)
    together = Together(workers)

    def work(kv):
        rows, columns = (slice(*bounds[kv.id : kv.id + 2].tolist()) for bounds in (row_bounds, column_bounds))
        information = SideInformation(lines_of(cells[rows]), cells.sum(0), columns, LENGTH)
        return information.draw(kv, values[columns], prior, (len(cells) + columns.start, rows.start), seed)

    means, effects = zip(*together.run(work))
    return np.concatenate(means), Moments.of(np.concatenate(effects))


@pytest.mark.parametrize("length", [1, 8, 11])
def test_sums_over_ratings_are_products_with_a_matrix(length):
    cells = random_cells()
    lines = lines_of(cells)
    incidence = Incidence(lines.starts, lines.others, COLUMNS)
    rng = np.random.default_rng(1)
    of_columns, of_rows = (rng.normal(size=(n, padded(length))).astype(np.float32) for n in (COLUMNS, ROWS))
    np.testing.assert_allclose(incidence.sum_others(of_columns), cells @ of_columns, atol=1e-5)
    np.testing.assert_allclose(incidence.add_to_others(of_rows), cells.T @ of_rows, atol=1e-5)


def test_sums_without_ratings_are_zero():
    for lines in (0, 3):
        incidence = Incidence(np.zeros(lines + 1, np.int64), np.empty(0, np.int32), 2)
        assert incidence.sum_others(np.ones((2, 8), np.float32)).tolist() == [[0] * 8] * lines
        assert incidence.add_to_others(np.ones((lines, 8), np.float32)).tolist() == [[0] * 8] * 2


def test_what_does_not_fit_is_refused():
    starts, others = np.array([0, 1, 2]), np.array([0, 4], np.int32)
    with pytest.raises(IndexError, match="rating 1 has the other side 4, but there are 4"):
        Incidence(starts, others, 4)
    with pytest.raises(ValueError, match="starts must go from 0"):
        Incidence(starts[:2], others, 5)
    with pytest.raises(ValueError, match="decreases after line 1"):
        Incidence(np.array([0, 3, 2]), others, 5)
    incidence = Incidence(starts, others, 5)
    for values in (np.zeros((4, 8), np.float32), np.zeros((5, 7), np.float32), np.zeros((5, 0), np.float32)):
        with pytest.raises(ValueError, match="must have 5 rows of a multiple of 8"):
            incidence.sum_others(values)
    with pytest.raises(ValueError, match="must have 2 rows"):
        incidence.add_to_others(np.zeros((5, 8), np.float32))


def test_noise_depends_on_seed_and_key_alone():
    whole = draw_normals(10, 40_000, 5, 1)
    np.testing.assert_array_equal(whole[7:30], draw_normals(17, 23, 5, 1))
    assert not np.isin(whole[:50], draw_normals(10, 50, 5, 2)).any()
    assert abs(whole.mean()) < 0.01 and abs(whole.std() - 1) < 0.01
    assert np.abs(np.corrcoef(whole.T) - np.eye(5)).max() < 0.02


def test_effects_are_drawn_from_their_distribution():
    cells = random_cells()
    rng = np.random.default_rng(2)
    values = rng.normal(size=(COLUMNS, LENGTH)).astype(np.float32)
    mixing = rng.normal(size=(LENGTH, LENGTH))
    prior = Prior(rng.normal(size=LENGTH), mixing @ mixing.T + np.eye(LENGTH), 0.7)
    x = cells.T / np.sqrt(np.maximum(cells.sum(0), 1))[:, None]
    inverse = np.linalg.inv(x.T @ x + prior.strength * np.eye(ROWS))
    mean = inverse @ x.T @ (values - prior.mean)
    draws = [draw(cells, values, prior, seed) for seed in range(4000)]
    means = np.array([found[0] for found in draws])
    np.testing.assert_allclose(means.mean(0), x @ mean, atol=0.05)
    covariance = np.kron(x @ inverse @ x.T, np.linalg.inv(prior.precision))
    np.testing.assert_allclose(np.cov(means.reshape(len(means), -1).T), covariance, atol=0.05)
    products = np.mean([found[1].products for found in draws], 0)
    expected = mean.T @ mean + np.trace(inverse) * np.linalg.inv(prior.precision)
    np.testing.assert_allclose(products, expected, atol=0.1 * np.trace(expected))
    assert draws[0][1].count == ROWS


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_any_number_of_workers_draws_the_same(workers):
    cells = random_cells(60, 30)
    values = np.random.default_rng(3).normal(size=(30, LENGTH)).astype(np.float32)
    prior = Prior.of(None, LENGTH)
    means, effects = draw(cells, values, prior, 5)
    means_of_some, effects_of_some = draw(cells, values, prior, 5, workers)
    np.testing.assert_allclose(means_of_some, means, atol=1e-4)
    np.testing.assert_allclose(effects_of_some.products, effects.products, rtol=1e-4, atol=1e-4)
    assert effects_of_some.count == effects.count == 60


def test_a_column_without_ratings_is_expected_like_all():
    cells = random_cells()
    means, _ = draw(cells, np.ones((COLUMNS, LENGTH), np.float32), Prior.of(None, LENGTH), 1)
    assert not means[2].any() and means[[0, 1, 3, 4, 5, 6]].any(1).all()


def test_effects_count_for_the_prior_and_their_strength_is_drawn():
    rng = np.random.default_rng(4)
    covariance = np.array([[0.5, 0.2], [0.2, 0.3]])
    strength = 4.0
    deviations = rng.multivariate_normal([0.5, -1.0], covariance, 5000).astype(np.float32)
    effects = Moments.of(rng.multivariate_normal([0, 0], covariance / strength, 20_000).astype(np.float32))
    priors = [Prior(np.zeros(2), np.eye(2), 1.0)]
    for _ in range(300):
        priors.append(posterior.draw_prior(Moments.of(deviations), rng, effects, priors[-1].strength))
    some = priors[100:]
    np.testing.assert_allclose(np.mean([prior.mean for prior in some], 0), [0.5, -1.0], atol=0.03)
    np.testing.assert_allclose(np.linalg.inv(np.mean([p.precision for p in some], 0)), covariance, rtol=0.07)
    assert np.mean([prior.strength for prior in some]) == pytest.approx(strength, rel=0.05)


def test_what_fits_into_no_memory_is_refused_before(monkeypatch):
    monkeypatch.setattr(memory, "available_here", lambda: 10**9)
    args = mf_options.parse(["--solver", "gibbs", "--rank", "10", "--workers", "2"])
    train.check_side_information(MPI.COMM_SELF, args, 10**9, 10**6)
    with pytest.raises(AppError, match="side-information columns of 2,000,000 lines in each of 2 workers: 1.3 GB"):
        train.check_side_information(MPI.COMM_SELF, args, 10, 2 * 10**6)
    args = mf_options.parse(["--solver", "gibbs", "--side-information", "none"])
    train.check_side_information(MPI.COMM_SELF, args, 10**9, 10**9)


def test_a_prior_is_the_same_after_it_was_saved():
    prior = Prior(np.array([0.1, 1 / 3]), np.array([[2.0, 0.1], [0.1, np.pi]]), 1 / 7)
    again = Prior.of(prior.state, 2)
    assert again.mean.tolist() == prior.mean.tolist() and again.precision.tolist() == prior.precision.tolist()
    assert again.strength == prior.strength
