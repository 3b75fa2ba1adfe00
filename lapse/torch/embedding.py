"""Floor 6. `Embedding`: rows of a table by their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from lapse.torch import _rows
from lapse.torch.table_module import Batch, TableModule

if TYPE_CHECKING:
    from lapse.options.tables import NamedTable
    from lapse.worker._worker import Worker


class Embedding(TableModule):
    """The rows of ids, as `torch.nn.Embedding`, from a table of a server.

    A forward pass pulls each row of the batch once. A backward pass sums the gradients of each row and lets the table's
    optimizer apply them where the row is, asynchronously; there is no step of an optimizer to call. The module has no
    parameters, and its `state_dict` no rows: `Server.save` saves them.

    Parameters
    ----------
    kv : Worker
        The worker of this thread.
    table : NamedTable
        One of the server's tables, ``tables["users"]``.
    padding_idx : int, optional
        Ids of this row get no gradient.
    sync : bool
        Wait in each forward pass for all earlier gradients of this worker. By default those of the step before may be
        under way, so that a row may lack them.
    device : torch.device or str, optional
        Compute the output there, from distinct rows that go up from pinned memory; see `docs/pytorch.md`.

    Raises
    ------
    IndexError
        In a forward pass: an id is outside the table.
    RuntimeError
        Ids are not int64 or int32.
    FloatingPointError
        In a backward pass: a gradient is NaN or infinite. (With a `device`: in the next forward pass.)

    Notes
    -----
    `max_norm` and `scale_grad_by_freq` of PyTorch are missing: the first changes rows while they are read, which
    workers that share a table would see or not, by chance; the second is what `RowWiseAdagrad` or `Adam` are for.
    """

    def __init__(
        self,
        kv: Worker,
        table: NamedTable,
        padding_idx: int | None = None,
        *,
        sync: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(kv, table, padding_idx, sync, device)

    @torch._disable_dynamo  # torch.compile leaves it as it is and compiles what is around it
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The rows: of shape ``input.shape + (length,)``."""
        batch = self._fetch(input)
        if self.device is None:
            out: torch.Tensor = _Lookup.apply(self._anchor, self, batch)
            return out.view(*input.shape, self.embedding_dim)
        places = batch.places_on(self.device).view(input.shape)
        return F.embedding(places, self._rows_on_device(batch), self._padding_place(batch.keys))

    def to_local(self) -> nn.Embedding:
        """All rows as a module of PyTorch in this process."""
        return nn.Embedding.from_pretrained(self._all_rows(), freeze=False, padding_idx=self.padding_idx)


class _Lookup(torch.autograd.Function):
    """From distinct rows to those of each id, and the sum of gradients back."""

    @staticmethod
    def forward(ctx: Any, _anchor: torch.Tensor, module: Embedding, batch: Batch) -> torch.Tensor:
        ctx.module, ctx.keys, ctx.places = module, batch.keys, batch.places
        if (
            len(batch.keys) == len(batch.places) and not batch.are_shared
        ):  # each occurs once: the rows are in their order already
            return batch.rows.view_as(batch.rows)
        out = batch.rows.new_empty((len(batch.places), batch.rows.shape[1]))
        _rows.gather(batch.rows.numpy(), batch.places, out.numpy())
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        gradient = gradient.contiguous()
        if len(ctx.keys) < len(ctx.places):
            sums = gradient.new_empty((len(ctx.keys), gradient.shape[1]))
            _rows.sum_gradients(gradient.numpy(), ctx.places, sums.numpy())
            gradient = sums
        to = ctx.module.gradients
        to.send(ctx.keys, gradient.numpy(), to.are_held)
        return None, None, None
