"""Floor 5. Metadata of a checkpoint: what JSON can hold, and NumPy arrays, which go into a file of their own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

#: In place of an array, JSON has an object with this key alone, and the name of the array in the file.
ARRAY = "__array__"
DTYPES = "?bhilqBHILQefd"  # their characters in NumPy: what safetensors can hold


def check_metadata(metadata: Any) -> None:
    """Raise what is wrong with metadata, with the place of the first entry that cannot be saved.

    Raises
    ------
    TypeError
    """
    if not isinstance(metadata, (dict, type(None))):
        raise TypeError(f"metadata must be a dict of what JSON can hold, and of arrays, not {type(metadata).__name__}")
    try:
        for name, value in (metadata or {}).items():
            _check_entry(f"metadata[{name!r}]", name, value)
    except RecursionError:
        raise TypeError("metadata contains itself, or is nested too deeply for JSON") from None
    if names_in(metadata):
        raise TypeError(
            f"metadata has a dict with the key {ARRAY!r} alone, which stands for an array: name it otherwise"
        )


def _check_entry(where: str, name: Any, value: Any) -> None:
    """Raise what is wrong with an entry, or with the first one inside it."""
    if not isinstance(name, str):  # JSON would make a string of it: another key when it is loaded
        raise TypeError(f"{where} has a key of type {type(name).__name__}, but JSON has strings only: write str(key)")
    if isinstance(value, np.ndarray):
        if value.dtype.char not in DTYPES:
            raise TypeError(f"{where} is an array of {value.dtype}, which cannot be saved: convert it")
        return
    if isinstance(value, dict):
        for inner, item in value.items():
            _check_entry(f"{where}[{inner!r}]", inner, item)
        return
    try:
        json.dumps(value, default=_array_only)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(value, (list, tuple)):
            for inner, item in enumerate(value):
                _check_entry(f"{where}[{inner}]", str(inner), item)
        raise TypeError(
            f"{where} is of type {type(value).__name__}, which cannot be written as JSON ({error}): convert it, "
            "as in float(x), or save an array"
        ) from None


def _array_only(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.char in DTYPES:
        return None
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def divide(metadata: dict[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """What goes into the manifest, and the arrays by the names that it has for them."""
    arrays: dict[str, np.ndarray] = {}
    return _without_arrays(metadata, arrays), arrays


def _without_arrays(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        name = str(len(arrays))
        arrays[name] = np.ascontiguousarray(value).reshape(value.shape)  # which would give a number one dimension
        return {ARRAY: name}
    if isinstance(value, dict):
        return {name: _without_arrays(item, arrays) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(item, arrays) for item in value]
    return value


def names_in(value: Any) -> set[str]:
    """The names of all arrays that a manifest's metadata has."""
    if isinstance(value, dict):
        if set(value) == {ARRAY}:
            return {str(value[ARRAY])}
        return set().union(*map(names_in, value.values()))
    return set().union(*map(names_in, value)) if isinstance(value, (list, tuple)) else set()


def join(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Metadata as it was saved, from what `divide` gave."""
    if isinstance(value, dict):
        if set(value) == {ARRAY}:
            return arrays[value[ARRAY]]
        return {name: join(item, arrays) for name, item in value.items()}
    return [join(item, arrays) for item in value] if isinstance(value, list) else value
