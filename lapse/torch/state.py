"""Floor 6. What `state_dict` of a module or an optimizer gives, as arrays and what JSON can hold; and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

PAIRS = "pairs"  # of a dict whose keys are not all strings
BITS = "bits of"  # dtypes that NumPy does not have, as integers of the same size

_INTEGERS = {1: torch.uint8, 2: torch.int16}


def to_plain(value: Any) -> Any:
    """Tensors become arrays, which share memory with those of the host, and tuples lists."""
    if isinstance(value, torch.Tensor):
        return _to_array(value)
    if isinstance(value, dict):
        if all(isinstance(name, str) for name in value):
            return {name: to_plain(item) for name, item in value.items()}
        return {PAIRS: [[name, to_plain(item)] for name, item in value.items()]}
    return [to_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _to_array(tensor: torch.Tensor) -> Any:
    on_host = tensor.detach().cpu()
    try:
        return on_host.numpy()
    except TypeError:
        name = str(tensor.dtype).removeprefix("torch.")
        return {f"{BITS} {name}": on_host.contiguous().view(_INTEGERS[tensor.element_size()]).numpy()}


def from_plain(value: Any) -> Any:
    """What `to_plain` was given, with tensors of the host's memory, and lists for tuples."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        if set(value) == {PAIRS}:
            return {name: from_plain(item) for name, item in value[PAIRS]}
        (only,) = value if len(value) == 1 else (None,)
        if isinstance(only, str) and only.startswith(BITS) and isinstance(value[only], np.ndarray):
            return torch.from_numpy(value[only].copy()).view(getattr(torch, only.split()[-1]))
        return {name: from_plain(item) for name, item in value.items()}
    return [from_plain(item) for item in value] if isinstance(value, list) else value
