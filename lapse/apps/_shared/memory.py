"""Whether a model fits into the memory of the hosts, asked before anything of its size is allocated."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lapse.apps._shared.job import AppError

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

#: Bytes per key on each rank, besides values: its entry in the directory, counts, places in arrays of the application.
BYTES_PER_KEY = 24


@dataclass(frozen=True)
class Room:
    """The memory of the hosts of a job.

    Attributes
    ----------
    ranks
        The number of ranks.
    available
        Bytes of all hosts together; None: not known.
    """

    ranks: int
    available: int | None

    @classmethod
    def of(cls, comm: Intracomm) -> Room:
        """The memory that is available now. Collective."""
        of_hosts = dict(comm.allgather((socket.gethostname(), available_here())))
        known = [size for size in of_hosts.values() if size is not None]
        return cls(comm.size, sum(known) if len(known) == len(of_hosts) else None)

    def check(self, what: str, values: int, keys: int, way_out: str) -> None:
        """Raise `AppError` if a model does not fit.

        Parameters
        ----------
        what
            What it consists of, such as ``5 rows x 4 columns x 3 bytes``, for the message.
        values
            Bytes of all values.
        keys
            The number of keys.
        way_out
            What the user can do.
        """
        needed = values + BYTES_PER_KEY * keys * self.ranks
        if self.available is not None and needed > self.available:
            raise AppError(
                f"{what}: {show(needed)} on {self.ranks} rank(s), but {show(self.available)} are available on the "
                f"hosts of this job: {way_out}"
            )


def show(size: float) -> str:
    """A number of bytes for a message."""
    units = ["bytes", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:,.0f} {units[0]}" if size >= 10 or units[0] == "bytes" else f"{size:.1f} {units[0]}"


def available_here() -> int | None:
    """Bytes that programs may still allocate on this host, or in this container; None: not known."""
    sizes = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").split("\n")
        sizes.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    if sizes:
        sizes += _left_in_containers()
    return min(sizes) if sizes else None


def _left_in_containers() -> Iterator[int]:
    """The limit of a control group less what is used in it, besides what can be dropped (version 2, then 1)."""
    for folder, limit, used, cache in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
            room = int(Path(folder, limit).read_text()) - int(Path(folder, used).read_text())
            lines = Path(folder, "memory.stat").read_text().split("\n")
            yield room + sum(int(line.split()[1]) for line in lines if line.startswith(cache))
