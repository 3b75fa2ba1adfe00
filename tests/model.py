"""Explore every order in which the messages of small jobs can arrive, with the protocol as it is compiled.

    .venv/bin/python tests/model.py                   all jobs, a million random orders of larger ones, planted faults
    .venv/bin/python tests/model.py --job contended   one job
    .venv/bin/python tests/model.py --list            what the jobs do

`make model` runs all of it.

A job has some ranks and keys and a few calls. What can happen next is a step of a call (one key), or the arrival of the
first message of a channel; the search takes each choice in each state that it reaches. It runs the job anew for each
branch. What a host is (ranks that share memory; mostly one rank) depends only on the order of its own events, so that a
state is known by the orders of all hosts: two paths that differ in nothing else are one state, and are followed once.
(States are remembered by a hash of 64 bits; of a million, two have the same with a probability of 3e-8.)

Where there are too many states, orders are chosen at random (`wander`): for the largest of these jobs, and for as many
random ones as a million orders are enough for. Number and seed of a job give it again.

In each state a key has one owner at most. When nothing can happen any more every call is done, no rank waits for
anything, the operations on each key have an order that explains what pulls have seen and where the value ended
(`histories.py`; the clock is the number of events, in the paths that were followed), and replicas have agreed on the
same bits, with each update once.

Planted faults lose, repeat or change one message; each must be found, or the search proves nothing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from lapse.messaging._kinds import MESSAGE_KINDS
from lapse.testing._virtual_rank import Call as VirtualCall
from lapse.testing._virtual_rank import VirtualRank

import histories
from lapse import optim
from model_jobs import BORROW, GRADIENT, IN_VAIN, JOBS, PULL, PUSH, SET, SYNC, Job, random_job
from simulated_network import FRAME, RECORD, Channels, share_in_groups

LIMIT = 1_000_000  # states of a job
WALKS = 1_000_000  # random orders of larger jobs
WALKS_OF_JOB = 2_000  # of one of them
LENGTH = 2  # of a value, as in `histories.py`: the last set, and a digit for each push
ADAGRAD = optim.Adagrad(lr=1.0).parameters()
ADDITION = {**optim.SGD().parameters(), "rate": -1.0}  # a gradient does what a push does
NUMBERS = {kind.name: number for number, kind in MESSAGE_KINDS.items()}

Action = tuple[int, int]  # (rank, source): a message of `source` arrives; (rank, rank): a step of its own
Fault = Callable[[bytes], list[bytes]]


class WrongError(Exception):
    """The job went wrong."""


@dataclass
class Begun:
    """A call that a rank has begun.

    Attributes
    ----------
    number
        Of a push, gradient or set: no other call of the job has it.
    begin, end
        Numbers of events.
    lent
        Of a key that was borrowed: its value.
    is_changed
        Whether that was changed.
    """

    kind: str
    keys: tuple[int, ...]
    number: int
    begin: int
    end: int | None = None
    call: VirtualCall | None = None
    lent: object = None
    is_changed: bool = False

    def operations(self, rank: int, key: int) -> Iterator[histories.Operation]:
        """What the checker of histories has to know of one key."""
        kind = PUSH if self.kind in (BORROW, GRADIENT) else self.kind
        for place, each in enumerate(self.keys):
            if each == key and kind in (PULL, PUSH, SET) and self.end is not None:
                seen = (0, 0)
                if kind == PULL:
                    seen = histories.read_vector(self.call.values[place * LENGTH : (place + 1) * LENGTH])
                yield histories.Operation(rank, rank, key, kind, self.number, seen, self.begin, self.end)


class Run:
    """A job, as far as it has come."""

    def __init__(self, job: Job, fault: Fault | None = None) -> None:
        self.job, self.fault = job, fault
        pace = {"max_pending": job.max_pending} if job.replicated else {}
        optimizer = ADAGRAD if job.steps else ADDITION
        self.ranks = [
            VirtualRank(
                rank,
                job.size,
                job.num_keys,
                LENGTH,
                "float64",
                job.replicated,
                optimizer=optimizer,
                in_place=bool(job.replicated),
                **pace,
            )
            for rank in range(job.size)
        ]
        share_in_groups(self.ranks, job.sharing)
        self.channels = Channels(self.ranks)
        self.left = [list(calls) for calls in job.calls]
        self.begun: list[list[Begun]] = [[] for _ in job.calls]
        self.numbers = self._number_calls()
        self.histories = [b""] * -(-job.size // job.sharing)
        self.path: tuple[Action, ...] = ()

    def _number_calls(self) -> dict[tuple[int, int], int]:
        """By rank and place: small numbers for what adds, and others for sets."""
        numbers = {}
        pushes = 0
        for rank, calls in enumerate(self.job.calls):
            for place, (kind, _) in enumerate(calls):
                numbers[rank, place] = 1 + 100 * rank + place if kind == SET else pushes
                pushes += kind in (PUSH, GRADIENT, BORROW)
        assert pushes <= histories.DIGITS or self.job.steps
        return numbers

    def actions(self) -> list[Action]:
        """What can happen next."""
        own = [(rank, rank) for rank in range(self.job.size) if self._can_step(rank)]
        return own + [(target, source) for source, target in sorted(self.channels.packets)]

    def _can_step(self, rank: int) -> bool:
        calls = self.begun[rank]
        if calls and self._is_under_way(calls[-1]):
            return True
        return bool(self.left[rank]) and not (self.job.waits and calls and calls[-1].end is None)

    @staticmethod
    def _is_under_way(each: Begun) -> bool:
        return each.lent is not None or (each.call is not None and each.call.issued < len(each.call.keys))

    def _after(self, action: Action) -> list[bytes]:
        rank, source = action
        host = rank // self.job.sharing
        changed = list(self.histories)
        changed[host] += bytes([source] if self.job.sharing == 1 else [rank, source])
        return changed

    def state_after(self, action: Action) -> int:
        """The state that an action leads to, as a hash: nothing but these orders changes what a host is."""
        return hash(tuple(self._after(action)))

    @property
    def state(self) -> int:
        """The present state, as a hash."""
        return hash(tuple(self.histories))

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
        self._note_ends()
        self._check_owners()

    def _step(self, rank: int) -> None:
        calls = self.begun[rank]
        if not calls or not self._is_under_way(calls[-1]):
            self._begin(rank)
        elif calls[-1].lent is not None:
            self._go_on_with_borrowed(rank, calls[-1])
        else:
            self.ranks[rank].step(calls[-1].call)

    def _go_on_with_borrowed(self, rank: int, each: Begun) -> None:
        if not each.is_changed:
            each.lent += self._vector(PUSH, each.number)
            each.is_changed = True
            if each.keys[0] in self.job.replicated:  # rounds and sets may pass before the return
                return
        each.lent = None
        self.ranks[rank].give_back(each.keys[0])

    def _begin(self, rank: int) -> None:
        kind, keys = self.left[rank].pop(0)
        each = Begun(kind, keys, self.numbers[rank, len(self.begun[rank])], len(self.path))
        self.begun[rank].append(each)
        if kind == BORROW:
            each.lent = self.ranks[rank].borrow(keys[0])
            if each.lent is None:
                each.kind = "not here"
        elif kind == IN_VAIN:
            self.ranks[rank].ask_in_vain(keys[0], 2)
        else:
            values = [self._vector(kind, each.number)] * len(keys) if kind in (PUSH, GRADIENT, SET) else None
            each.call = self.ranks[rank].begin(kind, list(keys), values)
            self.ranks[rank].step(each.call)

    def _vector(self, kind: str, number: int) -> list[float]:
        if self.job.steps:
            return [1.0] * LENGTH
        return [number, 0] if kind == SET else [0, 4.0**number]

    def _note_ends(self) -> None:
        for calls in self.begun:
            for each in calls:
                if each.end is None and each.lent is None and (each.call is None or each.call.done):
                    each.end = len(self.path)

    def _check_owners(self) -> None:
        for key in range(self.job.num_keys):
            owners = [rank.rank for rank in self.ranks if rank.state(key) == "owned"]
            if len(owners) > 1:
                raise WrongError(f"key {key} is owned by ranks {owners}")

    def check_end(self) -> None:
        """When nothing can happen any more."""
        for rank, calls in enumerate(self.begun):
            waiting = [each.kind for each in calls if each.end is None] + [kind for kind, _ in self.left[rank]]
            if waiting:
                raise WrongError(f"rank {rank} waits for ever: {', '.join(waiting)}")
            if not self.ranks[rank].at_rest:
                raise WrongError(f"rank {rank} is not at rest")
        for key in range(self.job.num_keys):
            if key in self.job.replicated:
                self._check_replicas(key)
            else:
                self._check_value(key)

    def _operations(self, key: int) -> list[histories.Operation]:
        return [
            operation
            for rank, calls in enumerate(self.begun)
            for each in calls
            for operation in each.operations(rank, key)
        ]

    def _check_value(self, key: int) -> None:
        owners = [rank for rank in self.ranks if rank.state(key) == "owned"]
        if len(owners) != 1:
            raise WrongError(f"key {key} has {len(owners)} owners")
        if self.job.steps:
            self._check_steps(key, owners[0].value(key))
            return
        end = len(self.path) + 1
        last = histories.Operation(-1, -1, key, PULL, 0, histories.read_vector(owners[0].value(key)), end, end)
        histories.check([*self._operations(key), last])

    def _check_steps(self, key: int, value: np.ndarray) -> None:
        """Each step is as large as its place among all steps says."""
        steps = sum(each.kind == GRADIENT and key in each.keys for calls in self.begun for each in calls)
        expected = 0.0
        for count in range(1, steps + 1):
            expected -= 1 / (np.sqrt(count) + ADAGRAD["epsilon"])
        if (value != expected).any():
            raise WrongError(f"key {key} is {value} after {steps} steps, not {expected}")

    def _check_replicas(self, key: int) -> None:
        """What hosts have agreed on, and what each has not contributed yet, is every push behind a last set."""
        leaders = self.ranks[:: self.job.sharing]
        if len({rank.base(key).tobytes() for rank in self.ranks}) > 1:
            raise WrongError(f"ranks have agreed on different values of key {key}")
        base = self.ranks[0].base(key)
        apart = [rank.value(key) - base for rank in leaders]
        if all(calls and calls[-1].kind == SYNC for calls in self.begun) and any(map(any, apart)):
            raise WrongError(f"key {key} differs on the hosts by {apart} after all have synchronized")
        last_set, pushes = histories.read_vector(sum(apart, base))
        sets = [each for each in self._operations(key) if each.kind == SET]
        if last_set not in ({each.number for each in sets} or {0}):
            raise WrongError(f"key {key} has the value of set {last_set}, which is none of those that were made")
        for each in self._operations(key):
            is_behind = all(before.worker == each.worker and before.end < each.begin for before in sets)
            if each.kind == PUSH and is_behind and not pushes >> each.number & 1:
                raise WrongError(f"push {each.number} of key {key} was lost")
        if not sets and not any(each.kind == GRADIENT for calls in self.begun for each in calls):
            self._check_pulls_of_replicas(key)

    def _check_pulls_of_replicas(self, key: int) -> None:
        hosts = [rank // self.job.sharing for rank in range(self.job.size)]
        histories.check_replicas([*self._operations(key), *self._syncs(key)], hosts)

    def _syncs(self, key: int) -> Iterator[histories.Operation]:
        for rank, calls in enumerate(self.begun):
            for each in calls:
                if each.kind == SYNC:
                    yield histories.Operation(rank, rank, key, SYNC, 0, (0, 0), each.begin, each.end)


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


@dataclass
class Visited:
    """What random orders have come to.

    Attributes
    ----------
    states, ends
        How many distinct ones.
    """

    orders: int = 0
    events: int = 0
    states: int = 0
    ends: int = 0
    wrong: list[str] = field(default_factory=list)

    def __iadd__(self, other: Visited) -> Visited:
        for name in ("orders", "events", "states", "ends", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


def wander(job: Job, walks: int, seed: int = 1, fault: Callable[[], Fault] | None = None) -> Visited:
    """Follow so many orders of events at random; raises as `explore` does."""
    choice = random.Random(seed)
    visited = Visited()
    states, ends = set(), set()
    for _ in range(walks):
        run = Run(job, None if fault is None else fault())
        with naming_path(run):
            while actions := run.actions():
                run.do(actions[int(choice.random() * len(actions))])
                states.add(run.state)
            run.check_end()
        ends.add(run.state)
        visited.orders += 1
        visited.events += len(run.path)
    visited.states, visited.ends = len(states), len(ends)
    return visited


def larger_jobs(orders: int) -> list[tuple[Job, int, int]]:
    """Jobs for so many random orders: those of `JOBS` that have many states, then random ones; each with a seed."""
    jobs = [JOBS[name] for name in ("two keys", "back and forth", "rounds", "rounds and a set", "two pairs")]
    jobs += [random_job(seed) for seed in range(max(0, -(-orders // WALKS_OF_JOB) - len(jobs)))]
    return [
        (job, min(WALKS_OF_JOB, orders - WALKS_OF_JOB * seed), seed)
        for seed, job in enumerate(jobs)
        if orders > WALKS_OF_JOB * seed
    ]


def _wander(task: tuple[Job, int, int]) -> Visited:
    try:
        return wander(*task)
    except WrongError as error:
        return Visited(wrong=[f"{task[0]}, order of seed {task[2]}: {error}"])


def _processes() -> concurrent.futures.Executor:
    context = multiprocessing.get_context("fork")  # this process has no threads, and no MPI
    return concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), context)


def wander_through(orders: int) -> Visited:
    """Follow so many random orders of larger jobs, in several processes, with a bar."""
    from tqdm import tqdm

    visited = Visited()
    with (
        _processes() as pool,
        tqdm(total=orders, unit=" orders", unit_scale=True, disable=None) as bar,
    ):
        for each in pool.map(_wander, larger_jobs(orders)):
            visited += each
            bar.update(each.orders)
    return visited


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
    """A fault that changes one message of a kind in each run, the first one that it can."""

    def begin() -> Fault:
        left = [1]

        def spoil(packet: bytes) -> list[bytes]:
            spoiled = b""
            for kind, frame in frames(packet):
                if kind == NUMBERS[name] and left[0] and (changed := change(frame)) != frame:
                    left[0] = 0
                    frame = changed
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
    if len(frame) < FRAME.size + RECORD.size + 8 * LENGTH:
        return frame  # an answer without values: they come from elsewhere
    record = bytearray(frame)
    value = struct.unpack_from(f"<{LENGTH}d", record, len(frame) - 8 * LENGTH)
    struct.pack_into(f"<{LENGTH}d", record, len(frame) - 8 * LENGTH, *(2 * each for each in value))
    return bytes(record)


def forget(frame: bytes) -> bytes:
    """A state as before the first step; without one nothing is changed."""
    value = FRAME.size + RECORD.size + 8 * LENGTH
    return frame[:value] + bytes(len(frame) - value)


def speed_up(frame: bytes) -> bytes:
    """A gradient with another rate than that of its optimizer."""
    at = FRAME.size + RECORD.size
    return frame[:at] + struct.pack("<d", 2.0) + frame[at + 8 :]


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
                "GRADIENT",
                "ACK",
                "DELTA",
                "GRADIENT_DELTA",
                "SUM",
                "ROUND_END",
                "SUMS_END",
                "REPLACE",
                "SET",
                "PULL",
                "PULL_REPLY",
                "CONTENDED",
                "APPLIED",
                "ROUND_NEWS",
            ],
        ),
        (repeat, ["PUSH", "SET", "GRADIENT", "DELTA", "GRADIENT_DELTA", "SUM"]),
        (double, ["TRANSFER", "SUM", "PUSH", "PULL_REPLY"]),
        (age, ["DELTA", "GRADIENT_DELTA"]),
        (speed_up, ["GRADIENT"]),
        (forget, ["TRANSFER"]),
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


def find_at_random(fault: Callable[[], Fault], jobs: int = 300, orders: int = 10) -> str:
    """The first of some random jobs that notices a fault in one of a few random orders; "" if none does."""
    for seed in range(jobs):
        try:
            wander(random_job(seed), orders, seed, fault)
        except WrongError as error:
            return f"random job {seed}: {str(error)[:90]}"
    return ""


def explore_jobs(names: Iterable[str], limit: int, outcomes: Counter[str]) -> None:
    """Follow every order of some jobs, and say what came out of it."""
    with _processes() as pool:
        for right, line in pool.map(_explore, names, itertools.repeat(limit)):
            print(line, flush=True)
            outcomes["right" if right else "wrong"] += 1


def _explore(name: str, limit: int) -> tuple[bool, str]:
    began = time.perf_counter()
    try:
        states, ends, all_of_them = explore(JOBS[name], limit=limit)
    except WrongError as error:
        return False, f"{name:20} WRONG: {error}"
    outcome = "all states" if all_of_them else "not all"
    seconds = time.perf_counter() - began
    return True, f"{name:20} {states:9,} states {ends:8,} ends  {outcome}, {seconds:.0f} s"


def follow_random_orders(orders: int, outcomes: Counter[str]) -> None:
    """The same with random orders of larger jobs."""
    began = time.perf_counter()
    jobs = len(larger_jobs(orders))
    visited = wander_through(orders)
    print(
        f"{visited.orders:,} random orders of {jobs} larger jobs: {visited.events:,} events, {visited.states:,} "
        f"distinct states, {visited.ends:,} distinct ends, {time.perf_counter() - began:.0f} s"
    )
    print("".join(f"WRONG: {each}\n" for each in visited.wrong), end="", flush=True)
    outcomes["right"] += jobs - len(visited.wrong)
    outcomes["wrong"] += len(visited.wrong)


def plant_faults(outcomes: Counter[str]) -> None:
    """Each fault must be found, in every order of the jobs and at random."""
    with _processes() as pool:
        for name, *founds in pool.map(_plant, FAULTS):
            for how, found in zip(("every order", "at random"), founds, strict=True):
                print(f"planted: {name:20} {how:12} {found or 'NOT FOUND'}", flush=True)
                outcomes["found" if found else "not found"] += 1


def _plant(name: str) -> tuple[str, str, str]:
    return name, find(FAULTS[name]), find_at_random(FAULTS[name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", choices=JOBS, help="only this one; repeatable")
    parser.add_argument("--limit", type=int, default=LIMIT, help="states of a job (default %(default)s)")
    parser.add_argument("--orders", type=int, default=WALKS, help="random orders of larger jobs (default %(default)s)")
    parser.add_argument("--only", choices=("every", "random", "planted"), help="only one of the three parts")
    parser.add_argument("--list", action="store_true", help="list the jobs and exit")
    args = parser.parse_args()
    if args.list:
        for name, job in JOBS.items():
            print(f"{name:20} {job.about}")
        return 0
    outcomes: Counter[str] = Counter()
    parts = [args.only] if args.only else ["every"] if args.job else ["every", "random", "planted"]
    if "every" in parts:
        explore_jobs(args.job or JOBS, args.limit, outcomes)
    if "random" in parts:
        follow_random_orders(args.orders, outcomes)
    if "planted" in parts:
        plant_faults(outcomes)
    print(", ".join(f"{count} {what}" for what, count in outcomes.items()))
    return 1 if outcomes["wrong"] or outcomes["not found"] else 0


if __name__ == "__main__":
    sys.exit(main())
