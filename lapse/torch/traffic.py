"""Floor 6. What the modules of one worker have under way: gradients that go to the server, and rows that came ahead.

A row that a batch uses may lack the gradients of the step before, but of no earlier one. So a pull waits for the
gradient operations of all steps but the latest; which these are is known by numbers that they get in their order.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from lapse.worker._operation import Operation
    from lapse.worker._worker import Worker


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
        How many gradient operations the worker had issued when they were pulled.
    """

    keys: np.ndarray
    values: torch.Tensor
    operation: Operation | None
    number: int

    def wait(self) -> None:
        """Return when the values are here."""
        if self.operation is not None:
            self.operation.wait()
            self.operation = None


@dataclass
class Download:
    """Gradients on their way from a device to the host's memory; `event` is None if they are there."""

    keys: np.ndarray
    gradients: torch.Tensor
    are_held: bool
    send: Callable[[np.ndarray, np.ndarray, bool], None]
    event: Any

    def is_here(self) -> bool:
        """Whether they can be read."""
        return self.event is None or self.event.query()

    def wait(self) -> None:
        """Return when they can be read."""
        if self.event is not None:
            self.event.synchronize()


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
        is_pinned = self.device is not None and self.device.type == "cuda"
        return torch.empty((count, self.length), dtype=torch_dtype(self.dtype), pin_memory=is_pinned)


class Traffic:
    """See above; one for each worker, for the worker's thread (`downloads` are added by those of autograd as well)."""

    def __init__(self) -> None:
        self.places: dict[int, Place] = {}  # by the first key of a table
        self.ahead: dict[int, Rows] = {}  # those of the batch that a `Prefetcher` has handed out, by table
        self.handed_out_at = 0  # `number` at that moment
        self.number = 0  # of gradient operations so far
        self.downloads: deque[Download] = deque()
        self._flying: deque[tuple[int, Operation]] = deque()

    @property
    def begun(self) -> int:
        """The number of gradient operations, with those that wait for their gradients to come from a device."""
        return self.number + len(self.downloads)

    def add(self, operation: Operation) -> None:
        """Count a gradient operation, and keep it while it is not done."""
        self.number += 1
        if not operation.test():
            self._flying.append((self.number, operation))

    def collect(self, number: int = 0) -> None:
        """Send the gradients that have come from a device, and wait for those of the first `number` operations."""
        while self.downloads and (self.number < number or self.downloads[0].is_here()):
            download = self.downloads.popleft()
            download.wait()
            download.send(download.keys, download.gradients.numpy(), download.are_held)

    def settle(self, number: int | None = None) -> None:
        """Wait for the first `number` gradient operations; by default for all."""
        last = self.begun if number is None else number
        self.collect(last)
        while self._flying and self._flying[0][0] <= last:
            self._flying.popleft()[1].wait()

    def rows_of(self, first: int, keys: np.ndarray, exact: bool) -> tuple[torch.Tensor, bool] | None:
        """The rows that came ahead for the table that begins at key `first`, if they may be used and have all `keys`.

        Parameters
        ----------
        first : int
        keys : int64 array of shape (u,)
        exact : bool
            Whether no gradient may have been sent since they were pulled; else none since they were handed out.

        Returns
        -------
        rows : tensor of shape (u, length)
        are_shared : bool
            Whether others will use this memory.
        """
        rows = self.ahead.get(first)
        if rows is None or self.begun != (rows.number if exact else self.handed_out_at):
            return None
        rows.wait()
        if len(keys) == len(rows.keys) and np.array_equal(keys, rows.keys):
            return rows.values, True
        places = places_among(rows.keys, keys)
        return None if places is None else (rows.values[torch.from_numpy(places)], False)


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
