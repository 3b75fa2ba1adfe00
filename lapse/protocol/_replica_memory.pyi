from collections.abc import Sequence

from numpy.typing import ArrayLike

from lapse._store import Store
from lapse.storage._segment import Segment

def replica_bytes(store: Store, keys: ArrayLike, in_place: bool = False) -> int: ...
def replicate(
    store: Store,
    keys: ArrayLike,
    leaders: Sequence[int] | None = None,
    segment: Segment | None = None,
    in_place: bool = False,
) -> None: ...
