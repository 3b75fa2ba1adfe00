"""Pulls into arrays of the caller that nobody waits for, and ones that are waited for together."""

import warnings

import numpy as np

import lapse
from common import tell

out = np.zeros((1000, 2), "f4")


def drop(kv):
    """Several times, since one may be done before it is dropped; one warning is enough."""
    for _ in range(10):
        kv.pull(np.arange(1000), out=out)  # this line


def wait_for_all(kv):
    """No reason for a warning."""
    for first in range(0, 1000, 100):
        kv.pull(np.arange(first, first + 100), out=out[first : first + 100])
    kv.wait_all()
    kv.push(np.arange(1000), out)  # has no result


def hold(kv):
    """One that is held, dropped when it is done."""
    operation = kv.pull(np.arange(1000), out=out)
    while not operation.test():
        pass


for work in (drop, wait_for_all, hold):
    with warnings.catch_warnings(record=True) as caught, lapse.Server(1000, 2, shared_memory=False) as server:
        warnings.simplefilter("always")
        server.run(work)
    tell(work.__name__, [(warning.category.__name__, warning.lineno) for warning in caught])
