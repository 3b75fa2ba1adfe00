"""Ranks pass different arguments to collective calls, or what they pass fails on one: an error on all, and no more."""

import numpy as np

import lapse
from common import rank, size, tell

last = size - 1


def error_of(call):
    """The kind and the text of what a call raises, without newlines."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return "no error"


class WrongShape:
    """An initializer that returns too few values."""

    def values(self, keys, length, seed):
        """One element less for each."""
        return np.ones((len(keys), length - 1))


def unequal(keys, rng):
    """A function that fails where one key lies."""
    if keys[0] == 19:
        raise ZeroDivisionError("for key 19")
    return np.ones(4)


class OnlyHere:
    """A value that cannot be sent."""

    def __reduce__(self):
        raise TypeError("this cannot be pickled")


def work(kv):
    """Each call is an error for all workers, and the next one works."""
    shapes = [np.ones(2 + (kv.id == kv.num_workers - 1)), np.ones((2, 1 + (kv.rank == last)))]
    for x in shapes:
        tell("allreduce", error_of(lambda x=x: kv.allreduce(x)))
    strange = np.array([OnlyHere()] if kv.rank == last else [0], dtype=object)
    tell("allreduce", error_of(lambda: kv.allreduce(strange)))
    text = "a" if kv.rank == last else 1
    tell("allreduce", error_of(lambda: kv.allreduce(text)))
    return kv.allreduce(1)


with lapse.Server(20, 4, workers=2, replicated_keys=[1, 2]) as server:
    assert server.run(work) == [2 * size] * 2
    calls = {
        "keys": lambda: server.initialize(range(10 + (rank == last)), lapse.Constant(1)),
        "init": lambda: server.initialize(range(20), lapse.Constant(rank == last)),
        "a key": lambda: server.initialize([20 * (rank == last)], lapse.Constant(1)),
        "no keys": lambda: server.initialize("abc" if rank == last else range(20), lapse.Constant(1)),
        "no initializer": lambda: server.initialize(range(20), None if rank == last else lapse.Constant(1)),
        "the class": lambda: server.initialize(range(20), lapse.Normal),
        "the shape": lambda: server.initialize(range(20), WrongShape()),
        "the function": lambda: server.initialize(range(20), unequal),
        "text": lambda: server.initialize(range(20), lambda keys, rng: "abcd"),
    }
    for name, call in calls.items():
        tell(name, error_of(call))
    server.initialize(range(20), lapse.Constant(3))
    assert server.run(lambda kv: kv.pull(range(20)).wait().sum())[0] == 240
