"""Floor 1. Initial values: they depend on the seed and the key only, not on the number of ranks.

The generators are counter-based: element i of key k is a function of (seed, k, i), as in Salmon et al., *Parallel
Random Numbers: As Easy as 1, 2, 3* (SC 2011); the function is the finalizer of SplitMix64 (Steele,
Lea, Flood, *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from lapse.base.checks import brief, check_int
from lapse.base.word_vectors import read_vectors

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
        if not math.isfinite(self.mean):
            raise ValueError(f"mean is {self.mean}, but must be finite")
        if not 0 <= self.std < math.inf:
            raise ValueError(f"std is {self.std}, but must be finite and not negative")

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
        if not -math.inf < self.low <= self.high < math.inf:
            raise ValueError(f"low is {self.low} and high {self.high}, but low must not be above, and both finite")

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


@dataclasses.dataclass(frozen=True)
class Vectorized:
    """What `fn(keys, random)` returns for many keys at once.

    Parameters
    ----------
    fn : callable
        Takes an int64 array of shape (n,) and a `KeyedRandom`, and returns an array of shape (n, length). It is called
        for parts of the keys, in any division, and must give each key the same value in all of them.

    Examples
    --------
    >>> lapse.Vectorized(lambda keys, random: 0.1 * random.normal(columns=8))     # doctest: +SKIP
    """

    fn: Callable[[np.ndarray, KeyedRandom], Any]

    def values(self, keys: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Values of shape (len(keys), length).

        Raises
        ------
        ValueError
            When the function returns something of another shape, or no numbers.
        """
        values = np.asarray(self.fn(keys, KeyedRandom(keys, seed)))
        if values.dtype.kind not in "biuf":
            raise ValueError(f"init returned {values.dtype}, but values are real numbers")
        if values.shape != (len(keys), length):
            raise ValueError(
                f"init returned an array of shape {values.shape} for {len(keys)} keys of length {length}: it must be "
                f"{(len(keys), length)}"
            )
        return values


class KeyedRandom:
    """Random numbers for an array of keys, of which each depends on the seed, the key and the number of the call.

    Parameters
    ----------
    keys : numpy.ndarray of shape (n,)
    seed : int
    """

    def __init__(self, keys: np.ndarray, seed: int) -> None:
        self._keys, self._seed, self._calls = keys, seed, 0

    def normal(self, mean: float = 0.0, std: float = 1.0, columns: int = 1) -> np.ndarray:
        """Normally distributed numbers of shape (n, columns)."""
        return Normal(mean, std).values(self._keys, columns, self._next())

    def uniform(self, low: float = 0.0, high: float = 1.0, columns: int = 1) -> np.ndarray:
        """Numbers uniform in [low, high), of shape (n, columns)."""
        return UniformValues(low, high).values(self._keys, columns, self._next())

    def _next(self) -> int:
        self._calls += 1
        return _seed_of_part(self._seed, self._calls - 1)


def _seed_of_part(seed: int, part: int) -> int:
    """Seeds for parts of a value that must not be alike; the first has the seed itself."""
    if part == 0:
        return seed
    return int(_mix(np.array([seed, part], dtype=np.uint64) * _GOLDEN).sum() >> np.uint64(8))


@dataclasses.dataclass(frozen=True, init=False)
class Columns:
    """Values whose columns begin differently, such as random weights beside a constant.

    Parameters
    ----------
    *parts : (initializer, int or None)
        Each with the number of its columns, from left to right; None, at most once: those that are left.

    Raises
    ------
    TypeError, ValueError
        When a part is something else, or there is none.

    Examples
    --------
    >>> lapse.Columns((lapse.Normal(0, 0.1), None), (lapse.Constant(1.0), 1))     # doctest: +SKIP
    """

    parts: tuple[tuple[Initializer, int | None], ...]

    def __init__(self, *parts: tuple[Any, int | None]) -> None:
        checked = []
        for part in parts:
            try:
                init, columns = part
            except (TypeError, ValueError):
                raise TypeError(f"a part of Columns is a pair (init, columns), not {brief(part)}") from None
            columns = None if columns is None else check_int(columns, "columns", 0, 2**31)
            checked.append((as_initializer(init), columns))
        if not checked or [columns for _, columns in checked].count(None) > 1:
            raise ValueError(f"Columns needs at least one part, and None for one at most, not {brief(parts)}")
        object.__setattr__(self, "parts", tuple(checked))

    def values(self, keys: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Values of shape (len(keys), length).

        Raises
        ------
        ValueError
            When the parts have more or fewer columns.
        """
        known = sum(columns for _, columns in self.parts if columns is not None)
        has_rest = any(columns is None for _, columns in self.parts)
        if known > length or (known < length and not has_rest):
            raise ValueError(f"the parts of {self} have {known} columns, but values have {length}")
        values, at = np.empty((len(keys), length)), 0
        for number, (init, columns) in enumerate(self.parts):
            end = at + (length - known if columns is None else columns)
            values[:, at:end] = init.values(keys, end - at, _seed_of_part(seed, number))
            at = end
        return values


class FromFile:
    """The vectors of a file, by number: key (or row of a table) i gets the i-th one.

    Parameters
    ----------
    path : path-like
        A ``.npy`` file with a two-dimensional array, or a file in one of the formats of the word2vec program: binary
        if it ends in ``.bin``, else text. Every rank reads it.
    rest : Normal, ... or callable, optional
        What keys behind the last vector begin with; by default they are an error.

    Raises
    ------
    OSError, ValueError
        When the file cannot be read, or has another format.
    """

    def __init__(self, path: str | os.PathLike[str], rest: Any = None) -> None:
        self.path = os.fspath(path)
        self.rest = None if rest is None else as_initializer(rest)
        self.words: list[str] | None = None
        if self.path.endswith(".npy"):
            self.vectors = np.load(self.path, mmap_mode="r", allow_pickle=False)
        else:
            self.words, self.vectors = read_vectors(self.path)
        if self.vectors.ndim != 2 or self.vectors.dtype.kind not in "biuf":
            raise ValueError(
                f"{self.path} has an array of {self.vectors.dtype}, shape {self.vectors.shape}: vectors are rows of "
                "real numbers in two dimensions"
            )

    def __repr__(self) -> str:
        return f"FromFile({self.path!r}: {len(self.vectors)} x {self.vectors.shape[1]}, rest={self.rest})"

    def values(self, keys: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Values of shape (len(keys), length).

        Raises
        ------
        ValueError
            When the vectors have another length, or there are fewer than keys.
        """
        count, width = self.vectors.shape
        if width != length:
            raise ValueError(f"the vectors in {self.path} have {width} elements, but values have {length}")
        known = keys < count
        if known.all():
            return self.vectors[keys]
        if self.rest is None:
            raise ValueError(
                f"{self.path} has {count} vectors, none for number {keys[~known][0]}: give rest= for those behind"
            )
        values = np.empty((len(keys), length))
        values[known] = self.vectors[keys[known]]
        values[~known] = self.rest.values(keys[~known], length, seed)
        return values


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
    raise TypeError(
        "init must be a lapse.Normal, UniformValues, Constant, Columns, Vectorized, FromFile or function, not "
        f"{brief(init)}"
    )
