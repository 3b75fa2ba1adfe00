"""Floor 6. From the gradients of a batch's rows to the server, and when they are held back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from torch import nn

from lapse.torch._rows import first_not_finite
from lapse.torch.traffic import traffic_of
from lapse.worker._worker import Worker, apply_distinct_gradients, count_step


class Gradients:
    """Sends the gradients of one module's rows.

    Parameters
    ----------
    kv : Worker
    name : str
        The table, for errors.
    first : int
        Key of its row 0.
    padding : int or None
        Key of the row that gets no gradient.
    """

    def __init__(self, kv: Worker, name: str, first: int, padding: int | None) -> None:
        self._kv, self._name, self._first, self._padding = kv, name, first, padding
        self._traffic = traffic_of(kv)
        self._held: list[tuple[np.ndarray, np.ndarray]] = []
        self.lr: float | None = None
        self.are_held = False

    def send(self, keys: np.ndarray, sums: np.ndarray, hold: bool, are_finite: bool = False) -> None:
        """Let the server apply the gradients of distinct keys, or hold them back; `sums` may be reused afterwards.

        Parameters
        ----------
        keys : int64 array of shape (u,)
        sums : array of shape (u, length)
        hold : bool
        are_finite : bool
            Whether this is known; else it is looked for.

        Raises
        ------
        FloatingPointError
            If one is NaN or infinite. Nothing has been sent then.
        """
        bad = -1 if are_finite else first_not_finite(sums)
        if bad >= 0:
            raise FloatingPointError(
                f"table {self._name!r}: the gradient of id {keys[bad] - self._first} has "
                f"{sums[bad][~np.isfinite(sums[bad])][0]}, and would make its row useless; nothing of this batch was "
                "applied to the table. Look for the first operation that gives it with "
                "torch.autograd.detect_anomaly(), lower the learning rate, or clip. (A GradScaler of float16 tries "
                "such steps: use bfloat16, without one.)"
            )
        keys, sums = self._without_padding(keys, sums)
        if hold:
            self._held.append((keys.copy(), sums.copy()))
            self._traffic.add(None)
            return
        are_distinct = not self._held
        if self._held:
            parts = [*self._held, (keys, sums)]
            keys, sums = (np.concatenate(arrays) for arrays in zip(*parts))
            self._held.clear()
        step = count_step(self._kv, self._name)
        apply = apply_distinct_gradients if are_distinct else Worker.apply_gradients
        self._traffic.add(apply(self._kv, keys, sums.reshape(-1), self.lr, step) if len(keys) else None)

    def _without_padding(self, keys: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._padding is None or not len(at := np.flatnonzero(keys == self._padding)):
            return keys, sums
        return np.delete(keys, at), np.delete(sums, at, axis=0)


@contextlib.contextmanager
def no_sync(module: nn.Module) -> Iterator[None]:
    """Hold back the gradients of backward passes inside the block, for gradient accumulation over several batches.

    The next backward pass outside sends their sum with its own. (PyTorch's `DistributedDataParallel` has a block of the
    same name.) The gradients of other parameters accumulate by themselves until the optimizer's step.

    Parameters
    ----------
    module : torch.nn.Module
        An `Embedding` or `EmbeddingBag`, or a module with some inside.

    Examples
    --------
    >>> with lapse.torch.no_sync(model):         # doctest: +SKIP
    ...     (loss(model(first)) / 2).backward()
    >>> (loss(model(second)) / 2).backward()     # doctest: +SKIP
    >>> dense.step()                             # doctest: +SKIP
    """
    parts = (getattr(inner, "gradients", None) for inner in module.modules())
    found = [part for part in parts if isinstance(part, Gradients)]
    before = [gradients.are_held for gradients in found]
    for gradients in found:
        gradients.are_held = True
    try:
        yield
    finally:
        for gradients, were_held in zip(found, before):
            gradients.are_held = were_held


def flush(kv: Worker) -> None:
    """Return when all gradients of this worker's modules have taken effect, those of replicated rows on all ranks.

    An evaluation (a forward pass out of training mode, or without gradients) waits by itself for this worker's
    gradients of rows that are not replicated. For those of other workers a ``kv.barrier()`` must follow.
    """
    traffic_of(kv).settle()
    kv.wait_replica_sync()
