"""Floor 0. Checks of arguments that several modules make."""

import numpy as np


def whole(value, name, low, high):
    """The int that was given for the argument `name`.

    Raises
    ------
    TypeError, ValueError
        For what is not an integer (a bool is none); for one outside low .. high.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, but must be from {low} to {high}")
    return int(value)


def number(value, name, low, high):
    """The float that was given for the argument `name`; errors as in `whole`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, but must be from {low} to {high}")
    return float(value)
