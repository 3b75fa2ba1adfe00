"""Floor 1. How a server samples: the user's choice of a distribution over keys and of a scheme."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from lapse.base.checks import brief, check_int

#: The class that carries each scheme out. Its module is imported when a server uses it.
SCHEMES = {
    "naive": "lapse.sampling._naive.NaiveSampler",
    "preloc": "lapse.sampling._preloc.PrelocSampler",
    "pool": "lapse.sampling._pool.PoolSampler",
    "local": "lapse.sampling._local.LocalSampler",
}
#: The parameters that the schemes above leave without effect, and which must keep their defaults.
WITHOUT_EFFECT = {
    "naive": ("reuse", "group_size", "postpone"),
    "preloc": ("reuse", "group_size", "postpone"),
    "local": ("reuse", "postpone"),
}
MAX_REUSE = 2**31 - 1
MAX_IN_GROUP = 2**26
MAX_KEYS = 2**32 - 2


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Every key of a range is equally likely.

    Parameters
    ----------
    low, high : int
        The keys are low .. high - 1.

    Raises
    ------
    TypeError
        When a bound is not an integer.
    ValueError
        When the range is empty or begins below 0.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", check_int(self.low, "low", 0, MAX_KEYS))
        object.__setattr__(self, "high", check_int(self.high, "high", 0, MAX_KEYS))
        if self.low >= self.high:
            raise ValueError(
                f"Uniform({self.low}, {self.high}) has no keys: they are low .. high - 1, so high "
                f"must be at least {self.low + 1}"
            )

    @property
    def weights(self) -> None:
        """Uniform keys need no table of weights."""
        return None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Weighted:
    """Key offset + i is drawn with a probability proportional to weights[i].

    Parameters
    ----------
    weights : array_like of float, shape (n,)
        Finite and not negative, with a positive sum. A key of weight 0 is never drawn. Copied.
    offset : int
        The key that weights[0] belongs to.

    Raises
    ------
    TypeError
        When weights are not real numbers.
    ValueError
        When they do not have one dimension or are out of range.
    """

    weights: np.ndarray
    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", _check_weights(self.weights))
        most = MAX_KEYS - len(self.weights)
        object.__setattr__(self, "offset", check_int(self.offset, "offset", 0, most))

    @property
    def low(self) -> int:
        """The first key that has a weight."""
        return self.offset

    @property
    def high(self) -> int:
        """The key after the last that has one."""
        return self.offset + len(self.weights)

    @property
    def digest(self) -> str:
        """The SHA-256 of the weights in hexadecimal, by which ranks compare them."""
        return hashlib.sha256(self.weights.data).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weighted):
            return NotImplemented
        return self.offset == other.offset and np.array_equal(self.weights, other.weights)

    def __hash__(self) -> int:
        return hash((self.offset, self.digest))

    def __repr__(self) -> str:
        return f"Weighted(<{len(self.weights)} weights, sha256 {self.digest[:16]}>, offset={self.offset})"


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the workers of a server draw keys: from which distribution, and what is done to have the keys nearby.

    Parameters
    ----------
    scheme : {"naive", "preloc", "pool", "local"}
        ========  =====================================================  ================================
        scheme    what is done                                           what is promised
        ========  =====================================================  ================================
        naive     draws when samples are pulled; they may be far away    independent draws
        preloc    draws when a sample is prepared, and localizes the     independent draws, handed out in
                  keys meanwhile                                         the order in which they were made
        pool      draws groups of `group_size` keys ahead, localizes     each draw is used exactly `reuse`
                  them, and uses each group `reuse` times, every time    times: right frequencies, and a
                  in a new random order                                  dependence that ends with a group
        pool,     as pool; a key that is not here when its turn comes    frequencies in the long run:
        postpone  goes to the end of its sample, once                    which keys a pull gets depends on
                                                                         where they are
        local     draws when samples are pulled, until a key is here     replicated keys have exactly their
                                                                         probability; the others share the
                                                                         rest in proportion, among those
                                                                         that are here
        ========  =====================================================  ================================
    distribution : Uniform or Weighted
        Drawing a key takes constant time in both.
    reuse : int
        Pool only: how often each draw is used, at least 1.
    group_size : int
        Pool: draws per group. Local: after 10 times as many draws without a key that is here, the
        last one is pulled from the rank that owns it.
    postpone : bool
        Pool only: see above. Keys that were postponed and never pulled are lost with their sample, so
        calling `finish_sample` before the end makes keys rarer that are often elsewhere.

    Raises
    ------
    TypeError
        When an argument has the wrong type.
    ValueError
        When the scheme is unknown, a number is out of range, or a parameter has no effect in this scheme.

    Notes
    -----
    The schemes are those of Renz-Wieland et al., *NuPS: A Parameter Server for Machine Learning with
    Non-Uniform Parameter Access*, SIGMOD 2022. There "local" draws among all keys that are here, and
    keys that are replicated come out too often; here the choice between replicated and other keys
    follows the whole distribution, and only the others are conditioned on being here.

    Each worker has generators and a pool of its own, which continue from one `run` to the next and
    depend on the server's seed and the worker's number only; `Server.save` saves the generators.
    Which keys "local" finds, and which are postponed, also depends on where keys are at that moment.

    Examples
    --------
    >>> import numpy as np
    >>> negatives = Weighted(np.array([40, 8, 1]) ** 0.75, offset=100)
    >>> Sampling("pool", negatives, reuse=16, postpone=True).group_size
    250
    """

    scheme: str
    distribution: Uniform | Weighted
    reuse: int = 1
    group_size: int = 250
    postpone: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, str):
            raise TypeError(f"scheme must be a string, one of {', '.join(SCHEMES)}, not {brief(self.scheme)}")
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme is {brief(self.scheme)}, but must be one of {', '.join(SCHEMES)}")
        if not isinstance(self.distribution, (Uniform, Weighted)):
            raise TypeError(
                "distribution must be lapse.Uniform(low, high) or lapse.Weighted(weights, offset), "
                f"not {brief(self.distribution)}"
            )
        object.__setattr__(self, "reuse", check_int(self.reuse, "reuse", 1, MAX_REUSE))
        group_size = check_int(self.group_size, "group_size", 1, MAX_IN_GROUP)
        object.__setattr__(self, "group_size", group_size)
        if not isinstance(self.postpone, (bool, np.bool_)):
            raise TypeError(f"postpone must be True or False, not {brief(self.postpone)}")
        object.__setattr__(self, "postpone", bool(self.postpone))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in WITHOUT_EFFECT.get(self.scheme, ()) and value != field.default:
                given = f"{field.name}={brief(value)}"
                raise ValueError(f'{given} has no effect with the scheme "{self.scheme}": leave it out')


def _check_weights(given: Any) -> np.ndarray:
    """Copy the weights into a read-only float64 array."""
    array = np.asarray(given.detach() if hasattr(given, "detach") else given)
    if array.dtype.kind not in "iuf" and array.size:
        raise TypeError(f"weights must be real numbers, not {array.dtype}")
    if array.ndim != 1 or not 1 <= array.size <= MAX_KEYS:
        raise ValueError(f"weights have shape {array.shape}, but must have one dimension, with 1 to {MAX_KEYS} numbers")
    weights = np.array(array, dtype=np.float64)
    good = np.isfinite(weights) & (weights >= 0)
    if not good.all():
        worst = int(np.argmin(good))
        raise ValueError(f"weights has {weights[worst]} at {worst}, but weights must be finite and not negative")
    if not weights.any():
        raise ValueError(f"all {len(weights)} weights are 0, but at least one must be positive")
    weights += 0.0  # makes -0.0 the same as 0.0, in the digest as well
    weights.flags.writeable = False
    return weights
