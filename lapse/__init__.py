"""Lapse: a parameter server whose keys move to the ranks that use them.

The public names are here. Importing this package does not initialize MPI; the first use of `Server`, `measure_network`
or `sharing_ranks` does. In a job of several ranks an exception that nobody catches ends the job from then on.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lapse import _mpi_loader
from lapse._version import __version__
from lapse.base import uncaught
from lapse.errors import CheckpointError, ClosedError, CommError, LapseError, RemoteError

__all__ = [
    "CheckpointError",
    "ClosedError",
    "Columns",
    "CommError",
    "Constant",
    "FromFile",
    "LapseError",
    "Network",
    "Normal",
    "Operation",
    "RemoteError",
    "Replication",
    "Sample",
    "Sampling",
    "Server",
    "Table",
    "Tables",
    "Uniform",
    "UniformValues",
    "Vectorized",
    "Weighted",
    "Worker",
    "__version__",
    "choose_hot_spots",
    "measure_network",
    "optim",
    "sharing_ranks",
]

if TYPE_CHECKING:
    from lapse import optim
    from lapse.options.hot_spots import choose_hot_spots
    from lapse.options.initializers import Columns, Constant, FromFile, Normal, UniformValues, Vectorized
    from lapse.options.network import Network
    from lapse.options.replication import Replication
    from lapse.options.sampling import Sampling, Uniform, Weighted
    from lapse.options.tables import Table, Tables
    from lapse.sampling._sampler import Sample
    from lapse.server.host import sharing_ranks
    from lapse.server.network import measure_network
    from lapse.server.server import Server
    from lapse.worker._operation import Operation
    from lapse.worker._worker import Worker

_LAZY = {  # name: the module that is loaded when the name is used for the first time
    "Server": "lapse.server.server",
    "Worker": "lapse.worker._worker",
    "Operation": "lapse.worker._operation",
    "Normal": "lapse.options.initializers",
    "UniformValues": "lapse.options.initializers",
    "Constant": "lapse.options.initializers",
    "Vectorized": "lapse.options.initializers",
    "FromFile": "lapse.options.initializers",
    "Columns": "lapse.options.initializers",
    "Replication": "lapse.options.replication",
    "Table": "lapse.options.tables",
    "Tables": "lapse.options.tables",
    "Sample": "lapse.sampling._sampler",
    "Sampling": "lapse.options.sampling",
    "Uniform": "lapse.options.sampling",
    "Weighted": "lapse.options.sampling",
    "choose_hot_spots": "lapse.options.hot_spots",
    "Network": "lapse.options.network",
    "measure_network": "lapse.server.network",
    "sharing_ranks": "lapse.server.host",
}

_mpi_loader.prepare(__path__)
uncaught.install(_mpi_loader.ranks_started(), _mpi_loader.loaded_library)


def __getattr__(name: str) -> Any:
    if name == "optim":
        return importlib.import_module("lapse.optim")
    if name not in _LAZY:
        raise AttributeError(f"module 'lapse' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
