"""Record what workers did and saw in real jobs, and look for one order of operations that explains it.

    .venv/bin/python tests/histories.py               100 jobs
    .venv/bin/python tests/histories.py --count 5 --calls 400

`make histories` runs it. `history_program.py` is the job: a few keys, which move all the time, and workers that pull,
push, set and localize them. Each operation is recorded with its begin and end, by a clock that all ranks of a machine
have in common (CLOCK_MONOTONIC), and each pull with the value that it returned.

For each key a history is *sequentially consistent* if its operations have an order that respects the order in which
each worker made them and in which every pull returns what was written before it (Lamport 1979). It is *linearizable* if
the order also respects the clock: what had ended before another operation began comes before it (Herlihy and Wing
1990). The first is what a worker that waits can rely on; the second follows as well, since a value exists once.
`order_of` searches the order, as Wing and Gong did ("Testing and verifying concurrent objects", 1993) with the memory
of Lowe ("Testing for linearizability", 2017). In general that takes time exponential in the number of operations
(Gibbons and Korach, "Testing shared memories", 1997), but here what is written tells itself apart: a set writes a
number of its own, and a push a digit of its own, so that a pulled value names the last set and all the pushes after it.
Then nearly every step of the search is forced.

Replicas promise less, and `check_replicas` looks for that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PROGRAM = Path(__file__).parent / "history_program.py"

#: A value: the number of the last set, then words with so many digits to the base 4, one for each push.
DIGITS, WORDS = 26, 32
LENGTH = 1 + WORDS
MOST_PUSHES = DIGITS * WORDS  # of a key

PULL, PUSH, SET, SYNC = "pull", "push", "set", "sync"


class WrongError(Exception):
    """A history that nothing explains."""


# What is written ------------------------------------------------------------------------------------------------------


def vector_of_push(number: int) -> np.ndarray:
    """What the push of a number adds."""
    vector = np.zeros(LENGTH)
    vector[1 + number // DIGITS] = 4.0 ** (number % DIGITS)
    return vector


def vector_of_set(number: int) -> np.ndarray:
    """What the set of a number writes."""
    vector = np.zeros(LENGTH)
    vector[0] = number
    return vector


def read_vector(vector: Sequence[float]) -> tuple[int, int]:
    """The number of the last set, and the pushes behind it, as bits.

    Raises
    ------
    WrongError
        For a push that took effect several times, and for what no set and no pushes come to.
    """
    pushes = 0
    for word, value in enumerate(vector[1:]):
        if value == 0:
            continue
        if not (0 <= value < 4.0**DIGITS and value == int(value)):
            raise WrongError(f"element {1 + word} of a value is {value!r}, to which no pushes add up")
        for digit in range(DIGITS):
            times = int(value) >> 2 * digit & 3
            if times > 1:
                raise WrongError(f"push {word * DIGITS + digit} took effect {times} times")
            pushes |= times << (word * DIGITS + digit)
    if vector[0] != int(vector[0]):
        raise WrongError(f"element 0 of a value is {vector[0]!r}, which nobody has set")
    return int(vector[0]), pushes


@dataclass(frozen=True)
class Operation:
    """One key of an operation.

    Attributes
    ----------
    worker, rank, key : int
    kind : str
    number : int
        Of a push or a set.
    seen : tuple of (int, int)
        Of a pull: the last set, and the pushes behind it as bits.
    begin, end : int
        Nanoseconds.
    """

    worker: int
    rank: int
    key: int
    kind: str
    number: int
    seen: tuple[int, int]
    begin: int
    end: int

    def __str__(self) -> str:
        what = f"saw {describe(self.seen)}" if self.kind == PULL else f"number {self.number}"
        return f"{self.kind} of key {self.key} by worker {self.worker} in [{self.begin}, {self.end}], {what}"


def describe(seen: tuple[int, int]) -> str:
    """A value in words."""
    numbers = [str(number) for number in range(seen[1].bit_length()) if seen[1] >> number & 1]
    if len(numbers) > 12:
        numbers = [f"... {len(numbers) - 12} more", *numbers[-12:]]
    return f"set {seen[0]} + pushes {{{', '.join(numbers)}}}"


# One order that explains a key ----------------------------------------------------------------------------------------


class _Search:
    """The search for an order of the operations of one key."""

    def __init__(self, operations: Sequence[Operation], by_clock: bool) -> None:
        self.operations = sorted(operations, key=lambda each: each.begin)
        lines = defaultdict(list)  # what is ordered by its begins and ends
        for place, each in enumerate(self.operations):
            lines[0 if by_clock else each.worker].append(place)
        self.lines = list(lines.values())
        self.pulls = defaultdict(list)  # of each set, those that saw the fewest pushes first
        self.set_seen: dict[int, int] = {}  # by push: the set behind which it was seen
        for place, each in enumerate(self.operations):
            if each.kind == PULL:
                self.pulls[each.seen[0]].append(place)
        for number, places in self.pulls.items():
            places.sort(key=lambda place: self.operations[place].seen[1].bit_count())
            self._check_chain(number, places)

    def _check_chain(self, number: int, places: list[int]) -> None:
        before = 0
        for place in places:
            pushes = self.operations[place].seen[1]
            if before & ~pushes:
                raise WrongError(f"two pulls saw pushes in different orders; one of them: {self.operations[place]}")
            for push in bits_of(pushes & ~before):
                if self.set_seen.setdefault(push, number) != number:
                    raise WrongError(f"push {push} was seen behind set {number} and set {self.set_seen[push]}")
            before = pushes

    def run(self) -> list[Operation]:
        """The order; raises `WrongError` with the point where the longest attempt ends."""
        everything = (1 << len(self.operations)) - 1
        starts = [[0] * len(self.lines)]
        stack: list[tuple[int, tuple[int, int], list[int], list[int]]] = [(0, (0, 0), [], starts[0])]
        seen = set()
        longest: tuple[list[int], tuple[int, int], list[int]] = ([], (0, 0), [])
        while stack:
            done, state, order, firsts = stack.pop()
            done, state, order, firsts, enabled = self._go_on(done, state, order, list(firsts))
            if done == everything:
                return [self.operations[place] for place in order]
            if len(order) >= len(longest[0]):
                longest = order, state, enabled
            if (done, state) in seen:
                continue
            seen.add((done, state))
            if self._next_pull(done, state[0]) is not None:
                continue  # it can never be explained
            for place in enabled:
                if self.operations[place].kind == SET:
                    number = self.operations[place].number
                    stack.append((done | 1 << place, (number, 0), [*order, place], firsts))
        order, state, enabled = longest
        raise WrongError(
            f"no order explains the {len(self.operations)} operations: {len(order)} of them come to "
            f"{describe(state)}, and then one of these must follow:\n    "
            + "\n    ".join(str(self.operations[place]) for place in enabled)
        )

    def _go_on(self, done, state, order, firsts):
        """Take the steps that can do no harm; returns where that leads, and what could come next there."""
        order = list(order)
        while True:
            enabled = self._enabled(done, firsts)
            taken = [place for place in enabled if self._is_forced(place, done, state)]
            if not taken:
                return done, state, order, firsts, enabled
            for place in taken:
                if not self._is_forced(place, done, state):  # by one of those taken before it
                    continue
                each = self.operations[place]
                done |= 1 << place
                order.append(place)
                if each.kind == PUSH:
                    state = (state[0], state[1] | 1 << each.number)
                elif each.kind == SET:
                    state = (each.number, 0)
                    break

    def _is_forced(self, place: int, done: int, state: tuple[int, int]) -> bool:
        """Whether, if there is an order that goes on from here, there is one in which this comes next.

        A pull that fits changes nothing. A push that is seen by the next pull behind this set, and so by all later
        ones, commutes with whatever can come before that pull. What no pull sees does no harm where no pull is left.
        """
        each = self.operations[place]
        if each.kind == PULL:
            return each.seen == state
        following = self._next_pull(done, state[0])
        if each.kind == PUSH:
            if following is not None:
                return bool(self.operations[following].seen[1] >> each.number & 1)
            return each.number not in self.set_seen
        return following is None and each.number not in self.pulls

    def _next_pull(self, done: int, number: int) -> int | None:
        for place in self.pulls.get(number, ()):
            if not done >> place & 1:
                return place
        return None

    def _enabled(self, done: int, firsts: list[int]) -> list[int]:
        """What nothing that is left precedes. `firsts`: of each line the first that is not done; moved on."""
        enabled = []
        for number, line in enumerate(self.lines):
            at = firsts[number]
            while at < len(line) and done >> line[at] & 1:
                at += 1
            firsts[number] = at
            first_end = None
            for place in itertools.islice(line, at, None):
                if done >> place & 1:
                    continue
                each = self.operations[place]
                if first_end is not None and each.begin > first_end:
                    break
                enabled.append(place)
                first_end = each.end if first_end is None else min(first_end, each.end)
        return enabled


def bits_of(number: int) -> Iterable[int]:
    """The places of the bits that are set."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def order_of(operations: Sequence[Operation], by_clock: bool = True) -> list[Operation]:
    """An order of the operations of one key that explains them.

    Parameters
    ----------
    operations : sequence of Operation
    by_clock : bool
        Whether the order must respect the clock (linearizable), or only that of each worker (sequentially consistent).

    Raises
    ------
    WrongError
        If there is none.
    """
    _check_numbers(operations)
    return _Search(operations, by_clock).run()


