"""Explore every order in which the messages of small jobs can arrive, with the protocol as it is compiled.

    .venv/bin/python tests/model.py                   all jobs, then planted faults
    .venv/bin/python tests/model.py --job contended   one job
    .venv/bin/python tests/model.py --list            what the jobs do

`make model` runs all of it.

A job has two or three ranks, two keys and a few calls. What can happen next is a step of a call (one key), or the
arrival of the first message of a channel; the search takes each choice in each state that it reaches. It runs the job
anew for each branch. What a rank is depends only on the order of its own events, so that a state is known by the orders
of all ranks: two paths that differ in nothing else are one state, and are followed once. (States are remembered by a
hash of 64 bits; of a million, two have the same with a probability of 3e-8.) Where there are too many states, orders
are chosen at random besides.

In each state a key has one owner at most; when nothing can happen any more every call is done, no rank waits for
anything, each update has taken effect once, and replicas have agreed on the same bits.

Planted faults lose, repeat or change one message; each must be found by some job, or the search proves nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from lapse.messaging._kinds import MESSAGE_KINDS
from lapse.testing._virtual_rank import Call as VirtualCall
from lapse.testing._virtual_rank import VirtualRank

from simulated_network import FRAME, Channels

NUM_KEYS = 2
LIMIT = 1_000_000  # states of a job
WALKS = 100_000  # random paths of a job that has more
NUMBERS = {kind.name: number for number, kind in MESSAGE_KINDS.items()}

Call = tuple[str, tuple[int, ...]]
Action = tuple[int, int]  # (rank, source): a message of `source` arrives; (rank, rank): a step of its own
Fault = Callable[[bytes], list[bytes]]


@dataclass(frozen=True)
class Job:
    """What ranks do.

    Attributes
    ----------
    calls
        Of each rank: kinds and keys.
    waits
        Whether a rank begins a call only when the one before is done.
    replicated
        The keys of which all ranks have replicas.
    """

    about: str
    calls: tuple[tuple[Call, ...], ...]
    waits: bool = False
    replicated: tuple[int, ...] = ()
    max_pending: int = 0

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.calls)


LOCALIZE, PUSH, PULL, SET, SYNC = "localize", "push", "pull", "set", "sync"

JOBS = {
    "contended": Job(
        "two ranks take a key from each other, the third one pushes to it",
        (((LOCALIZE, (0,)), (PUSH, (0,))), ((LOCALIZE, (0,)), (PUSH, (0,))), ((PUSH, (0,)), (PUSH, (0,)))),
    ),
    "three": Job(
        "all ranks take one key and push to it",
        (((LOCALIZE, (0,)), (PUSH, (0,))),) * 3,
    ),
    "two keys": Job(
        "two ranks take both keys in opposite orders, and the third one pushes to both",
        (((LOCALIZE, (0, 1)), (PUSH, (0,))), ((LOCALIZE, (1, 0)), (PUSH, (1,))), ((PUSH, (0, 1)),)),
    ),
    "back and forth": Job(
        "two ranks take a key twice and use it, and wait for each call",
        (((LOCALIZE, (0,)), (PUSH, (0,)), (LOCALIZE, (0,)), (PUSH, (0,))),) * 2 + (((PUSH, (0,)),),),
        waits=True,
    ),
    "sets": Job(
        "two ranks set a key that the third one takes, reads and pushes to",
        (((SET, (0,)),), ((SET, (0,)),), ((LOCALIZE, (0,)), (PULL, (0,)), (PUSH, (0,)))),
    ),
    "rounds of two": Job(
        "both ranks push to a replicated key and synchronize",
        (((PUSH, (0,)), (SYNC, ())), ((PUSH, (0,)), (SYNC, ()))),
        replicated=(0,),
    ),
    "set, rounds of two": Job(
        "a replicated key is set while the other rank pushes to it and synchronizes",
        (((SET, (0,)), (PUSH, (0,))), ((PUSH, (0,)), (SYNC, ()))),
        replicated=(0,),
    ),
    "push behind a set": Job(
        "each rank sets a replicated key and then pushes to it",
        (((SET, (0,)), (PUSH, (0,)), (SYNC, ())), ((SET, (1,)), (PUSH, (1,)), (SYNC, ()))),
        waits=True,
        replicated=(0, 1),
    ),
    "push behind a set, 2": Job(
        "the same with the other key",
        (((SET, (1,)), (PUSH, (1,)), (SYNC, ())), ((SET, (0,)), (PUSH, (0,)), (SYNC, ()))),
        waits=True,
        replicated=(0, 1),
    ),
    "work, two": Job(
        "each push begins a round",
        (((PUSH, (0,)), (PUSH, (0,)), (SYNC, ())), ((PUSH, (0,)),)),
        replicated=(0,),
        max_pending=1,
    ),
    "both, two": Job(
        "a key moves while another one is replicated",
        (((LOCALIZE, (1,)), (PUSH, (0, 1))), ((LOCALIZE, (1,)), (PUSH, (1,)), (SYNC, ()))),
        replicated=(0,),
    ),
    "rounds": Job(
        "all ranks push to a replicated key, and one synchronizes",
        (((PUSH, (0,)),), ((PUSH, (0,)),), ((PUSH, (0,)), (SYNC, ()))),
        replicated=(0,),
    ),
    "rounds and a set": Job(
        "a replicated key is set while other ranks push to it and one synchronizes",
        (((SET, (0,)),), ((PUSH, (0,)), (SYNC, ())), ((PUSH, (0,)),)),
        replicated=(0,),
    ),
}


class WrongError(Exception):
    """The job went wrong."""


class Run:
    """A job, as far as it has come."""

    def __init__(self, job: Job, fault: Fault | None = None) -> None:
        self.job, self.fault = job, fault
        pace = {"max_pending": job.max_pending} if job.replicated else {}
        self.ranks = [
            VirtualRank(rank, job.size, NUM_KEYS, 1, "float64", job.replicated, **pace) for rank in range(job.size)
        ]
        self.channels = Channels(self.ranks)
        self.left = [list(calls) for calls in job.calls]
        self.begun: list[list] = [[] for _ in job.calls]
        self.histories = [b""] * job.size
        self.path: tuple[Action, ...] = ()

    def actions(self) -> list[Action]:
        """What can happen next."""
        own = [(rank, rank) for rank in range(self.job.size) if self._can_step(rank)]
        return own + [(target, source) for source, target in sorted(self.channels.packets)]

    def _can_step(self, rank: int) -> bool:
        calls = self.begun[rank]
        if calls and calls[-1].issued < len(calls[-1].keys):
            return True
        return bool(self.left[rank]) and not (self.job.waits and calls and not calls[-1].done)

    def _after(self, action: Action) -> list[bytes]:
        rank, source = action
        changed = list(self.histories)
        changed[rank] += bytes([source])
        return changed

    def state_after(self, action: Action) -> int:
        """The state that an action leads to, as a hash: nothing but these orders changes what a rank is."""
        return hash(tuple(self._after(action)))

    def do(self, action: Action) -> None:
        """Let an action happen."""
        rank, source = action
        self.path += (action,)
        self.histories = self._after(action)
        if rank == source:
            self._step(rank)
        else:
            packets = self.channels.packets[source, rank]
            packet = packets.popleft()
            if not packets:
                del self.channels.packets[source, rank]
            for each in [packet] if self.fault is None else self.fault(packet):
                self.ranks[rank].deliver(source, each)
        self.channels.collect(rank)
        self._check_owners()

    def _step(self, rank: int) -> None:
        calls = self.begun[rank]
        if not calls or calls[-1].issued == len(calls[-1].keys):
            kind, keys = self.left[rank].pop(0)
            values = [self._number(rank, kind)] * len(keys) if kind in (PUSH, SET) else None
            calls.append(self.ranks[rank].begin(kind, list(keys), values))
        self.ranks[rank].step(calls[-1])

    def _number(self, rank: int, kind: str) -> float:
        # Each call has a power of ten of its own, so that the sum tells how often each took effect.
        return 10.0 ** (4 * rank + len(self.begun[rank])) * (5 if kind == SET else 1)

    def _check_owners(self) -> None:
        for key in range(NUM_KEYS):
            owners = [rank.rank for rank in self.ranks if rank.state(key) == "owned"]
            if len(owners) > 1:
                raise WrongError(f"key {key} is owned by ranks {owners}")

    def check_end(self) -> None:
        """When nothing can happen any more."""
        for rank, calls in enumerate(self.begun):
            waiting = [call.kind for call in calls if not call.done] + [kind for kind, _ in self.left[rank]]
            if waiting:
                raise WrongError(f"rank {rank} waits for ever: {', '.join(waiting)}")
            if not self.ranks[rank].at_rest:
                raise WrongError(f"rank {rank} is not at rest")
        for key in range(NUM_KEYS):
            self._check_value(key)

    def _check_value(self, key: int) -> None:
        if key in self.job.replicated:
            total = self._total(key)
        else:
            owners = [rank for rank in self.ranks if rank.state(key) == "owned"]
            if len(owners) != 1:
                raise WrongError(f"key {key} has {len(owners)} owners")
            total = owners[0].value(key)[0]
        expected = self._expected(key)
        if total not in expected:
            raise WrongError(f"key {key} is {total}, but must be {' or '.join(map(str, sorted(expected)))}")

    def _total(self, key: int) -> float:
        """Of a replicated key: what ranks have agreed on, and what each has not contributed yet."""
        bases = {rank.base(key).tobytes() for rank in self.ranks}
        if len(bases) > 1:
            raise WrongError(f"ranks have agreed on different values of key {key}")
        base = self.ranks[0].base(key)[0]
        apart = [rank.value(key)[0] - base for rank in self.ranks]
        if all(calls and calls[-1].kind == SYNC for calls in self.begun) and any(apart):
            raise WrongError(f"key {key} differs on the ranks by {apart} after all have synchronized")
        return float(base + sum(apart))

    def _expected(self, key: int) -> set[float]:
        """The values that a key may have: every push once, but those that may have been before the last set."""
        bases, sums = {0.0}, {0.0}
        sets = [(rank, at) for rank, at, call in self._changes(key) if call.kind == SET]
        for rank, at, call in self._changes(key):
            if call.kind == SET:
                bases = bases - {0.0} | {call.values[0]}
                continue
            is_behind = self.job.waits and all(of == rank and before < at for of, before in sets)
            sums = {total + call.values[0] for total in sums} | (set() if is_behind or not sets else sums)
        return {base + total for base in bases for total in sums}

    def _changes(self, key: int) -> Iterator[tuple[int, int, VirtualCall]]:
        for rank, calls in enumerate(self.begun):
            for at, call in enumerate(calls):
                if key in call.keys and call.kind in (PUSH, SET):
                    yield rank, at, call


def explore(job: Job, fault: Callable[[], Fault] | None = None, limit: int = LIMIT) -> tuple[int, int, bool]:
    """Follow every order of events; returns states, ends, and whether these were all.

    Raises
    ------
    WrongError
        With the path that leads there.
    """
    seen: set[int] = set()
    branches: list[tuple[Action, ...]] = [()]
    ends = 0
    while branches and len(seen) < limit:
        run = Run(job, None if fault is None else fault())
        with naming_path(run):
            for action in branches.pop():
                run.do(action)
            while choices := run.actions():
                fresh = [each for each in choices if run.state_after(each) not in seen]
                if not fresh:
                    break
                seen.update(map(run.state_after, fresh))
                branches += [(*run.path, each) for each in fresh[1:]]
                run.do(fresh[0])
            else:
                run.check_end()
                ends += 1
    return len(seen), ends, not branches


def wander(job: Job, walks: int, seed: int = 1) -> None:
    """Follow so many orders of events at random; raises as `explore` does."""
    random = np.random.default_rng(seed)
    for _ in range(walks):
        run = Run(job)
        with naming_path(run):
            while choices := run.actions():
                run.do(choices[int(random.integers(len(choices)))])
            run.check_end()


@contextlib.contextmanager
def naming_path(run: Run) -> Iterator[None]:
    """Add to whatever is raised the events that led there; a rank notices nonsense, too, and says so."""
    try:
        yield
    except Exception as error:
        raise WrongError(f"{error}; after {' '.join(f'{rank}<{source}' for rank, source in run.path)}") from error


# --- planted faults --------------------------------------------------------------------------------------------------


def frames(packet: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of a packet, with their kinds."""
    at = 0
    while at < len(packet):
        size, _, _, _, kind, _ = FRAME.unpack_from(packet, at)
        yield kind, packet[at : at + size]
        at += size


