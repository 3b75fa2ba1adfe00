"""Floor 6. Copies between the host's memory and a GPU, on streams of their own, which nobody waits for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch

Send = Callable[[np.ndarray, np.ndarray, bool, bool], None]


@dataclass(frozen=True)
class Upload:
    """A tensor on its way to a device.

    Attributes
    ----------
    tensor
        The copy; readable after `event`. On a device that is not a GPU it is complete.
    event
        The end of the copy, or None.
    """

    tensor: torch.Tensor
    event: Any

    @classmethod
    def start(cls, host: torch.Tensor, device: torch.device) -> Upload:
        """Copy a tensor; to a GPU from pinned memory, which may be forgotten at once but not overwritten."""
        if device.type != "cuda":
            return cls(host.to(device, copy=True), None)
        with torch.cuda.stream(_streams_of(device).up):
            copy = host.to(device, non_blocking=True)
            return cls(copy, torch.cuda.current_stream(device).record_event())

    def use(self) -> torch.Tensor:
        """The copy, for what the current stream does next."""
        if self.event is not None:
            stream = torch.cuda.current_stream(self.tensor.device)
            stream.wait_event(self.event)
            self.tensor.record_stream(stream)
        return self.tensor.detach()  # another object each time: it becomes an output of autograd


def is_on(upload: Upload | None, device: torch.device) -> TypeGuard[Upload]:
    """Whether there is an upload, and it goes to this device: modules of one table may be on several."""
    return upload is not None and upload.tensor.device == device


@dataclass
class Download:
    """Gradients on their way from a device to the host's memory.

    Attributes
    ----------
    keys
        int64 of shape (u,), each once.
    gradients
        Shape (u, length).
    are_held
        Whether `send` is to hold them back.
    send
        ``send(keys, gradients, are_held, are_finite)``.
    largest
        Their largest magnitude, which a GPU finds sooner than the host; None without one.
    event
        The end of the copy, or None.
    """

    keys: np.ndarray
    gradients: torch.Tensor
    are_held: bool
    send: Send
    largest: torch.Tensor | None = None
    event: Any = None

    @classmethod
    def start(
        cls,
        keys: np.ndarray,
        gradients: torch.Tensor,
        are_held: bool,
        send: Send,
    ) -> Download:
        """Copy gradients once the current stream has computed them."""
        if gradients.device.type != "cuda":
            return cls(keys, gradients.contiguous(), are_held, send)
        stream = _streams_of(gradients.device).down
        stream.wait_stream(torch.cuda.current_stream(gradients.device))
        with torch.cuda.stream(stream):
            largest = torch.linalg.vector_norm(gradients, torch.inf) if len(gradients) else gradients.new_zeros(())
            host, host_largest = (empty(x.shape, x.dtype, x.device) for x in (gradients, largest))
            host.copy_(gradients, non_blocking=True)
            host_largest.copy_(largest, non_blocking=True)
            gradients.record_stream(stream)
            return cls(keys, host, are_held, send, host_largest, stream.record_event())

    def is_here(self) -> bool:
        """Whether they can be read."""
        return self.event is None or self.event.query()

    def finish(self) -> None:
        """Wait for them, and send them."""
        if self.event is not None:
            self.event.synchronize()
        are_finite = self.largest is not None and math.isfinite(self.largest.item())
        self.send(self.keys, self.gradients.numpy(), self.are_held, are_finite)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None) -> torch.Tensor:
    """Room in the host's memory for what goes to a device; pinned if that is a GPU."""
    return torch.empty(shape, dtype=dtype, pin_memory=device is not None and device.type == "cuda")


def upload_of(array: np.ndarray, device: torch.device) -> Upload:
    """Copy an array, which may be overwritten at once."""
    host = empty(array.shape, torch.from_numpy(array).dtype, device)
    host.numpy()[...] = array
    return Upload.start(host, device)


@dataclass(frozen=True)
class _Streams:
    """Of a GPU. Two: rows that go up must not wait for gradients that are not computed yet."""

    up: Any
    down: Any


_streams: dict[torch.device, _Streams] = {}


def _streams_of(device: torch.device) -> _Streams:
    if device not in _streams:
        _streams[device] = _Streams(torch.cuda.Stream(device), torch.cuda.Stream(device))
    return _streams[device]
