"""Floor 1. What the network between ranks costs, for choices that depend on it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from lapse.base.checks import check_float


@dataclass(frozen=True)
class Network:
    """What messages between ranks cost. `lapse.measure_network` measures it; the defaults are a network of 10 Gb/s.

    Parameters
    ----------
    latency : float
        Seconds that a small message takes from one rank to another.
    bytes_per_second : float
        Of one rank, while all send.
    record_seconds : float
        Computing time for each key in a message: its entry and its value are looked up.

    Raises
    ------
    TypeError
        When an argument is no number.
    ValueError
        When a number is negative or not finite, or `bytes_per_second` is 0.
    """

    latency: float = 25e-6
    bytes_per_second: float = 1.25e9
    record_seconds: float = 5e-8

    def __post_init__(self) -> None:
        for name in ("latency", "bytes_per_second", "record_seconds"):
            object.__setattr__(self, name, check_float(getattr(self, name), name, 0, sys.float_info.max))
        if self.bytes_per_second == 0:
            raise ValueError("bytes_per_second is 0, but must be positive")
