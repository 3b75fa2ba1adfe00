"""Floor 6. What the modules of one worker have under way: gradients that go to the server, and rows that came ahead.

A row that a batch uses may lack the gradients of the step before, but of no earlier one. So a pull waits for the
gradient operations of all steps but the latest; which these are is known by numbers that they get in their order.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lapse.torch import transfers
from lapse.torch._rows import are_shifted

if TYPE_CHECKING:
    from lapse.torch.transfers import Download, Upload
    from lapse.worker._operation import Operation
    from lapse.worker._worker import Worker


@dataclass(frozen=True)
class Needs:
    """The keys that a batch needs of one table.

    Attributes
    ----------
    given
        int64 of shape (n,), as they were given.
    keys
        int64 of shape (u,), each once.
    places
        int64 of shape (n,): where each of the given is among them.
    upload
        The same on their way to the table's device, if it has one.
    """

    given: np.ndarray
    keys: np.ndarray
    places: np.ndarray
    upload: Upload | None = None


@dataclass
class Rows:
    """Rows of one table that were pulled before a module asks for them.

    Attributes
    ----------
    keys
        int64 of shape (u,), each once.
    values
        Shape (u, length); complete when `operation` is done.
    number
        How many gradient operations of the worker they have for certain.
    needs
        Of which keys of the batch they are; None if this is not known.
    upload
        The same rows on their way to the table's device.
    are_shared
        Whether several modules may use their memory.
    """

    keys: np.ndarray
    values: torch.Tensor
    operation: Operation | None
    number: int
    needs: Needs | None = None
    upload: Upload | None = None
    are_shared: bool = True

    def wait(self) -> None:
        """Return when the values are here."""
        if self.operation is not None:
            self.operation.wait()
            self.operation = None


@dataclass(frozen=True)
class Place:
    """Where a table is among the keys, and the device to which its rows go."""

    first: int
    end: int
    length: int
    dtype: np.dtype
    device: torch.device | None

    def empty(self, count: int) -> torch.Tensor:
        """Room for so many rows; pinned if they go on to a GPU."""
        return transfers.empty((count, self.length), torch_dtype(self.dtype), self.device)


class Traffic:
    """See above; one for each worker, for the worker's thread (`downloads` are added by those of autograd as well)."""

    def __init__(self) -> None:
        self.places: dict[int, Place] = {}  # by the first key of a table
        self.ahead: dict[int, Rows] = {}  # those of the batch that a `Prefetcher` has handed out, by table
        self.handed_out_at = 0  # `begun` at that moment
        self.number = 0  # of gradient operations so far
        self.downloads: deque[Download] = deque()
        self._flying: deque[tuple[int, Operation]] = deque()

    @property
    def runs_ahead(self) -> bool:
        """Whether this thread goes on while a device computes, for any of the tables."""
        return any(place.device is not None for place in self.places.values())

    @property
    def begun(self) -> int:
        """The number of gradient operations, with those that wait for their gradients to come from a device."""
        return self.number + len(self.downloads)

    def add(self, operation: Operation | None) -> None:
        """Count a gradient operation, and keep it while it is not done; None if nothing was sent."""
        self.number += 1
        if operation is not None and not operation.test():
            self._flying.append((self.number, operation))

    def collect(self, number: int = 0) -> None:
        """Send the gradients that have come from a device, and wait for those of the first `number` operations."""
        while self.downloads and (self.number < number or self.downloads[0].is_here()):
            self.downloads.popleft().finish()

    def settle(self, number: int | None = None) -> None:
        """Wait for the first `number` gradient operations; by default for all."""
        last = self.begun if number is None else number
        self.collect(last)
        while self._flying and self._flying[0][0] <= last:
            self._flying.popleft()[1].wait()

    def rows_of(self, first: int, keys: np.ndarray, exact: bool) -> Rows | None:
        """The rows that came ahead for the table that begins at key `first`, if they may be used and have all `keys`.

        Parameters
        ----------
        first : int
        keys : int64 array of shape (u,)
        exact : bool
            Whether they must have all gradients; else none may have been sent since they were handed out.

        Returns
        -------
        rows : Rows
            If they have just these keys, those that came: others may use their memory, too.
        """
        rows = self.ahead.get(first)
        if rows is None or self.begun != (rows.number if exact else self.handed_out_at):
            return None
        rows.wait()
        if keys is rows.keys or np.array_equal(keys, rows.keys):
            return rows
        places = places_among(rows.keys, keys)
        if places is None:
            return None
        values = self.places[first].empty(len(keys))
        torch.index_select(rows.values, 0, torch.from_numpy(places), out=values)
        return Rows(keys, values, None, rows.number, are_shared=False)

    def needs_of(self, first: int, ids: np.ndarray) -> Needs | None:
        """What a `Prefetcher` has found of a batch, if it has just these ids.

        Parameters
        ----------
        first : int
            The key of id 0 of the table.
        ids : int64 array of shape (n,)
        """
        rows = self.ahead.get(first)
        if rows is None or rows.needs is None or not are_shifted(ids, first, rows.needs.given):
            return None
        return rows.needs


def places_among(known: np.ndarray, keys: np.ndarray) -> np.ndarray | None:
    """Where each key is among the known ones, or None if one is not."""
    if not len(known):
        return None
    order = np.argsort(known)
    places = order[np.minimum(np.searchsorted(known, keys, sorter=order), len(known) - 1)]
    return places if np.array_equal(known[places], keys) else None


_of_thread = threading.local()


def traffic_of(kv: Worker) -> Traffic:
    """The traffic of a worker; called in its thread."""
    known = getattr(_of_thread, "known", None)
    if known is None:
        known = _of_thread.known = weakref.WeakKeyDictionary()
    if kv not in known:
        known[kv] = Traffic()
    return known[kv]


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """The dtype of tensors with a server's values."""
    return torch.float64 if dtype == np.float64 else torch.float32
