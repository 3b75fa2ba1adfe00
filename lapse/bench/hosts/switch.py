"""The process that owns the network of emulated hosts: it creates the hosts, is their switch, and removes them.

``python -m lapse.bench.hosts.switch SETTINGS`` (JSON) prints a line that describes the hosts and then works until its
standard input ends, at the latest with the process that started it. Lines of it cut hosts off (``cut 2``) and connect
them again (``join 2``). Whatever happened to that one, the processes in the
hosts are ended then, and the last line has the traffic of each host. The namespaces have no names: they vanish with the
last process that uses them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lapse.bench.hosts._switch import forward, open_tap

DEVICE = "lapse0"
SUBNET = "10.79.0"
#: Jumbo frames, as between the hosts of a cluster.
FRAME_BYTES = 8900
#: Frames that a device holds for a switch that is busy.
QUEUED_FRAMES = 20_000
#: Seconds in which a device must be usable.
START_SECONDS = 5.0
#: Seconds in which the processes of a host must have ended.
END_SECONDS = 5.0

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
SIOCSIFMTU, SIOCSIFTXQLEN = 0x8922, 0x8943
IFF_UP, IFF_RUNNING = 0x1, 0x40

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Host:
    """A network namespace: a file descriptor of it, and its address."""

    namespace: int
    address: str


def main(argv: list[str]) -> int:
    """Be the network that the settings describe."""
    settings = json.loads(argv[0])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end is that of the standard input
    try:
        hosts, devices, sending = create_hosts(settings)
    except OSError as error:
        print(json.dumps({"error": f"cannot create network namespaces with devices: {error}"}), flush=True)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="lapse-hosts-"))
    try:
        launcher = write_launcher(folder, hosts)
        namespaces = [host.namespace for host in hosts]
        addresses = [host.address for host in hosts]
        described = {"pid": os.getpid(), "namespaces": namespaces, "addresses": addresses, "launcher": str(launcher)}
        print(json.dumps(described), flush=True)
        lost = be_switch(devices, settings, sending)
        traffic = [traffic_of(host) for host in hosts]
        end_processes(hosts)
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"hosts": traffic, "frames_lost": lost}), flush=True)
    finally:
        end_processes(hosts)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def be_switch(devices: list[int], settings: dict, sending_mbit: float) -> int:
    """Forward frames until the standard input ends; returns the number of frames that were lost."""
    if not devices:
        while sys.stdin.buffer.raw.read(256):  # orders, which a direct connection cannot carry out
            pass
        return 0
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    rate = settings["rate_mbit"]
    return forward(devices, 0, delay_us=settings["delay_us"], sending_mbit=sending_mbit, receiving_mbit=rate)


# --- creating hosts ------------------------------------------------------------------------------------------------


def create_hosts(settings: dict) -> tuple[list[Host], list[int], float]:
    """The hosts, their devices at the switch, and the rate at which the switch must pace senders (0: not at all).

    Two hosts without delay and limit, which need not be cut off, are connected directly, by a pair of devices of the
    kernel, if it can be created.
    """
    count = settings["hosts"]
    may_connect = not settings["delay_us"] and not settings["rate_mbit"] and not settings["can_cut"]
    hosts = [new_host(f"{SUBNET}.{number}", settings["resend_ms"]) for number in range(1, count + 1)]
    if count == 2 and may_connect and connect_directly(*hosts):
        devices = []
    else:
        devices = []
        for host in hosts:
            enter(host)
            devices.append(open_tap(DEVICE))
    is_paced = True
    for host in hosts:
        enter(host)
        configure(DEVICE, host.address)
        configure("lo", None)
        if devices and settings["rate_mbit"]:
            is_paced &= pace(settings["rate_mbit"])
    for host in hosts:
        enter(host)
        wait_until_running(DEVICE)
    return hosts, devices, 0 if is_paced else settings["rate_mbit"]


def new_host(address: str, resend_ms: float) -> Host:
    """Create a network namespace, and be in it."""
    _check(_libc.unshare(CLONE_NEWNET))
    for which in ("all", "default"):  # addresses of version 6 can be used after seconds only, but programs try
        set_kernel(f"ipv6/conf/{which}/disable_ipv6", 1)
    set_kernel("ipv4/tcp_rto_min_us", round(1000 * resend_ms))
    return Host(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC), address)


def set_kernel(name: str, value: int) -> None:
    """Set a variable of the kernel for the present namespace, if the kernel has it."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/net", name).write_text(str(value))


def enter(host: Host) -> None:
    """Let this process be in the namespace of a host."""
    _check(_libc.setns(host.namespace, CLONE_NEWNET))


