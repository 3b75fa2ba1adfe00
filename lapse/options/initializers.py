"""Floor 1. Initial values: they depend on the seed and the key only, not on the number of ranks.

The generators are counter-based: element i of key k is a function of (seed, k, i), as in Salmon et al., *Parallel
Random Numbers: As Easy as 1, 2, 3* (SC 2011); the function is the finalizer of SplitMix64 (Steele,
Lea, Flood, *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from lapse.base.checks import brief

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 numbers in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


def _uniform(seed: int, keys: np.ndarray, length: int, stream: int) -> np.ndarray:
    """Numbers in [0, 1) of shape (len(keys), length), by (seed, key, element, stream)."""
    root = _mix(np.array([seed * 4 + stream], dtype=np.int64).view(np.uint64) * _GOLDEN)
    rows = _mix(root ^ (keys.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    elements = np.arange(1, length + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(rows[:, None] + elements) >> np.uint64(11)) * 2.0**-53


class Initializer(Protocol):
    """What `Server.initialize` takes the initial values from."""

    def values(self, keys: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Values of shape (len(keys), length), float64."""


@dataclasses.dataclass(frozen=True)
class Normal:
    """Normally distributed values.

    Parameters
    ----------
    mean, std : float
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ValueError(f"std is {self.std}, but must not be negative")

    def values(self, keys: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Values of shape (len(keys), length), float64 (Box and Muller 1958)."""
        radius = np.sqrt(-2.0 * np.log1p(-_uniform(seed, keys, length, 0)))
        return self.mean + self.std * radius * np.cos(2 * np.pi * _uniform(seed, keys, length, 1))


@dataclasses.dataclass(frozen=True)
class UniformValues:
    """Values uniform in [low, high).

    Parameters
    ----------
    low, high : float
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low is {self.low}, but must not be above high, which is {self.high}")

    def values(self, keys: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Values of shape (len(keys), length), float64."""
        return self.low + (self.high - self.low) * _uniform(seed, keys, length, 0)


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same number everywhere.

    Parameters
    ----------
    x : float
    """

    x: float = 0.0

    def values(self, keys: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Values of shape (len(keys), length), float64."""
        return np.full((len(keys), length), self.x)


@dataclasses.dataclass(frozen=True)
class FromFunction:
    """What `fn(keys, rng)` returns, called for one key at a time with a generator of that key's own."""

    fn: Callable[[np.ndarray, np.random.Generator], Any]

    def values(self, keys: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Values of shape (len(keys), length), float64.

        Raises
        ------
        ValueError
            When the function returns another number of elements.
        """
        rows = np.empty((len(keys), length))
        for row, key in zip(rows, keys):
            value = np.asarray(self.fn(np.array([key]), np.random.default_rng([seed, key])))
            if value.dtype.kind not in "biuf":
                raise ValueError(f"init returned {value.dtype} for key {key}, but values are real numbers")
            if value.size != length:
                raise ValueError(f"init returned {value.size} elements for key {key}, whose value has {length}")
            row[:] = value.reshape(-1)
        return rows


def as_initializer(init: Any) -> Initializer:
    """The initializer that was given, or one that calls the function that was given.

    Raises
    ------
    TypeError
        When `init` is neither.
    """
    if isinstance(init, type) and hasattr(init, "values"):
        raise TypeError(f"init is the class {init.__name__}: give an instance, as in {init.__name__}()")
    if hasattr(init, "values"):
        return init
    if callable(init):
        return FromFunction(init)
    raise TypeError(f"init must be a lapse.Normal, lapse.UniformValues, lapse.Constant or function, not {brief(init)}")
