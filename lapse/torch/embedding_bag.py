"""Floor 6. `EmbeddingBag`: sums or means of rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lapse.torch import _rows
from lapse.torch.table_module import Batch, TableModule
from lapse.torch.transfers import upload_of

if TYPE_CHECKING:
    from lapse.options.tables import NamedTable
    from lapse.worker._worker import Worker

MODES = ("sum", "mean")


class EmbeddingBag(TableModule):
    """The sum or mean of the rows of each bag of ids, as `torch.nn.EmbeddingBag`, from a table of a server.

    Parameters
    ----------
    kv, table, sync, device
        As in `Embedding`.
    mode : "mean" or "sum"
    padding_idx : int, optional
        Ids of this row count for nothing.
    include_last_offset : bool
        Whether offsets end with the number of ids.

    Raises
    ------
    ValueError
        In a forward pass: the shapes of ids, offsets and weights do not fit together.
    NotImplementedError
        Weights with a mode other than "sum".
    IndexError, RuntimeError, FloatingPointError
        As in `Embedding`.
    """

    def __init__(
        self,
        kv: Worker,
        table: NamedTable,
        mode: Literal["sum", "mean"] = "mean",
        *,
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        sync: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}, but must be 'sum' or 'mean'")
        super().__init__(kv, table, padding_idx, sync, device)
        self.mode, self.include_last_offset = mode, include_last_offset

    @torch._disable_dynamo
    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The bags: of shape (number of bags, length).

        Parameters
        ----------
        input : integer tensor
            Ids, of shape (bags, ids of a bag), or (n,) with `offsets`.
        offsets : integer tensor of shape (bags,), optional
            Where each bag begins in `input`; one more with `include_last_offset`.
        per_sample_weights : float tensor of the shape of `input`, optional
            Factors of the rows, for mode "sum". They may require a gradient.
        """
        starts = self._starts_of(input, offsets)
        weights = self._checked_weights(input, per_sample_weights)
        if self.include_last_offset and offsets is not None:  # ids behind it belong to no bag
            input = input[: starts[-1]]
            weights = None if weights is None else weights[: starts[-1]]
        if weights is not None and self.device is not None:
            weights = weights.to(self.device, non_blocking=True)
        batch = self._fetch(input)
        padding = self._padding_place(batch.keys)
        if self.device is None:
            bags: torch.Tensor = _Bags.apply(self._anchor, weights, self, batch, starts, padding)
            return bags
        rows = self._rows_on_device(batch)
        if not len(batch.places):
            return rows.new_zeros((len(starts) - 1, self.embedding_dim)) + rows.sum()
        places, ends = batch.places_on(self.device), upload_of(starts, self.device).use()
        return F.embedding_bag(
            places,
            rows,
            ends,
            mode=self.mode,
            per_sample_weights=weights,
            include_last_offset=True,
            padding_idx=padding,
        )

    def to_local(self) -> nn.EmbeddingBag:
        """All rows as a module of PyTorch in this process, with the same options."""
        return nn.EmbeddingBag.from_pretrained(
            self._all_rows(),
            freeze=False,
            mode=self.mode,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )

    def _starts_of(self, input: torch.Tensor, offsets: torch.Tensor | None) -> np.ndarray:
        """Where each bag begins in the flat ids, and at last their number."""
        if input.dim() == 2:
            if offsets is not None:
                raise ValueError("offsets are given, but the ids have two dimensions: each row is a bag")
            return np.arange(input.shape[0] + 1, dtype=np.int64) * input.shape[1]
        if input.dim() != 1:
            raise ValueError(f"ids have {input.dim()} dimensions, but must have 1 (with offsets) or 2")
        if offsets is None:
            raise ValueError("ids have one dimension, so offsets must say where each bag begins")
        if offsets.dim() != 1 or offsets.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"offsets must be a tensor of one dimension of int64 or int32, not {offsets.dim()} of {offsets.dtype}"
            )
        starts = offsets.detach().to("cpu", torch.int64).numpy()
        if not self.include_last_offset:
            starts = np.append(starts, len(input))
        self._check_starts(starts, len(input))
        return np.ascontiguousarray(starts)

    def _check_starts(self, starts: np.ndarray, count: int) -> None:
        if not len(starts):
            raise ValueError("offsets are empty: include_last_offset needs at least one, the number of ids")
        if len(starts) > 1 and starts[0] != 0:
            raise ValueError(f"offsets begin with {starts[0]}, but the first bag begins at 0")
        if (np.diff(starts) < 0).any() or starts[-1] > count:
            raise ValueError(f"offsets must ascend and be at most {count}, the number of ids: {starts.tolist()[:10]}")

    def _checked_weights(self, input: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor | None:
        if weights is None:
            return None
        if self.mode != "sum":
            raise NotImplementedError(f"per_sample_weights work with mode 'sum' only, not {self.mode!r}")
        if weights.shape != input.shape:
            raise ValueError(
                f"per_sample_weights have shape {tuple(weights.shape)}, but must have that of the ids, "
                f"{tuple(input.shape)}"
            )
        if weights.dtype != self.dtype:
            raise RuntimeError(
                f"per_sample_weights are {weights.dtype}, but the rows {self.dtype}: weights.to(rows.dtype)"
            )
        return weights.reshape(-1)


class _Bags(torch.autograd.Function):
    """From distinct rows to bags, and the sum of gradients back."""

    @staticmethod
    def forward(
        ctx: Any,
        _anchor: torch.Tensor,
        weights: torch.Tensor | None,
        module: EmbeddingBag,
        batch: Batch,
        starts: np.ndarray,
        padding: int | None,
    ) -> torch.Tensor:
        ctx.module, ctx.keys, ctx.places, ctx.starts = module, batch.keys, batch.places, starts
        ctx.skipped = -1 if padding is None else padding
        ctx.factors = None if weights is None else weights.detach().contiguous().numpy()
        ctx.rows = batch.rows if ctx.needs_input_grad[1] else None
        bags = batch.rows.new_empty((len(starts) - 1, batch.rows.shape[1]))
        _rows.sum_bags(
            batch.rows.numpy(), batch.places, starts, ctx.factors, ctx.skipped, module.mode == "mean", bags.numpy()
        )
        return bags

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient, of_weights = gradient.contiguous(), None
        if ctx.needs_input_grad[1]:
            of_weights = gradient.new_zeros(len(ctx.places))
            _rows.dot_bags(gradient.numpy(), ctx.rows.numpy(), ctx.places, ctx.starts, ctx.skipped, of_weights.numpy())
        if ctx.needs_input_grad[0]:
            sums = gradient.new_empty((len(ctx.keys), gradient.shape[1]))
            is_mean = ctx.module.mode == "mean"
            _rows.sum_bag_gradients(
                gradient.numpy(), ctx.places, ctx.starts, ctx.factors, ctx.skipped, is_mean, sums.numpy()
            )
            to = ctx.module.gradients
            to.send(ctx.keys, sums.numpy(), to.are_held)
        return None, of_weights, None, None, None, None
