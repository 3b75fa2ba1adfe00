"""Bayesian matrix factorization by Gibbs sampling (Salakhutdinov & Mnih, ICML 2008).

Ratings are normally distributed around the prediction, and the values of rows (and those of columns) around a mean,
both with unknown precisions. An epoch draws each unknown from its distribution given all others:

- the mean and the precision matrix of the rows' values, by the conjugate normal-Wishart distribution;
- each row's value (`Solver`); then the same for the columns;
- the precision of the noise, by a gamma distribution.

The bias of a row or column is one more element of its value, correlated with the factor as its elements are with each
other. What is predicted is the mean over the draws after the first epochs. With `side_information`, each value has a
mean of its own besides, and the strength of what sets these is unknown, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Of the prior, as in the paper: how many values its mean, 0, is worth, and the scale of the Wishart distribution.
MEAN_WEIGHT, SCALE = 2.0, 1.0
#: The precision of the noise before the first draw, and of its gamma distribution the shape and the rate.
FIRST_PRECISION, NOISE_SHAPE, NOISE_RATE = 2.0, 1.0, 1.0
#: The strength of the prior of effects before the first draw, and of its gamma distribution the shape and the rate.
FIRST_STRENGTH, STRENGTH_SHAPE, STRENGTH_RATE = 10.0, 0.5, 0.5


@dataclass(frozen=True)
class Moments:
    """Sums over values: how many there are, the sum of shape (n,), and that of the outer products, (n, n)."""

    count: int
    total: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Those of the rows of an array."""
        exact = values.astype(np.float64)
        return cls(len(exact), exact.sum(0), exact.T @ exact)


@dataclass(frozen=True)
class Prior:
    """The distribution that values come from.

    Attributes
    ----------
    mean, precision
        Of shape (n,) and (n, n).
    strength
        The precision of effects of side information is this times `precision`.
    """

    mean: np.ndarray
    precision: np.ndarray
    strength: float = FIRST_STRENGTH

    @classmethod
    def of(cls, state: dict | None, length: int) -> Prior:
        """That of a `state`; None: that before the first draw."""
        if state is None:
            return cls(np.zeros(length), np.eye(length))
        return cls(np.array(state["mean"]), np.array(state["precision"]), state["strength"])

    @property
    def state(self) -> dict:
        """What fits into JSON."""
        return {"mean": self.mean.tolist(), "precision": self.precision.tolist(), "strength": self.strength}


def draw_prior(
    moments: Moments, rng: np.random.Generator, effects: Moments | None = None, strength: float = FIRST_STRENGTH
) -> Prior:
    """Draw the distribution that values come from, given the values.

    Parameters
    ----------
    moments
        Of the values; with side information, of what they differ by from what it says.
    effects, strength
        With side information: sums over the effects, and the last strength drawn.
    """
    size, count = len(moments.total), moments.count
    freedom = size + count
    average = moments.total / max(count, 1)
    scatter = moments.products - count * np.outer(average, average)
    weight = MEAN_WEIGHT + count
    inverse = np.eye(size) / SCALE + scatter + MEAN_WEIGHT * count / weight * np.outer(average, average)
    if effects is not None:
        inverse += strength * effects.products
        freedom += effects.count
    precision = draw_wishart(freedom, np.linalg.inv(inverse), rng)
    root = np.linalg.cholesky(weight * precision)
    mean = count * average / weight + np.linalg.solve(root.T, rng.normal(size=size))
    if effects is not None:
        shape = STRENGTH_SHAPE + effects.count * size / 2
        strength = rng.gamma(shape, 1 / (STRENGTH_RATE + (effects.products * precision).sum() / 2))
    return Prior(mean, precision, float(strength))


def draw_wishart(freedom: float, scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw from the Wishart distribution (Bartlett 1933); `freedom` is at least the size of `scale`."""
    size = len(scale)
    lower = np.tril(rng.normal(size=(size, size)), -1)
    lower[np.diag_indices(size)] = np.sqrt(rng.chisquare(freedom - np.arange(size)))
    root = np.linalg.cholesky(scale) @ lower
    return root @ root.T


def draw_noise(squares: float, ratings: int, rng: np.random.Generator) -> float:
    """Draw the precision of the noise, given the sum of squared errors of so many ratings."""
    return float(rng.gamma(NOISE_SHAPE + ratings / 2, 1 / (NOISE_RATE + squares / 2)))
