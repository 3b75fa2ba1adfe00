from collections.abc import Sequence

from typing_extensions import Self

from lapse.communication._failure import Failure
from lapse.communication._mail import Mail
from lapse.protocol._protocol import Protocol
from lapse.storage._host_peers import HostPeers
from mpi4py import MPI

class Comm:
    def __new__(
        cls,
        protocol: Protocol,
        communicator: MPI.Intracomm | None,
        host_peers: HostPeers,
        crowded: bool,
        dilation: float = 1.0,
        partners: Sequence[int] = (),
        host_names: Sequence[str] = (),
        silence: float = 0.0,
        stall: float = 0.0,
    ) -> Self: ...
    @property
    def failure(self) -> Failure: ...
    @property
    def mail(self) -> Mail: ...
    @property
    def silent_peers(self) -> list[int]: ...
    @property
    def is_running(self) -> bool: ...
    def start(self) -> None: ...
    def abandon(self) -> None: ...
    def say_bye(self) -> None: ...
    def join(self, seconds: float | None = None) -> bool: ...
    def abort(self) -> None: ...
    def traffic_counters(self) -> tuple[int, int, int, int]: ...
