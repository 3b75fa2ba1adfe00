import numpy as np
from typing_extensions import Self

from lapse._store import Store

RULES: dict[str, int]

class Protocol:
    def __new__(cls, store: Store, workers: int = 0, max_in_flight: int = ...) -> Self: ...
    @property
    def relocations(self) -> dict[str, int]: ...
    @property
    def replica_counters(self) -> tuple[int, int]: ...
    @property
    def at_rest(self) -> bool: ...
    def manage_replicas(
        self,
        *,
        interval: float = 0.0,
        max_pending: int = 0,
        threshold: float = 0.0,
        average: bool = False,
        clip: float = 0.0,
        combine: str = "sum",
        constant: float = 0.0,
        wire: str = "exact",
        levels: np.ndarray | None = None,
    ) -> None: ...
    def pace_rounds(self, interval: float, max_pending: int, max_late: int) -> None: ...
    def enter_setup(self, inside: bool) -> None: ...
