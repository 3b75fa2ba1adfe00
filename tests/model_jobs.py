"""The jobs of `model.py`: what ranks do."""

from __future__ import annotations

import random
from dataclasses import dataclass

Call = tuple[str, tuple[int, ...]]


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
        The keys of which all hosts have replicas.
    sharing
        So many neighbours are a host, and share memory.
    steps
        Whether all changes are steps of AdaGrad, with the same gradient: the value tells how many there were, if each
        found the state that the one before had left. Else a gradient does what a push does.
    """

    about: str
    calls: tuple[tuple[Call, ...], ...]
    waits: bool = False
    replicated: tuple[int, ...] = ()
    max_pending: int = 0
    sharing: int = 1
    num_keys: int = 2
    steps: bool = False

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.calls)


LOCALIZE, PUSH, PULL, SET, GRADIENT, SYNC = "localize", "push", "pull", "set", "gradient", "sync"
BORROW = "borrow"  # a key, if it is here; the next step of this rank changes its value in place and returns it; of a
# replica the step behind that does
IN_VAIN = "in vain"  # let an absent key be one that was relocated here in vain, so that localizes of it are declined

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
    "gradients": Job(
        "two ranks take a key from each other and apply gradients to it, as the third one does",
        (((LOCALIZE, (0,)), (GRADIENT, (0,))),) * 2 + (((GRADIENT, (0,)), (SET, (0,))),),
    ),
    "steps": Job(
        "the same, with steps that need the state of those before",
        (((LOCALIZE, (0,)), (GRADIENT, (0,))),) * 2 + (((GRADIENT, (0,)), (GRADIENT, (0,))),),
        steps=True,
    ),
    "gradients, rounds of two": Job(
        "both ranks apply gradients to a replicated key, one of them pushes to it, and both synchronize",
        (((GRADIENT, (0,)), (PUSH, (0,)), (SYNC, ())), ((GRADIENT, (0,)), (SYNC, ()))),
        replicated=(0,),
    ),
    "gradient behind a set": Job(
        "each rank sets a replicated key and then applies a gradient to it",
        (((SET, (0,)), (GRADIENT, (0,)), (SYNC, ())), ((SET, (1,)), (GRADIENT, (1,)), (SYNC, ()))),
        waits=True,
        replicated=(0, 1),
    ),
    "gradient behind a set, 2": Job(
        "the same with the other key",
        (((SET, (1,)), (GRADIENT, (1,)), (SYNC, ())), ((SET, (0,)), (GRADIENT, (0,)), (SYNC, ()))),
        waits=True,
        replicated=(0, 1),
    ),
    "gradients of a leader and a member": Job(
        "a leader, its member and another host apply gradients to a replicated key and synchronize",
        (((GRADIENT, (0,)), (SYNC, ())), ((GRADIENT, (0,)), (SYNC, ())), ((GRADIENT, (0,)), (SYNC, ()))),
        replicated=(0,),
        sharing=2,
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
    "declined": Job(
        "ranks decline to take keys, which the home takes for them",
        (
            ((IN_VAIN, (0,)), (LOCALIZE, (0,)), (PULL, (0,))),
            ((IN_VAIN, (0,)), (LOCALIZE, (0,)), (PUSH, (0,))),
            ((IN_VAIN, (0,)), (LOCALIZE, (0,)), (PUSH, (0,))),
        ),
        waits=True,
    ),
    "borrowed": Job(
        "two ranks borrow a key when they have it, the third one sets and reads it",
        (((LOCALIZE, (0,)), (BORROW, (0,))), ((LOCALIZE, (0,)), (BORROW, (0,))), ((SET, (0,)), (PULL, (0,)))),
        waits=True,
    ),
    "borrowed replica": Job(
        "a rank borrows a replicated key, to which the other one pushes; both synchronize",
        (((PUSH, (0,)), (BORROW, (0,)), (SYNC, ())), ((PUSH, (0,)), (SYNC, ()))),
        replicated=(0,),
    ),
    "borrowed replica and a set": Job(
        "a rank borrows a replicated key, which the other one sets; both synchronize",
        (((BORROW, (0,)), (SYNC, ())), ((SET, (0,)), (SYNC, ()))),
        replicated=(0,),
    ),
    "borrowed at home": Job(
        "the same, of the other key",
        (((BORROW, (1,)), (SYNC, ())), ((SET, (1,)), (SYNC, ()))),
        replicated=(0, 1),
    ),
    "borrowed, each push begins a round": Job(
        "a leader borrows a replica to which its member and another host push",
        (((BORROW, (0,)),), ((PUSH, (0,)),), ((PUSH, (0,)), (SYNC, ()))),
        replicated=(0,),
        max_pending=1,
        sharing=2,
    ),
    "pair and one": Job(
        "two ranks share memory; one of them and a rank of another host take a key, and all change it",
        (((LOCALIZE, (0,)), (PUSH, (0,))), ((PUSH, (0,)), (PULL, (0,))), ((LOCALIZE, (0,)), (PUSH, (0,)))),
        sharing=2,
    ),
    "two pairs": Job(
        "ranks of two hosts of two take a key",
        (((LOCALIZE, (0,)), (PUSH, (0,))), ((PUSH, (0,)),), ((LOCALIZE, (0,)), (PULL, (0,))), ((PUSH, (0,)),)),
        sharing=2,
    ),
    "leader and member": Job(
        "a leader, its member and another host push to a replicated key and synchronize",
        (((PUSH, (0,)), (SYNC, ())), ((PUSH, (0,)), (SYNC, ())), ((PUSH, (0,)), (SYNC, ()))),
        replicated=(0,),
        sharing=2,
    ),
    "set by a member": Job(
        "a member sets a replicated key, while its leader and another host push to it",
        (((PUSH, (0,)),), ((SET, (0,)), (PUSH, (0,))), ((PUSH, (0,)), (SYNC, ()))),
        replicated=(0,),
        sharing=2,
    ),
    "work of members": Job(
        "each push begins a round, on a host of a leader and a member and on another one",
        (((PUSH, (0,)),), ((PUSH, (0,)), (PUSH, (0,))), ((PUSH, (0,)),)),
        replicated=(0,),
        max_pending=1,
        sharing=2,
    ),
}


def random_job(seed: int) -> Job:
    """A job of 2 to 6 ranks and 2 or 3 keys."""
    choice = random.Random(seed)
    size = choice.choice((2, 3, 3, 3, 4, 5, 6))
    num_keys = choice.choice((2, 2, 3))
    replicated = choice.choice(((), (), (0,), (0, 1)))
    sharing = choice.choice((1, 1, 2, 3))
    if size <= sharing:
        replicated = ()  # of a single host nothing is replicated
    steps = not replicated and choice.random() < 0.3
    calls = tuple(
        tuple(_random_call(choice, num_keys, replicated, steps) for _ in range(choice.randint(1, 4)))
        for _ in range(size)
    )
    if replicated and (choice.random() < 0.5 or GRADIENT in (kind for some in calls for kind, _ in some)):
        calls = tuple((*some, (SYNC, ())) for some in calls)
    return Job(
        f"random, seed {seed}",
        calls,
        waits=choice.random() < 0.5,
        replicated=replicated,
        max_pending=choice.choice((0, 1, 3)) if replicated else 0,
        sharing=sharing,
        num_keys=num_keys,
        steps=steps,
    )


def _random_call(choice: random.Random, num_keys: int, replicated: tuple[int, ...], steps: bool) -> Call:
    weights = (5, 0, 4, 0, 0, 1, 7) if steps else (5, 4, 4, 2, 1, 1, 2)
    kind = choice.choices((LOCALIZE, PUSH, PULL, SET, BORROW, IN_VAIN, GRADIENT), weights)[0]
    keys = choice.sample(range(num_keys), 1 if kind in (BORROW, IN_VAIN) else choice.randint(1, 2))
    if kind in (LOCALIZE, IN_VAIN):
        keys = [key for key in keys if key not in replicated] or [num_keys - 1]
    return kind, tuple(keys)
