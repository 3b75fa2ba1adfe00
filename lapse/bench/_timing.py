"""How figures are compared on a machine whose speed varies: in turns, by medians.

On a shared machine the same program varies by a factor of 1.3 to 2 between minutes, but hardly within milliseconds.
Therefore figures that are compared are measured in turns, many times within a run, and the ratio is taken per round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One measurement in each round of a run, all in one unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The bounds of the middle half."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def __mul__(self, factor: float) -> Sample:
        """In another unit."""
        return Sample(tuple(value * factor for value in self.values))

    def __truediv__(self, other: Sample) -> Sample:
        """The ratio in each round."""
        return Sample(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))


def interleaved(measured: Mapping[str, Callable[[], float]], rounds: int, warm_ups: int = 1) -> dict[str, Sample]:
    """Measure several things in turns.

    Parameters
    ----------
    measured
        By name: functions that do some work and return the time per unit of work (in any unit). On several ranks all
        ranks call all of them, and they contain the barriers that they need.
    rounds
        How often each is called; every second round is in reverse order, so that none is always the first.
    warm_ups
        Additional rounds before these, which are not counted.
    """
    values = {name: [] for name in measured}
    for number in range(-warm_ups, rounds):
        names = list(measured)
        for name in names if number % 2 == 0 else reversed(names):
            value = measured[name]()
            if number >= 0:
                values[name].append(value)
    return {name: Sample(tuple(of_rounds)) for name, of_rounds in values.items()}
