"""Lapse: a parameter server whose keys move to the ranks that use them.

The public names are here. Importing this package does not initialise MPI; the first use of
`Server`, `Worker` or `Operation` does.
"""

import importlib

from lapse import _mpi_choice
from lapse.errors import ClosedError, CommError, LapseError, RemoteError

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ClosedError",
    "CommError",
    "Constant",
    "LapseError",
    "Normal",
    "Operation",
    "RemoteError",
    "Replication",
    "Sample",
    "Sampling",
    "Server",
    "Uniform",
    "UniformValues",
    "Weighted",
    "Worker",
    "__version__",
    "choose_hot_spots",
    "sharing_ranks",
]

_LAZY = {  # name: the module that is loaded when somebody asks for the name
    "Server": "lapse.server",
    "Worker": "lapse._worker",
    "Operation": "lapse._worker",
    "Normal": "lapse.initializers",
    "UniformValues": "lapse.initializers",
    "Constant": "lapse.initializers",
    "CheckpointError": "lapse.checkpoint",
    "Replication": "lapse.replication",
    "Sample": "lapse._sampling",
    "Sampling": "lapse.sampling",
    "Uniform": "lapse.sampling",
    "Weighted": "lapse.sampling",
    "choose_hot_spots": "lapse.hot_spots",
    "sharing_ranks": "lapse.host",
}

_mpi_choice.prepare(__path__)


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'lapse' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_LAZY})
