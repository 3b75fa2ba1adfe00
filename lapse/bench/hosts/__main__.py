"""``python -m lapse.bench.hosts``: run a command on several emulated hosts."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from lapse.bench.hosts.network import Link, Network, Unavailable, environment, started, write_json

DESCRIPTION = """\
Run a command under mpirun on several hosts that are emulated on this machine: network namespaces behind a switch with
latency and bandwidth. Needs the rights of root, nsenter, and MPICH.

The exit status is that of the command; 124 if it was ended at the time limit; 77 if there cannot be emulated hosts here
(the reason is printed). At the end the processes in the hosts are ended, everything is removed, and the traffic of each
host is printed: with TCP time-outs, the emulated network was not sound.
"""

EXAMPLES = """\
examples:
  benchmarks/hosts --hosts 4 --delay-us 25 --rate-mbit 10000 .venv/bin/python -m lapse
  benchmarks/hosts .venv/bin/python -m lapse.bench.two_hosts       two hosts, connected directly
  benchmarks/hosts --hosts 8 --delay-us 25 --rate-mbit 10000 --dilation 50 \\
      .venv/bin/python -m lapse.apps.word2vec --slow-down 50       time goes 50 times slower
"""

TIMED_OUT, NOT_AVAILABLE = 124, 77


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/hosts",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hosts", type=int, default=2, metavar="N", help="number of hosts (default: %(default)s)")
    parser.add_argument(
        "--ranks-per-host", type=int, default=1, metavar="N", help="ranks on each host (default: %(default)s)"
    )
    parser.add_argument(
        "--delay-us",
        type=float,
        default=0.0,
        metavar="X",
        help="microseconds that a frame travels, one way, beyond the 20 to 50 us that the switch needs (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--rate-mbit",
        type=float,
        default=0.0,
        metavar="X",
        help="what each host can send and receive, in megabits per second; 0: no limit (default: %(default)s)",
    )
    parser.add_argument(
        "--dilation",
        type=float,
        default=1.0,
        metavar="X",
        help="how many times slower time goes: the delay, TCP's time-outs and the server's own sleeps and intervals "
        "(LAPSE_DILATION) are as many times longer, the rate is as many times smaller (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="end the command after so long (default: %(default)s)",
    )
    parser.add_argument(
        "--cut",
        type=_cut,
        action="append",
        default=[],
        metavar="HOST:AFTER[:SECONDS]",
        help="cut a host off, counted from 1, so many seconds after the start: its frames are dropped; for so long, or "
        "to the end; repeatable",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the traffic as a line of JSON to this file")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what each rank runs")
    return parser


def _cut(text: str) -> tuple[int, float, float | None]:
    host, after, *seconds = text.split(":")
    return int(host), float(after), float(*seconds) if seconds else None


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.command:
        parser.error("no command was given")
    if args.ranks_per_host < 1:
        parser.error(f"--ranks-per-host is {args.ranks_per_host}, but must be at least 1")
    for host, _, _ in args.cut:
        if not 1 <= host <= args.hosts:
            parser.error(f"--cut names host {host}, but hosts are from 1 to {args.hosts}")
    if not args.dilation > 0:
        parser.error(f"--dilation is {args.dilation}, but must be above 0")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        network = Network(args.hosts, Link(args.delay_us, args.rate_mbit).dilated(args.dilation), bool(args.cut))
    except ValueError as error:
        parser.error(str(error))
    try:
        with network:
            status = run(network, args)
    except Unavailable as reason:
        print(f"no emulated hosts: {reason}", file=sys.stderr)
        return NOT_AVAILABLE
    show(network, args.json)
    return status


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def run(network: Network, args: argparse.Namespace) -> int:
    """Run the command in the network; returns its exit status."""
    with started(network.command(args.ranks_per_host, args.command), env=environment(args.dilation)) as process:
        timers = [timer for cut in args.cut for timer in _timers(network, *cut)]
        try:
            return process.wait(args.timeout)
        except subprocess.TimeoutExpired:
            print(f"the command was ended after {args.timeout:g} s (--timeout)", file=sys.stderr)
            return TIMED_OUT
        finally:
            for timer in timers:
                timer.cancel()


def _timers(network: Network, host: int, after: float, seconds: float | None) -> list[threading.Timer]:
    """Started timers that cut a host off and connect it again."""
    timers = [threading.Timer(after, network.cut, [host])]
    if seconds is not None:
        timers.append(threading.Timer(after + seconds, network.join, [host]))
    for timer in timers:
        timer.start()
    return timers


def show(network: Network, path: Path | None) -> None:
    """Print the traffic of each host."""
    report = network.report
    for number, host in enumerate(report.hosts, 1):
        print(
            f"host {number}: {host['bytes_sent']:,} bytes sent in {host['frames_sent']:,} frames, {host['timeouts']} "
            f"TCP time-outs, {host['retransmitted']} segments retransmitted",
            file=sys.stderr,
        )
    if lost := report.frames_lost + report.total("frames_dropped"):
        print(f"{lost} frames were lost", file=sys.stderr)
    if path is not None:
        write_json(path, asdict(report))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
