"""A step of ``python -m lapse.apps.kge --num-negs-per-pos all``, beside the same step in PyTorch and a plain product.

    python benchmarks/full_softmax.py
    python benchmarks/full_softmax.py --dim 200 --threads 1

A step trains a batch of random triples of a graph as large as FB15k-237: ComplEx, all entities as negatives, N3 and
AdaGrad. Of random triples no two have a query in common, so that all programs do the same work; of a real graph many
have (`--targets-per-query`), which saves a step two thirds of it. The three are measured in turns in one process, with
as many threads each; medians count. Seconds are those of the clock and of all threads' CPUs: on a machine with other
work compare the latter, with one thread. PyTorch is left out if it is not installed.
"""

from __future__ import annotations

import argparse
import os
import time

ENTITIES, RELATIONS, N3, RATE = 14541, 237, 0.1, 0.1


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=400, help="numbers of a vector (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=1000, help="triples of a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each program (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each (default: %(default)s)")
    return parser.parse_args()


args = parse()
os.environ.setdefault("OPENBLAS_NUM_THREADS", str(args.threads))

import numpy as np  # noqa: E402 - it reads the number of threads
from lapse.apps.kge._full_kernel import FullTrainer  # noqa: E402

import lapse  # noqa: E402
from lapse.apps._shared.placement import NormalThenZero  # noqa: E402
from lapse.apps.kge import full  # noqa: E402


class TorchStep:
    """The same in PyTorch: dense gradients by autograd, AdaGrad in place."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(args.threads)
        sizes = ((ENTITIES, args.dim), (2 * RELATIONS, args.dim))
        self.values = [(0.05 * torch.randn(size)).requires_grad_() for size in sizes]
        self.squares = [torch.zeros(size) for size in sizes]

    def __call__(self, triples) -> None:
        torch = self.torch
        s, r, o = torch.from_numpy(triples).T
        given, relation, target = torch.cat([s, o]), torch.cat([r, r + RELATIONS]), torch.cat([o, s])
        entities, relations = self.values
        e, w = entities[given], relations[relation]
        (a, b), (c, d) = e.chunk(2, 1), w.chunk(2, 1)
        scores = torch.cat([a * c - b * d, a * d + b * c], 1) @ entities.T
        loss = torch.nn.functional.cross_entropy(scores, target, reduction="sum")
        gradients = torch.autograd.grad(loss + N3 * (self._cubes(e) + self._cubes(w)), self.values)
        with torch.no_grad():
            for value, squares, gradient in zip(self.values, self.squares, gradients, strict=True):
                squares.addcmul_(gradient, gradient)
                value.addcdiv_(gradient, squares.sqrt().add_(1e-10), value=-RATE)

    @staticmethod
    def _cubes(vectors):
        real, imaginary = vectors.chunk(2, 1)
        squares = real * real + imaginary * imaginary
        return (squares * (squares + 1e-30).sqrt()).sum()


def product_step():
    """The products of matrices of a step alone, by NumPy's BLAS."""
    rng = np.random.default_rng(0)
    n = 2 * args.batch_size
    queries, entities = (rng.normal(size=(rows, args.dim)).astype("float32") for rows in (n, ENTITIES))
    scores = np.empty((n, ENTITIES), np.float32)
    outs = np.empty_like(queries), np.empty_like(entities)

    def step(triples) -> None:
        np.matmul(queries, entities.T, out=scores)
        np.matmul(scores, entities, out=outs[0])
        np.matmul(scores.T, queries, out=outs[1])

    return step


def measure(kv: lapse.Worker, own: list) -> dict[str, list]:
    """Steps of all programs in turns: seconds of each, by the clock and of CPUs."""
    trainer = FullTrainer(
        kv,
        own[kv.id],
        rate=RATE,
        model="complex",
        loss="softmax",
        dim=args.dim,
        relation_length=args.dim,
        num_entities=ENTITIES,
        num_relations=RELATIONS,
        reciprocal=True,
        block=2 * args.batch_size,
        entity_n3=N3,
        relation_n3=N3,
    )
    others = {"the products in NumPy": product_step()} if kv.id == 0 else {}
    if kv.id == 0:
        try:
            others["PyTorch"] = TorchStep()
        except ImportError:
            print("PyTorch is not installed")
    found: dict[str, list] = {}

    def take(name: str, step) -> None:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        step()
        found.setdefault(name, []).append((time.perf_counter() - begin, time.process_time() - begin_cpu))

    rng = np.random.default_rng(1)
    for _ in range(args.rounds + 1):
        sizes = (ENTITIES, RELATIONS, ENTITIES)
        triples = np.stack([rng.integers(size, size=args.batch_size) for size in sizes], axis=1)

        def ours(triples=triples) -> None:
            trainer.train(np.concatenate([triples, triples]), len(triples))
            kv.barrier()

        kv.barrier()
        take("Lapse", ours)
        for name, step in others.items():
            take(name, lambda step=step, triples=triples: step(triples))
        kv.barrier()
    trainer.finish()
    return found


def main() -> None:
    """Print a line for each program."""
    keys = ENTITIES + 2 * RELATIONS
    with lapse.Server(keys, 2 * args.dim, workers=args.threads) as server:
        server.initialize(np.arange(keys), NormalThenZero(lambda length: length // 2, 0.05))
        found = server.run(measure, full.own_keys(server))[0]
    work = 3 * 2 * (2 * args.batch_size) * ENTITIES * args.dim
    for name, seconds in found.items():
        clock, cpu = np.median(np.array(seconds[1:]), axis=0)  # the first one warms up
        print(
            f"{name:22} {1e3 * clock:7.0f} ms, {1e3 * cpu:7.0f} ms of CPU; "
            f"{work / clock / 1e9:4.0f} GFLOP/s, {work / cpu / 1e9:4.0f} GFLOP/s of CPU"
        )


if __name__ == "__main__":
    main()
