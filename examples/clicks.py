"""Sparse logistic regression with AdaGrad: will this advertisement be clicked?

    mpirun -n 4 python examples/clicks.py --help

The clicks are synthetic. An example has 20 fields, each with a category that is drawn by a law like Zipf's; field and
category are hashed to one of a million keys. The value of a key is its weight and the sum of its squared gradients.

A batch pulls and pushes all its keys at once, so that a message carries hundreds of values and a worker waits once.
Then it hardly matters where they are: moving or replicating them is here to be compared, not because it is faster.
"""

import argparse
import functools
import json
import time

import numpy as np

import lapse

KEYS = 1_000_000
CATEGORIES = np.geomspace(4, 500_000, 20)  # of each field
BLOCK = 4096  # examples that are drawn together
AHEAD = 2  # batches whose keys are on their way
MAX_PENDING = 20_000  # updates of replicas between two synchronizations
EPSILON = 1e-8


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--management",
        choices=["classic", "localize", "replicate"],
        default="classic",
        help="leave keys where they are, move them ahead of their use, or replicate the hot ones; default: %(default)s",
    )
    parser.add_argument("--examples", type=int, default=64 * BLOCK, help="for training; a tenth of it is the test")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="threads of each rank")
    parser.add_argument("--rate", type=float, default=0.05)
    return parser.parse_args()


def hash_of(field, category):
    mixed = (category.astype(np.uint64) << np.uint64(8)) + field.astype(np.uint64)
    for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(32))) % np.uint64(KEYS)).astype(np.int64)


def draw_block(number):
    """The keys of `BLOCK` examples, and whether each was clicked; the same on every rank."""
    rng = np.random.default_rng([1, number])
    category = (CATEGORIES ** rng.random((BLOCK, len(CATEGORIES)))).astype(np.int64)
    keys = hash_of(np.broadcast_to(np.arange(len(CATEGORIES)), category.shape), category)
    chance = sigmoid(true_weights()[keys].sum(axis=1) - 1)
    return keys, rng.random(BLOCK) < chance


@functools.cache
def true_weights():
    return np.random.default_rng(2).normal(0, 0.6, KEYS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loss_of(scores, clicked):
    return float(np.logaddexp(0, np.where(clicked, -scores, scores)).sum())


def batches_of(blocks, size):
    """Each batch as its distinct keys, the place of each example's keys among them, and the clicks."""
    for keys, clicked in blocks:
        for first in range(0, BLOCK, size):
            distinct, places = np.unique(keys[first : first + size], return_inverse=True)
            yield distinct, places.reshape(-1, len(CATEGORIES)), clicked[first : first + size]


def train(kv, blocks, options):
    """One epoch over the blocks of this worker; the number of examples of all workers."""
    batches = list(batches_of(blocks[kv.id], options.batch))
    for number in range(-AHEAD, len(batches)):
        if options.management == "localize" and number + AHEAD < len(batches):
            kv.localize(batches[number + AHEAD][0])
        if number >= 0:
            step(kv, *batches[number], options.rate)
    kv.wait_all()
    kv.wait_replica_sync()
    return kv.allreduce(BLOCK * len(blocks[kv.id]))


def step(kv, keys, places, clicked, rate):
    values = kv.pull(keys).wait()
    error = sigmoid(values[places, 0].sum(axis=1)) - clicked
    gradient = np.bincount(places.ravel(), np.repeat(error, places.shape[1]), len(keys)).astype(np.float32)
    squares = gradient * gradient
    kv.push(keys, np.stack([-rate * gradient / np.sqrt(values[:, 1] + squares + EPSILON), squares], axis=1))


def test(kv, blocks):
    """The mean loss over the test of all workers."""
    loss = sum(loss_of(kv.pull(keys).wait()[:, :, 0].sum(axis=1), clicked) for keys, clicked in blocks[kv.id])
    total, count = kv.allreduce(np.array([loss, BLOCK * len(blocks[kv.id])]))
    return total / count


def choose_hot(blocks, options, pace, comm):
    """The keys of which every rank has a replica: those that most batches use, if that is faster here."""
    counts, batches = np.zeros(KEYS, dtype=np.int64), 0
    for mine in blocks.values():
        for keys, _, _ in batches_of(mine, options.batch):
            counts[keys] += 1
            batches += 1
    counts, batches = comm.allreduce(counts), comm.allreduce(batches)
    return lapse.choose_hot_spots(
        counts,
        ranks=comm.size,
        value_lengths=2,
        sharing=lapse.sharing_ranks(comm),
        replication=pace,
        network=lapse.measure_network(comm),
        in_flight=counts.sum() / batches,  # the keys of a batch are pulled together
    )


def main():
    options = read_options()
    from mpi4py.MPI import COMM_WORLD as comm

    workers = options.workers * comm.size
    mine = range(comm.rank * options.workers, (comm.rank + 1) * options.workers)
    blocks = max(workers, options.examples // BLOCK)
    training = {worker: [draw_block(i) for i in range(worker, blocks, workers)] for worker in mine}
    tests = range(blocks, blocks + max(workers, blocks // 10))
    testing = {worker: [draw_block(i) for i in tests[worker::workers]] for worker in mine}
    pace = lapse.Replication(max_pending=MAX_PENDING)
    hot = choose_hot(training, options, pace, comm) if options.management == "replicate" else None
    with lapse.Server(KEYS, 2, workers=options.workers, replicated_keys=hot, replication=pace) as server:
        seconds = []
        for epoch in range(options.epochs):
            began = time.perf_counter()
            examples = server.run(train, training, options)[0]
            seconds.append(time.perf_counter() - began)
            loss = server.run(test, testing)[0]
            if server.rank == 0:
                print(f"epoch {epoch + 1}: {examples / seconds[-1]:,.0f} examples per second, test loss {loss:.4f}")
        if server.rank == 0:
            result = {
                "app": "clicks",
                "ranks": server.size,
                "workers": options.workers,
                "epochs": options.epochs,
                "seconds_per_epoch": float(np.mean(seconds)),
                "examples_per_second": float(examples / np.mean(seconds)),
                "loss": loss,
            }
            print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