def _check_numbers(operations: Iterable[Operation]) -> None:
    sets = {0} | {each.number for each in operations if each.kind == SET}
    pushes = sum(1 << each.number for each in operations if each.kind == PUSH)
    for each in operations:
        if each.kind == PULL and (each.seen[0] not in sets or each.seen[1] & ~pushes):
            raise WrongError(f"a value that nobody wrote: {each}")


def check(operations: Sequence[Operation]) -> None:
    """Check the operations of one key that is not replicated; says which of the two promises is broken."""
    try:
        order_of(operations)
    except WrongError as error:
        try:
            order_of(operations, by_clock=False)
        except WrongError as worse:
            raise WrongError(f"not sequentially consistent: {worse}") from error
        raise WrongError(f"sequentially consistent, but not linearizable: {error}") from None


# Replicas -------------------------------------------------------------------------------------------------------------


def check_replicas(operations: Sequence[Operation], hosts: Sequence[int]) -> None:
    """Check the pulls, pushes and syncs of one replicated key, which nobody sets.

    Each push takes effect once in each replica (`read_vector` has looked). A pull sees what ended before it on its
    host, and whatever an earlier pull there has seen. Of each worker it sees the first pushes, without a gap, and what
    was pushed on a rank before that rank's `wait_replica_sync`, when that has ended.

    Parameters
    ----------
    hosts : sequence of int
        For each rank the first of the ranks that share memory with it.
    """
    _check_numbers(operations)
    pushes = [each for each in operations if each.kind == PUSH]
    ended = sorted(pushes, key=lambda each: each.end)
    visible = defaultdict(list)  # by host (None: all): pairs of time and what every later pull there must see
    for each in ended:
        visible[hosts[each.rank]].append((each.end, 1 << each.number))
    for each in operations:
        if each.kind == PULL:
            visible[hosts[each.rank]].append((each.end, each.seen[1]))
        elif each.kind == SYNC:
            before = sum(1 << push.number for push in pushes if push.rank == each.rank and push.end < each.begin)
            visible[None].append((each.end, before))
    earlier = {
        each.number: sum(1 << push.number for push in pushes if push.worker == each.worker and push.end < each.begin)
        for each in pushes
    }
    for each in operations:
        if each.kind != PULL:
            continue
        due = 0
        for time_of, what in visible[hosts[each.rank]] + visible[None]:
            if time_of < each.begin:
                due |= what
        for number in bits_of(each.seen[1]):
            due |= earlier[number]
        if due & ~each.seen[1]:
            raise WrongError(f"{each}, but not {describe((0, due & ~each.seen[1]))}")
        begun = sum(1 << push.number for push in pushes if push.begin <= each.end)
        if each.seen[1] & ~begun:
            raise WrongError(f"{each}: pushes that had not begun")


