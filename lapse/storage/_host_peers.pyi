from collections.abc import Sequence

from typing_extensions import Self

from lapse.storage._segment import Segment

class HostPeers:
    def __new__(cls, rank: int = 0, page: Segment | None = None, local_ranks: Sequence[int] = ()) -> Self: ...
    @property
    def can_wake(self) -> bool: ...
    @staticmethod
    def page_bytes(ranks: int) -> int: ...
