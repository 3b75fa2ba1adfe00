"""Floor 6. Whether gradients of dense layers are finite; on a GPU this is known a step later: nobody waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lapse.torch import transfers


@dataclass
class _Pending:
    """Largest magnitudes of the parameters' gradients, on their way from a GPU."""

    parameters: list[nn.Parameter]
    largest: torch.Tensor
    event: Any


class FiniteCheck:
    """Raises for gradients that are NaN or infinite: at once if they are in the host's memory, else in the next call.

    Parameters
    ----------
    module : torch.nn.Module
        Whose parameters they are, for their names.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._pending: list[_Pending] = []

    def check(self, parameters: Sequence[nn.Parameter], *, at_once: bool) -> None:
        """Check what was left of earlier calls, and the gradients of these parameters, which have one.

        Parameters
        ----------
        parameters : sequence of torch.nn.Parameter
        at_once : bool
            Wait for those on a GPU, too.

        Raises
        ------
        FloatingPointError
            With the name of the first parameter.
        """
        self.finish()
        by_device: dict[torch.device, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.numel():
                by_device.setdefault(parameter.device, []).append(parameter)
        for device, group in by_device.items():
            largest = _largest([parameter.grad for parameter in group])
            if device.type != "cuda" or at_once:
                self._raise_if_bad(group, largest.cpu(), "no step was made")
            else:
                host = transfers.empty(largest.shape, largest.dtype, device)
                host.copy_(largest, non_blocking=True)
                self._pending.append(_Pending(group, host, torch.cuda.current_stream(device).record_event()))

    def finish(self) -> None:
        """Wait for what is on its way, and check it."""
        pending, self._pending = self._pending, []
        for part in pending:
            part.event.synchronize()
            outcome = "on a GPU this shows a step later, so that a step was made with them: go back to a checkpoint"
            self._raise_if_bad(part.parameters, part.largest, outcome)

    def _raise_if_bad(self, parameters: list[nn.Parameter], largest: torch.Tensor, outcome: str) -> None:
        is_good = torch.isfinite(largest)
        if is_good.all():
            return
        bad = parameters[int(torch.argmin(is_good.int()))]
        raise FloatingPointError(
            f"the gradient of {name_of(self._module, bad)} has NaN or infinite elements, which would spread to all "
            f"workers; {outcome}. Look for the first operation that gives them with torch.autograd.detect_anomaly(), "
            "lower the learning rate, or clip"
        )


def name_of(module: nn.Module, parameter: nn.Parameter) -> str:
    """What a parameter is called in a module, for messages: it may also be one that only an optimizer has."""
    return next((name for name, known in module.named_parameters() if known is parameter), "a parameter")


def _largest(gradients: list[Any]) -> torch.Tensor:
    """The largest magnitude of each, NaN if it has one: one pass over memory, and if possible one call for all."""
    if hasattr(torch, "_foreach_norm"):  # as `torch.nn.utils.clip_grad_norm_` does
        return torch.stack(torch._foreach_norm(gradients, torch.inf))
    return torch.stack([torch.linalg.vector_norm(gradient, torch.inf) for gradient in gradients])
