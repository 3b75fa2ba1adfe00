"""Floor 5. Digests of integer arrays, which are compared instead of the arrays themselves."""

import hashlib
from collections.abc import Iterable

import numpy as np

BLOCK = 65536  # elements that are converted at a time


def sha256_of_integers(blocks: Iterable[np.ndarray]) -> str:
    """The SHA-256 of integers as 64-bit little-endian numbers, whatever their dtype.

    Parameters
    ----------
    blocks : iterable of numpy.ndarray
        One after another; how they are cut does not matter.

    Returns
    -------
    str
        In hexadecimal.
    """
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(np.ascontiguousarray(block, dtype="<i8").data)
    return digest.hexdigest()


def sha256_of_array(array: np.ndarray) -> str:
    """As `sha256_of_integers`, for one array, without a copy of all of it."""
    return sha256_of_integers(array[first : first + BLOCK] for first in range(0, len(array), BLOCK))