def once(name: str, change: Callable[[bytes], bytes]) -> Callable[[], Fault]:
    """A fault that changes the first message of a kind in each run."""

    def begin() -> Fault:
        left = [1]

        def spoil(packet: bytes) -> list[bytes]:
            spoiled = b""
            for kind, frame in frames(packet):
                if kind == NUMBERS[name] and left[0]:
                    left[0] = 0
                    frame = change(frame)
                spoiled += frame
            return [spoiled] if spoiled else []

        return spoil

    return begin


def lose(frame: bytes) -> bytes:
    return b""


def repeat(frame: bytes) -> bytes:
    return frame + frame


def age(frame: bytes) -> bytes:
    """One epoch less: that of before a set."""
    record = bytearray(frame)
    (epoch,) = struct.unpack_from("<I", record, FRAME.size + 4)
    struct.pack_into("<I", record, FRAME.size + 4, max(epoch - 1, 0))
    return bytes(record)


def double(frame: bytes) -> bytes:
    """A value that is twice as large."""
    record = bytearray(frame)
    (value,) = struct.unpack_from("<d", record, len(frame) - 8)
    struct.pack_into("<d", record, len(frame) - 8, 2 * value)
    return bytes(record)


FAULTS = {
    f"{change.__name__} {name}": once(name, change)
    for change, names in (
        (
            lose,
            [
                "LOCALIZE",
                "HAND_OVER",
                "TRANSFER",
                "TRANSFER_ZERO",
                "PUSH",
                "ACK",
                "DELTA",
                "SUM",
                "ROUND_END",
                "SUMS_END",
                "REPLACE",
            ],
        ),
        (repeat, ["PUSH", "DELTA", "SUM"]),
        (double, ["TRANSFER", "SUM", "PUSH"]),
        (age, ["DELTA"]),
    )
    for name in names
}


