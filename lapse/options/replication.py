"""Floor 1. How replicated keys are synchronized: the choices of the user."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lapse.base.checks import brief, check_float, check_int

#: The rules by which what several ranks have pushed is combined.
RULES = ("sum", "adaptive", "adagrad")
#: How values travel: as they are, or as bfloat16.
WIRES = ("exact", "bfloat16")
#: A key takes part at least in every 2**MAX_LEVEL-th round.
MAX_LEVEL = 14
#: Values of at most so many elements can be combined adaptively: the rule needs the square of it as memory and time.
MAX_ADAPTIVE_LENGTH = 1024


@dataclass(frozen=True)
class Replication:
    """How the replicas of the replicated keys are synchronized, in the background.

    In a *round* every host sends what was pushed to its replicas to the keys' homes, and the homes send what these
    contributions come to, to all hosts. A round begins when its time has come **or** when enough was pushed on some
    host, whichever is first; the others join it. Hosts are ranks that share memory (`Server.sharing_ranks`): they have
    one replica of each key. A rank that shares memory with no other counts as a host; if all ranks share memory nothing
    is replicated.

    Parameters
    ----------
    syncs_per_second : float
        Rounds that begin by time. 0: none.
    max_pending : int, optional
        A round also begins when the ranks of a host together have pushed so many key positions to replicas since the
        last one. A worker whose host has pushed half as many again waits (bounded staleness): sums of updates that were
        computed from stale values diverge when only time paces the rounds, and the faster the program, the worse.
        Without it, and with `syncs_per_second=0`, replicas are synchronized on demand only
        (`Worker.wait_replica_sync`).
    threshold : float
        The change of a key is not sent while its L2 norm is smaller.
    average : bool
        Scale each host's change by 1 / hosts.
    clip : float
        Scale a change down to at most `clip` times the running mean of the norms of this host's changes, after 1000
        of them. 0: never.
    combine : {"sum", "adaptive", "adagrad"}
        What the changes of several hosts come to. See Notes.
    curvature : float
        Of "adaptive": the constant between the second moment of the values and the curvature of the loss. For scores
        that are dot products of two values and a logistic loss, 0.1 holds for learning rates from 0.025 to 0.1.
    wire : {"exact", "bfloat16"}
        How changes travel. As bfloat16 they take half of the bytes; what rounding keeps back is added to the key's next
        change, so that errors do not add up (error feedback: Seide et al., *1-Bit Stochastic Gradient Descent*,
        Interspeech 2014), and all replicas still get the same bits.
    rates : array_like of float, optional
        For each key of `replicated_keys`, in their order: the weight (see `Worker.push`) that it is expected to gather
        on all ranks between two rounds. A key that gathers little takes part in every second, fourth, eighth, ...
        round only, the same on all ranks, and the bytes of the others are saved. By default all keys take part in
        every round.
    enough : float
        A key with a rate takes part as often as it gathers about this weight, and at most in every round.
    in_place : bool
        Whether kernels may borrow replicated values and change them where they are, instead of pulling and pushing
        copies (on the C level: `borrow_keys`). A replica then takes four vectors of its length instead of three. What
        other workers and hosts do with a replica while it is borrowed takes effect when it is returned.

    Raises
    ------
    TypeError
        When an argument has the wrong type.
    ValueError
        When a number is negative or not finite, `max_pending` is below 1, or a name is none of those above; when
        `average` is to divide what another rule than the sum combines; when `curvature` is given for another rule than
        "adaptive", or `enough` without `rates`; when `in_place` is set for "adagrad", whose steps are scaled while
        rounds are under way.

    Notes
    -----
    All hosts begin a round at the same value, and tend to correct it in the same way; the sum of their changes makes
    the correction once for each of them. With frequent rounds that does not matter; with rare ones it overshoots, and
    may diverge.

    ``combine="adaptive"`` takes from the sum what is too much. Steps of total rate n along a direction of curvature h
    move a value by 1 - exp(-h n) of the way to its target; m hosts that each make n / m of them, all from the same
    value, come to m (1 - exp(-h n / m)) in sum. The quotient scales the sum along each direction: few steps are
    added, many are averaged over the hosts that made them. Changes that were made while the last round was under way
    head for where its steps have brought the value already: they are scaled by exp(-h n') as well, n' the rate of that
    round. The curvature is that of models whose scores are dot products of two values (word vectors, factorizations):
    `curvature` times the second moment of all values. `n` is the sum of the weights of the pushes. The first eight
    eigenvectors of the moment are directions of their own.

    ``combine="adagrad"`` is for values whose second half are AdaGrad's sums of squares (Duchi et al., *Adaptive
    Subgradient Methods for Online Learning and Stochastic Optimization*, JMLR 12, 2011). These are added; each
    parameter's change is scaled by the growth of the square root of their sum over the sum of the growths, which is
    what steps one after the other would have come to.

    A home combines what it has received, and sends the result: all replicas are equal to the last bit with every rule.
    With "adaptive" and "adagrad" the values must be float32.

    Each host scales its own change before it is sent. In the phase of `Worker.setup` all changes are sent, whatever
    their norm and rate, and none is scaled. Replication of hot spots is that of Renz-Wieland et al., *NuPS: A Parameter
    Server for Machine Learning with Non-Uniform Parameter Access*, SIGMOD 2022; bounded staleness that of Ho et al.,
    *More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server*, NIPS 2013; rarer rounds for rare
    keys are those of Ji et al., *Parallelizing Word2Vec in Shared and Distributed Memory*, 2016.
    """

    syncs_per_second: float = 5
    max_pending: int | None = None
    threshold: float = 0.0
    average: bool = False
    clip: float = 0.0
    combine: str = "sum"
    curvature: float = 0.1
    wire: str = "exact"
    rates: ArrayLike | None = field(default=None, compare=False, repr=False)
    enough: float = 40.0
    in_place: bool = False

    def __post_init__(self) -> None:
        for name in ("syncs_per_second", "threshold", "clip", "curvature", "enough"):
            self._put(name, check_float(getattr(self, name), name, 0, sys.float_info.max))
        for name in ("average", "in_place"):
            given = getattr(self, name)
            if not isinstance(given, (bool, np.bool_)):
                raise TypeError(f"{name} must be True or False, not {given!r}")
            self._put(name, bool(given))
        if self.max_pending is not None:
            self._put("max_pending", check_int(self.max_pending, "max_pending", 1, 2**61))
        _check_name(self.combine, "combine", RULES)
        _check_name(self.wire, "wire", WIRES)
        if self.average and self.combine != "sum":
            raise ValueError(f'average divides a sum, but combine is "{self.combine}": leave average out')
        if self.in_place and self.combine == "adagrad":
            raise ValueError('in_place=True goes with combine "sum" and "adaptive", not with "adagrad": leave it out')
        if self.combine != "adaptive" and self.curvature != Replication.curvature:
            raise ValueError(f'curvature={self.curvature} has no effect with combine="{self.combine}": leave it out')
        if self.rates is not None:
            self._put("rates", _check_rates(self.rates))
        elif self.enough != Replication.enough:
            raise ValueError(f"enough={self.enough} has no effect without rates: leave it out")

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def interval(self) -> float:
        """The time between two rounds in seconds; 0: time begins none."""
        return 1 / self.syncs_per_second if self.syncs_per_second else 0.0

    def levels(self) -> NDArray[np.uint8] | None:
        """For each replicated key n, if it takes part in every 2**n-th round; None: all do in every round."""
        if self.rates is None:
            return None
        with np.errstate(divide="ignore"):
            levels = np.floor(np.log2(self.enough / np.asarray(self.rates, dtype=np.float64)))
        return np.clip(np.nan_to_num(levels, nan=0.0), 0, MAX_LEVEL).astype(np.uint8)


def _check_name(given: Any, name: str, known: tuple[str, ...]) -> None:
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a string, not {brief(given)}")
    if given not in known:
        raise ValueError(f"{name} is {brief(given)}, but must be one of {', '.join(known)}")


def _check_rates(given: Any) -> NDArray[np.float64]:
    rates = np.array(given, dtype=np.float64)
    if rates.ndim != 1:
        raise ValueError(
            f"rates has shape {rates.shape}, but must be one-dimensional: one rate for each replicated key"
        )
    wrong = rates[~((rates >= 0) & np.isfinite(rates))]
    if len(wrong):
        raise ValueError(f"rates has {wrong[0]}, but rates are finite and at least 0")
    rates.setflags(write=False)
    return rates
