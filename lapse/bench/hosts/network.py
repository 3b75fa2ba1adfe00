"""A network of emulated hosts, for a program that starts jobs in it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from lapse import _mpi_loader

#: Settings of MPI for jobs between hosts, unless the user has set them: see ``hostfiles/env.mpich``.
SETTINGS = {
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "MPIR_CVAR_CH4_IPC_CMA_P2P_THRESHOLD": "1000000",
    "MPIR_CVAR_CH4_SHM_POSIX_IQUEUE_CELL_SIZE": "131072",
    "MPIR_CVAR_CH4_PACK_BUFFER_SIZE": "262144",
}
#: Seconds in which a switch must start or end.
SWITCH_SECONDS = 30.0
MAX_HOSTS = 64  # of `_switch.h`


class Unavailable(Exception):
    """This machine, or the rights of this process, do not allow for emulated hosts; the message says why."""


@dataclass(frozen=True)
class Link:
    """How a host is connected to the switch.

    Attributes
    ----------
    delay_us
        How long a frame travels, one way; what the switch itself costs, some 20 to 50 us, is added.
    rate_mbit
        What each host can send and receive, in megabits per second; 0: no limit.
    resend_ms
        After how long, at least, TCP sends again what was not acknowledged: a time-out.
    """

    delay_us: float = 0.0
    rate_mbit: float = 0.0
    resend_ms: float = 200.0

    def dilated(self, times: float) -> Link:
        """The link as it is when time goes so many times slower."""
        return Link(self.delay_us * times, self.rate_mbit / times, self.resend_ms * times)


@dataclass
class Report:
    """What a network has seen.

    Attributes
    ----------
    hosts
        Per host: ``bytes_sent``, ``frames_sent`` and those received, ``timeouts`` of TCP, segments ``retransmitted``,
        and ``frames_dropped`` by the host's device.
    frames_lost
        Frames that the switch could not deliver.
    """

    hosts: list[dict[str, int]] = field(default_factory=list)
    frames_lost: int = 0

    def total(self, name: str) -> int:
        """A figure, added up over all hosts."""
        return sum(host[name] for host in self.hosts)


def check_available() -> None:
    """Raise `Unavailable` if there cannot be emulated hosts here, as far as one can tell without creating any."""
    if platform.system() != "Linux":
        raise Unavailable(f"emulated hosts are network namespaces of Linux, but this is {platform.system()}")
    if os.geteuid() != 0:
        raise Unavailable("emulated hosts need the rights of root: for network namespaces and devices")
    for program in ("nsenter", "unshare"):
        if shutil.which(program) is None:
            raise Unavailable(f"emulated hosts need the program {program} (of util-linux), which was not found")
    if "MPICH" not in _mpi_loader.describe_build():
        raise Unavailable(
            f"emulated hosts need MPICH's mpirun, but Lapse was built with {_mpi_loader.describe_build()}"
        )
    if _mpi_loader.launcher_path() is None:
        raise Unavailable(f"no mpirun was found beside the library of {_mpi_loader.describe_build()}")


class Network:
    """Emulated hosts, from ``with`` to its end.

    Parameters
    ----------
    hosts
        How many.
    link
        How each of them is connected.
    can_cut
        Whether hosts may be cut off: two hosts are then not connected directly, which is a little slower.

    Attributes
    ----------
    report
        The traffic, known after the end.

    Raises
    ------
    Unavailable
        On entry, if there cannot be hosts here.
    """

    def __init__(self, hosts: int, link: Link = Link(), can_cut: bool = False) -> None:
        if not 1 <= hosts <= MAX_HOSTS:
            raise ValueError(f"hosts is {hosts}, but must be from 1 to {MAX_HOSTS}")
        if link.delay_us < 0 or link.rate_mbit < 0:
            raise ValueError(f"delay_us is {link.delay_us} and rate_mbit {link.rate_mbit}, but must be at least 0")
        self._settings = {"hosts": hosts, "can_cut": can_cut, **asdict(link)}
        self.report = Report()

    def __enter__(self) -> Network:
        check_available()
        program = [sys.executable, "-m", "lapse.bench.hosts.switch", json.dumps(self._settings)]
        self._switch = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            described = json.loads(self._switch.stdout.readline() or '{"error": "the switch has failed"}')
        except BaseException:
            self._end_switch()
            raise
        if "error" in described:
            self._end_switch()
            raise Unavailable(described["error"])
        self._described = described
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        rest = self._end_switch()
        with contextlib.suppress(ValueError, KeyError, IndexError):
            self.report = Report(**json.loads(rest.splitlines()[-1]))

    def _end_switch(self) -> str:
        """End the switch, which ends all processes in the hosts; returns what it has printed."""
        try:
            return self._switch.communicate(timeout=SWITCH_SECONDS)[0]  # closes its standard input
        except subprocess.TimeoutExpired:
            self._switch.kill()
            return self._switch.communicate()[0]

    def cut(self, host: int) -> None:
        """Drop all frames from and to a host, counted from 1, as if its cable were pulled; nobody is told."""
        self._order("cut", host)

    def join(self, host: int) -> None:
        """Connect a host again that was cut off."""
        self._order("join", host)

    def _order(self, what: str, host: int) -> None:
        if not self._settings["can_cut"] or not 1 <= host <= self._settings["hosts"]:
            raise ValueError(
                f"host {host} cannot be cut off: hosts are from 1 to {self._settings['hosts']}, and can_cut"
            )
        self._switch.stdin.write(f"{what} {host}\n")
        self._switch.stdin.flush()

    def command(self, ranks_per_host: int, program: Sequence[str]) -> list[str]:
        """The command that runs a program on so many ranks of each host."""
        here = self._described
        name = 'echo host1 > /proc/sys/kernel/hostname; exec "$@"'  # the launcher gives the other hosts their names
        enter = ["nsenter", f"--net=/proc/{here['pid']}/fd/{here['namespaces'][0]}", "unshare", "--uts"]
        enter += ["sh", "-c", name, "sh"]
        hosts = ["-hosts", ",".join(here["addresses"]), "-ppn", str(ranks_per_host)]
        launcher = ["-launcher", "ssh", "-launcher-exec", here["launcher"]]
        ranks = ["-n", str(ranks_per_host * len(here["addresses"]))]
        return [*enter, str(_mpi_loader.launcher_path()), *launcher, *hosts, *ranks, *program]


def environment(dilation: float = 1.0, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a job between hosts.

    Parameters
    ----------
    dilation
        How many times slower time goes: the server takes its own sleeps and intervals as many times longer.
    base
        What the settings are added to; by default the environment of this process.
    """
    own = dict(os.environ if base is None else base)
    together = [name for name in SETTINGS if name != "MPIR_CVAR_CH4_NETMOD"]  # of no use unless all are set
    left_out = together if any(name in own for name in together) else []
    settings = {name: value for name, value in SETTINGS.items() if name not in left_out}
    return {**settings, **own, **({"LAPSE_DILATION": f"{dilation:g}"} if dilation > 1 else {})}


@contextlib.contextmanager
def started(command: Sequence[str], **options) -> Iterator[subprocess.Popen]:
    """A command in a session of its own, which is ended at the end of ``with``."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        for number, seconds in ((signal.SIGTERM, 1.0), (signal.SIGKILL, None)):
            if process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(seconds)


def write_json(path: Path, figures: object) -> None:
    """Append a line to a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(figures) + "\n")
