"""Floor 6. What `Embedding` and `EmbeddingBag` share: a table, its rows for a batch, and where gradients go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lapse.options.tables import NamedTable
from lapse.torch._rows import Distinct
from lapse.torch.gradients import Gradients
from lapse.torch.traffic import Needs, Place, Rows, torch_dtype, traffic_of
from lapse.torch.transfers import Download, Upload, is_on, upload_of
from lapse.worker._worker import Worker

PULL_ROWS = 65536  # at a time, for `to_local`


@dataclass
class Batch:
    """The rows of a batch.

    Attributes
    ----------
    needs
        Its distinct keys, and where the key of each id is among them.
    rows
        Shape (u, length), in the host's memory.
    are_shared
        Whether others use this memory, so that it may not become part of an output.
    upload
        The rows on their way to the device of the module, if they are.
    """

    needs: Needs
    rows: torch.Tensor
    are_shared: bool
    upload: Upload | None = None

    @property
    def keys(self) -> np.ndarray:
        """int64 of shape (u,), each once."""
        return self.needs.keys

    @property
    def places(self) -> np.ndarray:
        """int64 of shape (n,): where the key of each id is among them."""
        return self.needs.places

    def places_on(self, device: torch.device) -> torch.Tensor:
        """The places, for the current stream of a device."""
        came = self.needs.upload
        return (came if is_on(came, device) else upload_of(self.places, device)).use()

    def rows_on(self, device: torch.device) -> torch.Tensor:
        """The rows, for the current stream of a device."""
        return (self.upload if is_on(self.upload, device) else Upload.start(self.rows, device)).use()


class TableModule(nn.Module):
    """A module whose rows are in a server.

    Parameters
    ----------
    kv : Worker
        Of the thread that uses the module.
    table : NamedTable
        One of the server's tables, ``tables["name"]``.
    padding_idx : int, optional
        This row gets no gradient. As in PyTorch it may count from the end.
    sync : bool
        Whether a forward pass waits until all earlier gradients of this worker have taken effect. By default those of
        the step before may be on their way, while its rows are read.
    device : torch.device or str, optional
        Where the output goes. By default it stays in the host's memory, and is computed by this package; with a device
        it is computed there by PyTorch, from the batch's distinct rows.
    """

    def __init__(self, kv: Worker, table: NamedTable, padding_idx: int | None, sync: bool, device: Any) -> None:
        super().__init__()
        if not isinstance(kv, Worker):
            raise TypeError(f"kv must be a Worker, as Server.worker and Server.run give it, not {type(kv).__name__}")
        if not isinstance(table, NamedTable):
            raise TypeError(f"table must be one of the server's tables, tables['name'], not {type(table).__name__}")
        self.kv, self.table, self.sync = kv, table, sync
        self.num_embeddings, self.embedding_dim = table.num_rows, table.length
        self.padding_idx = checked_padding(padding_idx, table)
        self.device = None if device is None else torch.empty(0, device=device).device  # "cuda" gets its number
        dtype = np.dtype(kv.pull(np.empty(0, np.int64)).wait().dtype)
        self.dtype = torch_dtype(dtype)
        padding = None if self.padding_idx is None else table.first + self.padding_idx
        self.gradients = Gradients(kv, table.name, table.first, padding)
        self._traffic = traffic_of(kv)
        self._place = Place(table.first, table.first + table.num_rows, table.length, dtype, self.device)
        self._traffic.places[table.first] = self._place
        self._distinct = Distinct()
        self._seen = 0  # number of gradient operations at the last forward pass in training
        # What autograd follows to the output; no parameter, since there is nothing that an optimizer could change.
        self._anchor = torch.zeros((), requires_grad=True)

    # Options that PyTorch has as parameters of an optimizer, or of the weight ----------------------------------------

    @property
    def lr(self) -> float | None:
        """The learning rate; None, as at first, is that of the table's optimizer. A schedule may change it."""
        return self.gradients.lr

    @lr.setter
    def lr(self, value: float | None) -> None:
        self.gradients.lr = value

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Whether the table is trained by this module."""
        self._anchor.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    # Rows ------------------------------------------------------------------------------------------------------------

    def _fetch(self, ids: torch.Tensor) -> Batch:
        """Pull the rows of a batch, each once.

        Raises
        ------
        RuntimeError
            If ids are not integers, as PyTorch does.
        IndexError
            If one is outside the table.
        """
        flat = as_ids(ids, self.table.name)
        needs = self._traffic.needs_of(self.table.first, flat) or self._needs_of(flat)
        came = self._came_ahead(needs.keys)
        if came is not None:
            return Batch(needs, came.values, came.are_shared, came.upload)
        rows = self._place.empty(len(needs.keys))
        self.kv.pull(needs.keys, out=rows.numpy().reshape(-1)).wait()
        return Batch(needs, rows, False)

    def _needs_of(self, ids: np.ndarray) -> Needs:
        """The distinct keys of a batch."""
        keys, places, bad = self._distinct.of(ids, self.num_embeddings, self.table.first)
        if bad >= 0:
            raise IndexError(
                f"id {ids[bad]} is outside the range 0 .. {self.num_embeddings - 1} of table {self.table.name!r}"
            )
        return Needs(ids, keys, places)

    def _came_ahead(self, keys: np.ndarray) -> Rows | None:
        """The rows that a `Prefetcher` has brought, if these may be used; whatever they must have has been applied."""
        is_training = self.training and torch.is_grad_enabled()
        self._traffic.settle(self._seen if is_training and not self.sync else None)
        if is_training:
            self._seen = self._traffic.begun
        return self._traffic.rows_of(self.table.first, keys, exact=self.sync or not is_training)

    def _padding_place(self, keys: np.ndarray) -> int | None:
        """Where the padding row is among the keys."""
        if self.padding_idx is None:
            return None
        found = np.flatnonzero(keys == self.table.first + self.padding_idx)
        return int(found[0]) if len(found) else None

    def _rows_on_device(self, batch: Batch) -> torch.Tensor:
        """The distinct rows on the device, through which autograd goes back to the server."""
        rows: torch.Tensor = _OnDevice.apply(self._anchor, self, batch)
        return rows

    def note_gradients(self, keys: np.ndarray, gradients: torch.Tensor) -> None:
        """Gradients of a batch's distinct rows are being computed on the device."""
        to = self.gradients
        self._traffic.downloads.append(Download.start(keys, gradients, to.are_held, to.send))

    # The whole table -------------------------------------------------------------------------------------------------

    def _all_rows(self) -> torch.Tensor:
        self._traffic.settle()
        rows = torch.empty((self.num_embeddings, self.embedding_dim), dtype=self.dtype)
        for first in range(0, self.num_embeddings, PULL_ROWS):
            part = rows[first : first + PULL_ROWS].numpy().reshape(-1)
            keys = np.arange(first, min(first + PULL_ROWS, self.num_embeddings)) + self.table.first
            self.kv.pull(keys, out=part).wait()
        return rows

    def extra_repr(self) -> str:
        """The table and its shape, as `print` shows the module."""
        shown = f"{self.table.name!r}, {self.num_embeddings}, {self.embedding_dim}"
        return shown if self.padding_idx is None else f"{shown}, padding_idx={self.padding_idx}"


