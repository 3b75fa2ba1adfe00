"""Random streams, each named by (seed, epoch, worker, purpose): nothing needs to be saved to repeat one."""

from __future__ import annotations

import numpy as np


def generator(seed: int, epoch: int, worker: int, purpose: int) -> np.random.Generator:
    """A generator for NumPy."""
    return np.random.default_rng((seed, epoch, worker, purpose))


def start(seed: int, epoch: int, worker: int, purpose: int) -> int:
    """The state from which a kernel's generator starts, 64 bits."""
    return int(np.random.SeedSequence((seed, epoch, worker, purpose)).generate_state(1, np.uint64)[0])
