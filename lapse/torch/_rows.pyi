from typing import Any

import numpy as np
from numpy.typing import NDArray

class Distinct:
    def of(
        self, ids: NDArray[np.int64], limit: int, first: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], int]: ...

def are_shifted(ids: NDArray[np.int64], first: int, keys: NDArray[np.int64]) -> bool: ...
def gather(rows: NDArray[Any], places: NDArray[np.int64], out: NDArray[Any]) -> None: ...
def sum_bags(
    rows: NDArray[Any],
    places: NDArray[np.int64],
    starts: NDArray[np.int64],
    factors: NDArray[Any] | None,
    skipped: int,
    is_mean: bool,
    out: NDArray[Any],
) -> None: ...
def sum_gradients(gradients: NDArray[Any], places: NDArray[np.int64], sums: NDArray[Any]) -> None: ...
def sum_bag_gradients(
    gradients: NDArray[Any],
    places: NDArray[np.int64],
    starts: NDArray[np.int64],
    factors: NDArray[Any] | None,
    skipped: int,
    is_mean: bool,
    sums: NDArray[Any],
) -> None: ...
def dot_bags(
    gradients: NDArray[Any],
    rows: NDArray[Any],
    places: NDArray[np.int64],
    starts: NDArray[np.int64],
    skipped: int,
    out: NDArray[Any],
) -> None: ...
def first_not_finite(rows: NDArray[Any]) -> int: ...
