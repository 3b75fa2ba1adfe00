"""Side information of Gibbs sampling: a line's value depends on which lines of the other side it has ratings with.

Who rates an item at all says something about it, whatever the ratings are (Koren, *Factorization Meets the
Neighborhood*, KDD 2008). Here it changes what is expected of a value before its ratings are seen: the value of line j
comes from a normal distribution around

    mean + (sum of effects[i] over the lines i of the other side with a rating in j) / sqrt(ratings of j)

as in Macau (Simm et al., *Macau: Scalable Bayesian Factorization with High-dimensional Side Information Using MCMC*,
MLSP 2017), whose matrix of features X has ``X[j, i] = 1 / sqrt(ratings of j)`` here. The effects have a normal prior,
too, and are drawn from their distribution given all values: the solution of ``(X'X + strength) effects = X'(values -
mean + noise) + sqrt(strength) noise``, by conjugate gradients.

A worker has the effects of those lines whose ratings it has anyway. A product with X adds up its share for *all* lines
of the side, and then the shares of all workers: an epoch sends some ten times as many numbers as the values of the side
have. Effects are drawn anew from the values at the beginning of each epoch, so that nothing of them needs to be kept.
"""

from __future__ import annotations

import numpy as np

import lapse
from lapse.apps.mf._incidence import Incidence, draw_normals, padded
from lapse.apps.mf.posterior import Prior
from lapse.apps.mf.sides import Lines

#: The sides that have side information, by ``--side-information``.
INFORMED: dict[str, tuple[str, ...]] = {"none": (), "rows": ("row",), "columns": ("column",), "both": ("row", "column")}
#: The effects are close enough if the residual has become so small, relative to the right side, in each element.
TOLERANCE = 1e-2
#: It needs about ten steps; this is a bound for odd matrices.
MOST_STEPS = 100
#: So many arrays of values of all lines a worker has at a time.
ARRAYS = 5


def bytes_of(lines: int, length: int) -> int:
    """Bytes that a worker needs for the side information of so many lines, about."""
    return ARRAYS * lines * padded(length) * np.dtype(np.float32).itemsize


class SideInformation:
    """What a worker knows for the side information of one side.

    Parameters
    ----------
    features
        The worker's lines of the other side, with ratings in any line of this side.
    counts
        How many training ratings each line of this side has.
    own
        The range of the worker's lines of this side.
    length
        Of values.
    """

    def __init__(self, features: Lines, counts: np.ndarray, own: slice, length: int) -> None:
        self._incidence = Incidence(features.starts, features.others, len(counts))
        self._own, self._length, self._width = own, length, padded(length)
        self._scale = (1 / np.sqrt(np.maximum(counts, 1))).astype(np.float32)[:, None]
        squares = np.repeat(self._scale**2, padded(1), axis=1)
        self._diagonal = self._incidence.sum_others(squares)[:, :1].astype(np.float64)  # of X'X

    def draw(
        self, kv: lapse.Worker, values: np.ndarray, prior: Prior, keys: tuple[int, int], seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the effects given the values. Collective over all workers.

        Parameters
        ----------
        values
            Of the worker's lines of this side, shape (lines, length).
        prior
            The last one drawn.
        keys
            The first key of the worker's lines of this side, and of those of the other one.
        seed
            Of the noise.

        Returns
        -------
        means : array of float32, shape (lines, length)
            What is expected of each line of the worker, beside the mean of all.
        effects : array of float64, shape (lines of the other side, length)
            Of the worker.
        """
        root = np.linalg.inv(np.linalg.cholesky(prior.precision))  # normal draws by it have the prior's covariance
        noise = draw_normals(keys[0], len(values), self._length, seed) @ root
        deviations = np.zeros((len(self._scale), self._width), np.float32)
        deviations[self._own, : self._length] = values - prior.mean + noise
        right = self._transposed(kv.allreduce(deviations))
        noise = draw_normals(keys[1], self._incidence.num_lines, self._length, seed) @ root
        right[:, : self._length] += np.sqrt(prior.strength) * noise
        effects = self._solve(kv, right, prior.strength)
        means = np.ascontiguousarray(self._times(kv, effects, 0.0)[0][self._own, : self._length])
        return means, effects[:, : self._length]

    def _times(
        self, kv: lapse.Worker, effects: np.ndarray, square: np.ndarray | float
    ) -> tuple[np.ndarray, np.ndarray]:
        """X times the effects of all workers, and the sum of `square` over all workers."""
        shares = np.empty((len(self._scale) + 1, self._width), np.float32)
        shares[:-1] = self._incidence.add_to_others(effects.astype(np.float32))
        shares[-1] = square
        sums = kv.allreduce(shares)
        return self._scale * sums[:-1], sums[-1].astype(np.float64)

    def _transposed(self, values: np.ndarray) -> np.ndarray:
        """The worker's part of X' times values of all lines."""
        return self._incidence.sum_others(self._scale * values).astype(np.float64)

    def _solve(self, kv: lapse.Worker, right: np.ndarray, strength: float) -> np.ndarray:
        """The effects for these right sides, an equation for each element, by preconditioned conjugate gradients."""
        inverse = 1 / (self._diagonal + strength)
        solution, residual = np.zeros_like(right), right
        step = inverse * residual
        remaining = kv.allreduce((residual * step).sum(0))
        enough, direction = TOLERANCE**2 * remaining, step
        for _ in range(MOST_STEPS):
            if (remaining <= enough).all():
                break
            along, square = self._times(kv, direction, (direction**2).sum(0))
            curvature = np.einsum("ij,ij->j", along, along, dtype=np.float64) + strength * square
            length = _divide(remaining, curvature)
            solution = solution + length * direction
            residual = residual - length * (self._transposed(along) + strength * direction)
            step = inverse * residual
            before, remaining = remaining, kv.allreduce((residual * step).sum(0))
            direction = step + _divide(remaining, before) * direction
        return solution


def _divide(dividend: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """The quotient, 0 where the divisor is 0."""
    return np.divide(dividend, divisor, out=np.zeros_like(dividend), where=divisor > 0)
