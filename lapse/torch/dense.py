"""Floor 6. `Dense`: the layers that every worker has a copy of, kept equal over all workers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lapse.base.checks import check_int
from lapse.torch.finite import FiniteCheck, name_of
from lapse.torch.gradients import flush
from lapse.torch.state import from_plain, to_plain
from lapse.torch.traffic import traffic_of

if TYPE_CHECKING:
    from lapse.worker._worker import Worker

MAX_STEPS = 1_000_000_000


class Dense(nn.Module):
    """A module whose parameters are equal on all workers: a step uses the mean of their gradients.

    The parameters start as those of worker 0. A worker that has no more batches calls `join`, in which it takes part in
    the steps of the others; all workers must call it. Calls `module` when it is called.

    Parameters
    ----------
    module : torch.nn.Module
        The dense layers, or a whole model: `Embedding` and `EmbeddingBag` have no parameters, and are left alone.
    optimizer : torch.optim.Optimizer
        Of the module's parameters, with equal options on all workers.
    kv : Worker
        The worker of this thread.
    every : int, optional
        Let each worker make steps of its own, and average the parameters after so many of them (local SGD, as in Stich,
        ICLR 2019). By default the gradients are averaged, at each step.

    Examples
    --------
    >>> dense = Dense(model, torch.optim.Adam(model.parameters()), kv)      # doctest: +SKIP
    >>> for batch in batches:                                               # doctest: +SKIP
    ...     dense.zero_grad()
    ...     loss_of(dense(batch)).backward()
    ...     dense.step()
    >>> dense.join()                                                        # doctest: +SKIP
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, kv: Worker, every: int | None = None
    ) -> None:
        super().__init__()
        self.module, self.optimizer, self.kv = module, optimizer, kv
        self.every = None if every is None else check_int(every, "every", 1, MAX_STEPS)
        self._steps, self._finite = 0, FiniteCheck(module)
        if kv.num_workers > 1:
            self._mean(self._values(), kv.id == 0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module makes of it."""
        return self.module(*args, **kwargs)

    def step(self) -> None:
        """Average the gradients of all workers, and let the optimizer make its step; with `every` see there.

        A parameter without a gradient on some workers gets the mean of the others; without any it is left out.

        Raises
        ------
        FloatingPointError
            If a gradient is NaN or infinite; on a GPU, if none are averaged, those of the step before.
        TypeError
            If a gradient is sparse.
        """
        traffic_of(self.kv).collect()
        self._check_gradients()
        self._steps += 1
        if self.kv.num_workers == 1:
            self.optimizer.step()
        elif self.every is None:
            self._step_together(True)
        else:
            self.optimizer.step()
            if self._steps % self.every == 0:
                self._finite.finish()
                self._mean(self._values(), True, is_training=True)

    def join(self) -> None:
        """Take part in the steps of those workers that have batches left, until none has. Called by all workers.

        Afterwards parameters are equal everywhere; floating-point buffers, such as the means of a `BatchNorm`, are
        averaged. All gradients of tables have taken effect, as after `flush`.
        """
        self._finite.finish()
        flush(self.kv)
        if self.kv.num_workers == 1:
            return
        if self.every is None:
            while self._step_together(False):
                pass
            self._mean(self._float_buffers(), True)
        else:
            counts = True  # only at first: then it has the mean of those that trained on
            while self._mean(self._values(), counts):
                counts = False

    # A checkpoint ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Parameters, buffers and the optimizer's state, as arrays, to be saved with the tables.

        Equal on all workers after `join`, so that ``server.save(path, {"dense": dense.state()})`` saves both as of one
        moment: either both are replaced, or neither.
        """
        self._finite.finish()
        module = self.module.state_dict()
        versions = getattr(module, "_metadata", {})  # of the modules inside, by which PyTorch reads old states
        return to_plain({"module": module, "versions": dict(versions), "optimizer": self.optimizer.state_dict()})

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave: ``dense.restore(server.load(path)["dense"])``, on every worker.

        Raises
        ------
        RuntimeError, ValueError
            If it belongs to another module or optimizer.
        """
        known = from_plain(state)
        module = OrderedDict(known["module"])
        module._metadata = known["versions"]  # type: ignore[attr-defined]
        self.module.load_state_dict(module)
        self.optimizer.load_state_dict(known["optimizer"])

    # What is exchanged -----------------------------------------------------------------------------------------------

    def _step_together(self, has_batch: bool) -> bool:
        """A step of all workers; whether any has a batch. Without one a worker's gradients count for nothing."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        given = [p.grad if has_batch else None for p in parameters]
        flat = _concatenated([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, given)])
        counts = [float(has_batch), *(float(g is not None) for g in given)]
        total = self.kv.allreduce(np.concatenate([flat, np.array(counts, flat.dtype)]))
        sums, num_batches, uses = total[: len(flat)], total[len(flat)], total[len(flat) + 1 :]
        if num_batches == 0:
            return False
        for parameter, used, part in zip(parameters, uses, _divided(sums / num_batches, parameters)):
            parameter.grad = part if used else None
        self.optimizer.step()
        return True

    def _mean(self, values: list[torch.Tensor], counts: bool, is_training: bool = False) -> bool:
        """Replace values by the mean of those workers for which they count; whether any worker is in training."""
        flat = _concatenated(values)
        flags = np.array([float(counts), float(is_training)], flat.dtype)
        total = self.kv.allreduce(np.concatenate([flat * flags[0], flags]))
        if total[-2] > 0:
            with torch.no_grad():
                for value, part in zip(values, _divided(total[:-2] / total[-2], values)):
                    value.copy_(part)
        return bool(total[-1] > 0)

    def _values(self) -> list[torch.Tensor]:
        return [*self.module.parameters(), *self._float_buffers()]

    def _float_buffers(self) -> list[torch.Tensor]:
        return [buffer for buffer in self.module.buffers() if buffer.is_floating_point()]

    def _check_gradients(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            if parameter.grad.is_sparse:
                raise TypeError(
                    f"the gradient of {name_of(self.module, parameter)} is sparse, which Dense does not average: keep "
                    "the table in the server, with lapse.torch.Embedding or EmbeddingBag, or create its module with "
                    "sparse=False"
                )
        # To be averaged they are waited for in any case, and must not spread.
        self._finite.check(parameters, at_once=self.kv.num_workers > 1 and self.every is None)


def _concatenated(tensors: list[torch.Tensor]) -> np.ndarray:
    """All elements as a flat array: float64 if any tensor is, else float32."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    if not tensors:
        return np.empty(0, np.float32)
    return torch.cat([t.detach().reshape(-1).to(dtype) for t in tensors]).cpu().numpy()


def _divided(flat: np.ndarray, like: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Parts of a flat array, with the shapes, dtypes and devices of some tensors."""
    parts = torch.from_numpy(flat).split([t.numel() for t in like])
    return (part.view(t.shape).to(t.device, t.dtype, copy=True) for part, t in zip(parts, like))