def _check(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def connect_directly(one: Host, other: Host) -> bool:
    """Join two hosts by a pair of devices of the kernel; returns whether that is possible here."""
    ends = [f"/proc/{os.getpid()}/fd/{host.namespace}" for host in (one, other)]
    end, peer = ([DEVICE, "netns", end] for end in ends)
    return _succeeds("ip", "link", "add", *end, "type", "veth", "peer", "name", *peer)


def pace(rate_mbit: float) -> bool:
    """Let the kernel pace what this host sends, so that TCP knows how much of it is still queued."""
    tbf = ("tbf", "rate", f"{max(round(rate_mbit * 1000), 8)}kbit", "burst", "64kb", "latency", "200ms")
    return _succeeds("tc", "qdisc", "replace", "dev", DEVICE, "root", *tbf)


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def configure(device: str, address: str | None) -> None:
    """Give a device its address, if it needs one, and take it into use."""
    name = device.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def request(number: int, form: str, *values: object) -> None:
            fcntl.ioctl(control, number, struct.pack(f"16s{form}", name, *values).ljust(40, b"\0"))

        if address is not None:
            request(SIOCSIFMTU, "i", FRAME_BYTES)
            request(SIOCSIFTXQLEN, "i", QUEUED_FRAMES)
            request(SIOCSIFADDR, "HH4s", socket.AF_INET, 0, socket.inet_aton(address))
            request(SIOCSIFNETMASK, "HH4s", socket.AF_INET, 0, socket.inet_aton("255.255.255.0"))
        request(SIOCSIFFLAGS, "H", _flags(device) | IFF_UP)


def _flags(device: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        found = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sH", device.encode(), 0).ljust(40, b"\0"))
    return struct.unpack_from("16sH", found)[1]


def wait_until_running(device: str) -> None:
    """Wait until the kernel has noticed that a device is connected: MPI would choose another address before."""
    deadline = time.monotonic() + START_SECONDS
    while not _flags(device) & IFF_RUNNING:
        if time.monotonic() > deadline:
            raise OSError(f"the device {device} is not connected after {START_SECONDS:g} s")
        time.sleep(0.01)


def write_launcher(folder: Path, hosts: list[Host]) -> Path:
    """A program that `mpirun` calls in place of ``ssh``: [options] ADDRESS COMMAND...; each host has its own name."""
    cases = "".join(
        f"    {host.address}) namespace={host.namespace} name=host{number} ;;\n" for number, host in enumerate(hosts, 1)
    )
    path = folder / "launcher"
    path.write_text(
        "#!/bin/sh\n"
        'while [ "${1#-}" != "$1" ]; do shift; done\n'
        f'case $1 in\n{cases}    *) echo "no host $1" >&2; exit 1 ;;\nesac\n'
        "shift\n"
        f"exec nsenter --net=/proc/{os.getpid()}/fd/$namespace "
        'unshare --uts sh -c "echo $name > /proc/sys/kernel/hostname; exec $*"\n'
    )
    path.chmod(0o700)
    return path


# --- the end -------------------------------------------------------------------------------------------------------


def traffic_of(host: Host) -> dict[str, int]:
    """What a host has sent and received, and how sound its connections were."""
    enter(host)
    received, sent = (_counters_of_device(DEVICE, first) for first in (0, 8))
    tcp = {**_counters_of_protocol("netstat", "TcpExt"), **_counters_of_protocol("snmp", "Tcp")}
    return {
        "bytes_sent": sent[0],
        "frames_sent": sent[1],
        "bytes_received": received[0],
        "frames_received": received[1],
        "frames_dropped": sent[3],
        "timeouts": tcp.get("TCPTimeouts", 0),
        "retransmitted": tcp.get("RetransSegs", 0),
    }


def _counters_of_device(device: str, first: int) -> list[int]:
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == device:
            return [int(word) for word in counters.split()[first : first + 8]]
    return [0] * 8


def _counters_of_protocol(file: str, protocol: str) -> dict[str, int]:
    """The two lines of a protocol, names and numbers, in a file of ``/proc/net``."""
    lines = Path("/proc/self/net", file).read_text().splitlines()
    found = [line.split()[1:] for line in lines if line.startswith(f"{protocol}:")]
    return dict(zip(found[0], map(int, found[1]), strict=True)) if len(found) == 2 else {}


def end_processes(hosts: list[Host]) -> None:
    """Kill every process in the namespaces of hosts, but this one."""
    inodes = {os.fstat(host.namespace).st_ino for host in hosts}
    deadline = time.monotonic() + END_SECONDS
    while (left := list(_processes_in(inodes))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _processes_in(inodes: set[int]):
    """Process ids; those that have ended but are still listed have no namespace any more."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry.name}/ns/net").st_ino in inodes:
                    yield int(entry.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