class _OnDevice(torch.autograd.Function):
    """Rows to a device, and their gradients back, without waiting for either."""

    @staticmethod
    def forward(ctx: Any, _anchor: torch.Tensor, module: TableModule, batch: Batch) -> torch.Tensor:
        ctx.module, ctx.keys = module, batch.keys
        assert module.device is not None
        return batch.rows_on(module.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        # The thread is one of autograd's if the device is a GPU: the worker's own sends them.
        ctx.module.note_gradients(ctx.keys, gradient.detach())
        return None, None, None


def as_ids(ids: torch.Tensor, table: str) -> np.ndarray:
    """The ids of a batch as a flat int64 array; those on a GPU are copied to the host, which waits for them."""
    if not isinstance(ids, torch.Tensor):
        raise TypeError(f"ids of table {table!r} must be a tensor, not {type(ids).__name__}: torch.as_tensor(ids)")
    if ids.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"ids of table {table!r} are {ids.dtype}, but must be int64 or int32: ids.long()")
    return ids.detach().to("cpu", torch.int64).contiguous().view(-1).numpy()


def checked_padding(padding_idx: int | None, table: NamedTable) -> int | None:
    """A padding index from 0 on."""
    if padding_idx is None:
        return None
    if not -table.num_rows <= padding_idx < table.num_rows:
        raise ValueError(
            f"padding_idx is {padding_idx}, but must be from {-table.num_rows} to {table.num_rows - 1}: "
            f"table {table.name!r} has {table.num_rows} rows"
        )
    return padding_idx % table.num_rows
