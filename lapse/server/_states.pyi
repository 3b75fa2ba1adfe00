from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lapse._store import Store

def state_lengths(store: Store, keys: NDArray[np.int64]) -> NDArray[np.int64]: ...
def read_states(store: Store, keys: NDArray[np.int64]) -> NDArray[Any]: ...
def fill_states(store: Store, keys: NDArray[np.int64], states: ArrayLike) -> None: ...