def find(fault: Callable[[], Fault], jobs: Iterable[str] = JOBS) -> str:
    """The first of some jobs that notices a fault, and how; "" if none does."""
    for name in jobs:
        try:
            explore(JOBS[name], fault, limit=20_000)
        except WrongError as error:
            return f"{name}: {str(error)[:90]}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", choices=JOBS, help="only this one; repeatable")
    parser.add_argument("--limit", type=int, default=LIMIT, help="states of a job (default %(default)s)")
    parser.add_argument("--walks", type=int, default=WALKS, help="random orders of a job with more (%(default)s)")
    parser.add_argument("--list", action="store_true", help="list the jobs and exit")
    args = parser.parse_args()
    if args.list:
        for name, job in JOBS.items():
            print(f"{name:18} {job.about}")
        return 0
    outcomes: Counter[str] = Counter()
    for name in args.job or JOBS:
        began = time.perf_counter()
        try:
            states, ends, all_of_them = explore(JOBS[name], limit=args.limit)
            if not all_of_them:
                wander(JOBS[name], args.walks)
            outcome = "all states" if all_of_them else f"not all; and {args.walks:,} random orders"
            seconds = time.perf_counter() - began
            print(f"{name:18} {states:9,} states {ends:8,} ends  {outcome}, {seconds:.0f} s", flush=True)
            outcomes["right"] += 1
        except WrongError as error:
            print(f"{name:18} WRONG: {error}")
            outcomes["wrong"] += 1
    for name, fault in FAULTS.items() if not args.job else ():
        found = find(fault)
        print(f"planted: {name:20} {found or 'NOT FOUND'}", flush=True)
        outcomes["found" if found else "not found"] += 1
    print(", ".join(f"{count} {what}" for what, count in outcomes.items()))
    return 1 if outcomes["wrong"] or outcomes["not found"] else 0


if __name__ == "__main__":
    sys.exit(main())
