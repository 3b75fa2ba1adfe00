"""Floor 5. What a server is: its keys, its ranks and its workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lapse._store import Store
from lapse.options.sampling import Sampling
from lapse.options.tables import Tables
from lapse.server.workers import Workers
from lapse.worker._arrays import convert_keys, outside
from lapse.worker.group import WorkerGroup
from mpi4py import MPI


class Description:
    """The part of a `Server` that only tells what was chosen, and does nothing."""

    _comm_given: MPI.Intracomm
    _group: WorkerGroup
    _sampling: Sampling | None
    _sharing: list[int]
    _store: Store
    _tables: Tables | None
    _workers: Workers

    @property
    def num_keys(self) -> int:
        """The number of keys: they are 0 .. num_keys - 1."""
        return self._store.num_keys

    @property
    def dtype(self) -> np.dtype:
        """The `numpy.dtype` of all values."""
        return self._store.dtype

    @property
    def seed(self) -> int:
        """The seed of initial values and generators."""
        return self._group.seed

    @property
    def sampling(self) -> Sampling | None:
        """The `Sampling` that was passed, or None."""
        return self._sampling

    @property
    def tables(self) -> Tables | None:
        """The `Tables` that were passed, or None."""
        return self._tables

    @property
    def rank(self) -> int:
        """This rank's number in `comm`."""
        return self._comm_given.rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self._comm_given.size

    @property
    def comm(self) -> MPI.Intracomm:
        """The communicator that was passed."""
        return self._comm_given

    @property
    def sharing_ranks(self) -> list[int]:
        """The ranks of this host that reach each other's values without messages, including this one: a list of int.

        All ranks of the host, unless shared memory is off; groups of LAPSE_SHARED_MEMORY_RANKS neighbours if that
        environment variable is set (to the ranks of one socket, for example).
        """
        return list(self._sharing)

    @property
    def workers(self) -> int:
        """The number of worker threads of this rank."""
        return len(self._workers)

    @property
    def num_workers(self) -> int:
        """The number of worker threads of all ranks."""
        return self._group.num_workers

    def value_length(self, keys: ArrayLike) -> int | np.ndarray:
        """Elements per value.

        Parameters
        ----------
        keys : int or array_like of int

        Returns
        -------
        int or numpy.ndarray of int64
            Of the shape of `keys`.

        Raises
        ------
        IndexError
            When a key is outside the range.
        TypeError
            When keys are not integers.
        """
        lengths = self._store.value_length(self._as_keys(keys))
        return int(lengths) if lengths.ndim == 0 else lengths

    def _as_keys(self, keys: ArrayLike) -> np.ndarray:
        converted = convert_keys(keys, self.num_keys)
        for key in (converted.min(), converted.max()) if converted.size else ():
            if not 0 <= key < self.num_keys:
                raise IndexError(outside(key, self.num_keys))
        return converted
