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


def dilation() -> float:
    """How many times slower time goes, by LAPSE_DILATION, for experiments with emulated hosts: 1 as a rule.

    Everything that the server does by the clock takes as many times longer: sleeps of waiting threads, and the time
    between rounds of replication.

    Raises
    ------
    ValueError
        When it is not a number from 1 to 10,000.
    """
    variable = os.environ.get("LAPSE_DILATION") or "1"
    try:
        times = float(variable)
    except ValueError:
        times = 0.0
    if not 1 <= times <= 10_000:
        raise ValueError(
            f"the environment variable LAPSE_DILATION is {variable!r}, but must be a number from 1 to 10,000"
        )
    return times


def silence_seconds() -> float:
    """After how long a rank of another host that sends nothing ends the job, by LAPSE_SILENCE_SECONDS: 30; 0 is never.

    Raises
    ------
    ValueError
        When it is neither 0 nor a number from 1 to 86,400.
    """
    return _seconds("LAPSE_SILENCE_SECONDS")


def stall_seconds() -> float:
    """After how long a wait without progress is reported, by LAPSE_STALL_REPORT: 30; 0 is never.

    Raises
    ------
    ValueError
        When it is neither 0 nor a number from 1 to 86,400.
    """
    return _seconds("LAPSE_STALL_REPORT")


def _seconds(name: str) -> float:
    variable = os.environ.get(name) or "30"
    try:
        seconds = float(variable)
    except ValueError:
        seconds = -1.0
    if seconds != 0 and not 1 <= seconds <= 86_400:
        raise ValueError(
            f"the environment variable {name} is {variable!r}, but must be a number of seconds from 1 to 86,400, or 0 "
            "for never"
        )
    return seconds


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
