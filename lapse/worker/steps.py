"""Floor 4. How many steps the workers of a rank have made with each table, for Adam's correction of the bias.

A worker counts for itself, since it makes a step in each of its batches, as all others do. What is saved is the largest
count of any worker, and every worker goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Steps:
    """The counts of one rank; each is changed by its own worker's thread only."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}  # by table, what every worker began with
        self._made: dict[tuple[int, str], int] = {}  # by worker and table, what came to it since

    def next(self, worker: int, table: str) -> int:
        """The number of the step that a worker makes with a table now, from 1 on."""
        made = self._made[worker, table] = self._made.get((worker, table), 0) + 1
        return self._begun.get(table, 0) + made

    def state(self) -> dict[str, int]:
        """The most steps of any worker of this rank, by table: for `adopt`, and for JSON."""
        most = dict(self._begun)
        for (_, table), made in self._made.items():
            most[table] = max(most.get(table, 0), self._begun.get(table, 0) + made)
        return most

    def adopt(self, counts: Mapping[str, int]) -> None:
        """Go on from these counts."""
        self._begun, self._made = dict(counts), {}


def most_steps(counts: list[dict[str, int]]) -> dict[str, int]:
    """The most steps of any rank, by table, from the `Steps.state` of all."""
    tables = sorted({table for each in counts for table in each})
    return {table: max(each.get(table, 0) for each in counts) for table in tables}


def is_steps(given: Any) -> bool:
    """Whether what a manifest has looks like such counts."""
    return isinstance(given, dict) and all(type(count) is int and count >= 0 for count in given.values())
