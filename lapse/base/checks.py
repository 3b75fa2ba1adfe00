"""Floor 0. Checks of arguments that several modules need."""

from typing import Any

import numpy as np

MAX_SHOWN = 100  # characters of a value in an error


def brief(value: Any) -> str:
    """A value as an error shows it: in one line, and not the whole of an array."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of {value.dtype}, shape {value.shape}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # its own code fails
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def check_int(value: Any, name: str, low: int, high: int) -> int:
    """The int that was given for the argument `name`.

    Raises
    ------
    TypeError
        When it is not an integer; a bool is not one.
    ValueError
        When it is outside low .. high.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, not {brief(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, but must be from {low} to {high}")
    return int(value)


def check_float(value: Any, name: str, low: float, high: float) -> float:
    """The float that was given for the argument `name`; errors as in `check_int`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, not {brief(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, but must be from {low} to {high}")
    return float(value)


def check_lengths(given: Any, num_keys: int, most: int) -> int | np.ndarray:
    """The value lengths: an int for all keys, or an array of shape (num_keys,).

    Raises
    ------
    TypeError
        When they are not integers.
    ValueError
        When the array has another shape, or a length is outside 1 .. most.
    """
    if np.ndim(given) == 0:
        return check_int(given, "value_lengths", 1, most)
    array = np.asarray(given)
    if array.dtype.kind not in "iu":
        raise TypeError(f"value_lengths must be integers, not {array.dtype}")
    if array.shape != (num_keys,):
        raise ValueError(
            f"value_lengths has shape {array.shape}, but must have one number for each of the "
            f"{num_keys} keys, shape ({num_keys},)"
        )
    for bad in (array.min(), array.max()):
        if not 1 <= bad <= most:
            raise ValueError(
                f"value_lengths has {bad} at key {int(np.argmax(array == bad))}, but lengths must be from 1 to {most}"
            )
    return array
