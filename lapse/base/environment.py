"""Floor 0. The environment variables that a server reads."""

import os


def shares_memory() -> bool:
    """Whether LAPSE_SHARED_MEMORY lets ranks of one host share memory.

    Raises
    ------
    ValueError
        When it is neither 0 nor 1.
    """
    variable = os.environ.get("LAPSE_SHARED_MEMORY")
    if variable not in (None, "", "0", "1"):
        raise ValueError(f"the environment variable LAPSE_SHARED_MEMORY is {variable!r}, but must be 0 or 1")
    return variable != "0"


def sharing_ranks() -> int | None:
    """How many neighbouring ranks of a host share memory, by LAPSE_SHARED_MEMORY_RANKS; None: all of the host.

    Raises
    ------
    ValueError
        When it is not a positive number.
    """
    variable = os.environ.get("LAPSE_SHARED_MEMORY_RANKS")
    if not variable:
        return None
    if not variable.isdecimal() or int(variable) == 0:
        raise ValueError(
            f"the environment variable LAPSE_SHARED_MEMORY_RANKS is {variable!r}, but must be a positive number"
        )
    return int(variable)