# Jobs -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What is recorded.

    Attributes
    ----------
    memory : str
        Which ranks share memory: a key of `run.MEMORY`.
    """

    ranks: int
    workers: int
    calls: int
    seed: int
    memory: str = "messages"

    def __str__(self) -> str:
        return f"{self.ranks} ranks of {self.workers} workers, {self.memory}, seed {self.seed}"


def record(job: Job, env: dict | None = None) -> tuple[list[Operation], list[int], set[int]]:
    """Run a job; returns its operations, the hosts as `check_replicas` takes them, and the replicated keys.

    Raises
    ------
    WrongError
        For a value to which nothing adds up.
    """
    from launch import mpirun
    from run import MEMORY

    with tempfile.TemporaryDirectory(prefix="lapse-history-") as folder:
        args = [PROGRAM, folder, job.workers, job.calls, job.seed]
        mpirun(job.ranks, args, timeout=90, env={**MEMORY[job.memory], **(env or {})}).check()
        records = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(job.ranks)]
    operations = [
        Operation(*line[:5], read_vector(line[5] or [0] * LENGTH), *line[6:])
        for each in records
        for line in each["operations"]
    ]
    return operations, [min(each["sharing"]) for each in records], set(records[0]["replicated"])


def check_job(operations: Iterable[Operation], hosts: Sequence[int], replicated: set[int]) -> Counter:
    """Check all keys of a job; returns how many operations of each kind there were."""
    by_key = defaultdict(list)
    syncs = []
    for each in operations:
        if each.kind == SYNC:
            syncs.append(each)
        else:
            by_key[each.key].append(each)
    for key, some in by_key.items():
        if key in replicated and len(set(hosts)) > 1:
            check_replicas(some + syncs, hosts)
        else:  # a single host has no replicas
            check(some)
    return Counter(each.kind for each in operations)


def jobs(count: int, calls: int, first: int = 0) -> Iterable[Job]:
    """Jobs by seed."""
    for seed in range(first, first + count):
        choice = random.Random(seed)
        yield Job(
            choice.randint(2, 4), choice.randint(1, 3), calls, seed, choice.choice(("messages", "shared", "pairs"))
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="jobs (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument("--calls", type=int, default=150, help="of each worker (default %(default)s)")
    args = parser.parse_args()
    total: Counter = Counter()
    wrong = 0
    began = time.perf_counter()
    for job in jobs(args.count, args.calls, args.first):
        try:
            total += check_job(*record(job))
            print(f"{job}: explained", flush=True)
        except (WrongError, AssertionError) as error:
            wrong += 1
            print(f"{job}: WRONG: {error}", flush=True)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in total.items())
    print(
        f"{args.count - wrong} of {args.count} histories are linearizable per key ({counts}), "
        f"{time.perf_counter() - began:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
