"""A job whose operations are recorded; `histories.py` starts it and looks for an order that explains them.

Arguments: a folder for the records, workers of a rank, calls of a worker, a seed.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

import lapse
from histories import LENGTH, MOST_PUSHES, PULL, PUSH, SET, SYNC, vector_of_push, vector_of_set

NUM_KEYS, REPLICATED = 4, 3

folder, workers, calls, seed = sys.argv[1], *map(int, sys.argv[2:])


class Recorder:
    """The calls of one worker, and what it has to say about them."""

    def __init__(self, kv):
        self.kv = kv
        self.random = np.random.default_rng([seed, kv.id])
        self.operations = []
        self.pushed = [0] * NUM_KEYS
        self.sets = 0
        self.under_way = []  # operation, kind, keys, numbers, begin

    def begin(self):
        """Begin a call; most of them move keys or write."""
        kind = self.random.choice([PULL, PUSH, SET, "localize", "here", SYNC], p=[0.32, 0.3, 0.08, 0.2, 0.08, 0.02])
        keys = self.random.permutation(NUM_KEYS)[: self.random.choice([1, 1, 1, 2, 3])]
        if kind in (SET, "localize"):
            keys = keys[keys != REPLICATED]
        if kind == PUSH:
            keys = [key for key in keys if self.next_push(key) < MOST_PUSHES]
        if not len(keys):
            return
        if kind == "localize":
            operation = self.kv.localize(keys)
            if self.random.random() < 0.5:
                operation.wait()
        elif kind == "here":
            self.pull_if_local(int(keys[0]))
        elif kind == SYNC:
            begin = time.monotonic_ns()
            self.kv.wait_replica_sync()
            self.note(kind, REPLICATED, 0, None, begin)
        else:
            self.start(kind, keys)

    def next_push(self, key):
        return self.kv.id + self.pushed[key] * self.kv.num_workers

    def start(self, kind, keys):
        numbers = [0] * len(keys)
        if kind == PUSH:
            numbers = [self.next_push(key) for key in keys]
            for key in keys:
                self.pushed[key] += 1
        elif kind == SET:
            numbers = [1 + self.kv.id + (self.sets + i) * self.kv.num_workers for i in range(len(keys))]
            self.sets += len(keys)
        vector = vector_of_push if kind == PUSH else vector_of_set
        values = np.stack([vector(number) for number in numbers])
        begin = time.monotonic_ns()
        operation = self.kv.pull(keys) if kind == PULL else getattr(self.kv, kind)(keys, values)
        self.under_way.append((operation, kind, keys, numbers, begin))

    def pull_if_local(self, key):
        out = np.empty((1, LENGTH))
        begin = time.monotonic_ns()
        if self.kv.pull_if_local([key], out):
            self.note(PULL, key, 0, out[0].tolist(), begin)

    def finish(self):
        """Wait for what is under way, in any order."""
        for place in self.random.permutation(len(self.under_way)):
            operation, kind, keys, numbers, begin = self.under_way[place]
            values = operation.wait()
            end = time.monotonic_ns()
            for i, key in enumerate(keys):
                self.note(kind, int(key), numbers[i], values[i].tolist() if kind == PULL else None, begin, end)
        self.under_way = []

    def note(self, kind, key, number, value, begin, end=None):
        end = time.monotonic_ns() if end is None else end
        self.operations.append((self.kv.id, self.kv.rank, key, kind, number, value, begin, end))


def work(kv):
    recorder = Recorder(kv)
    kv.barrier()
    for _ in range(calls):
        recorder.begin()
        if recorder.random.random() < 0.7:  # the others are under way together
            recorder.finish()
        if recorder.random.random() < 0.1:
            time.sleep(recorder.random.choice([0, 1e-4, 1e-3]))
    recorder.finish()
    kv.wait_replica_sync()
    kv.barrier()
    recorder.start(PULL, np.arange(NUM_KEYS))
    recorder.finish()
    return recorder.operations


with lapse.Server(NUM_KEYS, LENGTH, "float64", workers=workers, replicated_keys=[REPLICATED]) as server:
    operations = [each for some in server.run(work) for each in some]
    record = {"operations": operations, "sharing": list(server.sharing_ranks), "replicated": [REPLICATED]}
    Path(folder, f"{server.rank}.json").write_text(json.dumps(record))
