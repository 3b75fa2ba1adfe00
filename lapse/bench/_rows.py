"""The result of a benchmark: a figure, the reference that it is compared with, and a target."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """A bound that a row should meet; created by `at_most` and `at_least`.

    Attributes
    ----------
    kind
        "at most" or "at least".
    limit
        The bound.
    of
        What is bounded: the row's "ratio" or its "value".
    """

    kind: str
    limit: float
    of: str = "ratio"

    def __str__(self) -> str:
        sign = "<=" if self.kind == "at most" else ">="
        return f"{sign} {self.limit:g}" + ("" if self.of == "ratio" else " (value)")


def at_most(limit: float, of: str = "ratio") -> Target:
    """The row's ratio (or value) should not exceed `limit`."""
    return Target("at most", limit, of)


def at_least(limit: float, of: str = "ratio") -> Target:
    """The row's ratio (or value) should be at least `limit`."""
    return Target("at least", limit, of)


@dataclass(frozen=True)
class Row:
    """One figure and its reference, in the same unit.

    Attributes
    ----------
    group
        The group it belongs to.
    name
        What was measured, such as "pull".
    parameters
        The conditions: numbers and short strings by name; each name is a column of the table.
    value, unit
        The median.
    reference, reference_name
        The figure that it is compared with, from the same run and in the same unit, and a description of it.
    ratio
        The median of value / reference over the rounds of the run; not always the quotient of the medians.
    quartiles
        Of that ratio; None if it was measured once.
    target
        A bound for the ratio (or value), if there is one.
    ranks, workers
        Of the job, and of each rank.
    figures
        Other figures of the same run by name: numbers, or None where there is none; each name is a column.

    Raises
    ------
    ValueError
        If the value or the reference is missing, not a number or not positive: a figure without a comparison is
        not informative.
    """

    group: str
    name: str
    parameters: dict
    value: float
    unit: str
    reference: float
    reference_name: str
    ratio: float
    quartiles: tuple[float, float] | None = None
    target: Target | None = None
    ranks: int = 1
    workers: int = 1
    note: str = field(default="")
    figures: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.reference_name:
            raise ValueError(
                f"{self.label()} has no reference: pass reference_name, a description of what it is compared with"
            )
        for what in ("value", "reference", "ratio"):
            number = getattr(self, what)
            if not isinstance(number, (int, float)) or not 0 < number < math.inf:
                raise ValueError(f"{self.label()}: the {what} is {number!r}, not a positive number")

    def label(self) -> str:
        """The row in a few words."""
        return ", ".join(
            [f"{self.group}: {self.name}", *(f"{name} {value}" for name, value in self.parameters.items())]
        )

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        number = self.ratio if self.target.of == "ratio" else self.value
        return number <= self.target.limit if self.target.kind == "at most" else number >= self.target.limit

    def as_dict(self) -> dict:
        """For JSON; `from_dict` reads it."""
        return {**dataclasses.asdict(self), "reached": self.reached}

    @classmethod
    def from_dict(cls, figures: dict) -> Row:
        """The row that `as_dict` was called on, also after a round trip through JSON."""
        rest = {name: value for name, value in figures.items() if name != "reached"}
        rest["target"] = None if rest["target"] is None else Target(**rest["target"])
        rest["quartiles"] = None if rest["quartiles"] is None else tuple(rest["quartiles"])
        return cls(**rest)
