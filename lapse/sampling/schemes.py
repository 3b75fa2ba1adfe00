"""Floor 2. The sampler of the scheme that a user names.

The schemes are those of Renz-Wieland et al., *NuPS: A Parameter Server for Machine Learning with
Non-Uniform Parameter Access*, SIGMOD 2022. `lapse/options/sampling.py` registers them, and says what
each of them promises.
"""

from __future__ import annotations

import importlib

from lapse.options.sampling import SCHEMES, Sampling
from lapse.sampling._draws import Table
from lapse.sampling._sampler import Sampler


def make_sampler(sampling: Sampling, table: Table, seed: int, worker: int) -> Sampler:
    """Create the sampler of one worker.

    Parameters
    ----------
    sampling : lapse.Sampling
    table : Table
        Of its distribution; shared by all workers of a rank.
    seed, worker : int
        The generators depend on nothing else.

    Raises
    ------
    MemoryError
        If there is no memory for the keys that the scheme draws ahead.
    """
    module, _, name = SCHEMES[sampling.scheme].rpartition(".")
    return getattr(importlib.import_module(module), name)(sampling, table, seed, worker)
