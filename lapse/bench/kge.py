"""Group ``kge``: training of knowledge-graph embeddings (ComplEx, the default setting of `lapse.apps.kge`).

The cost of the server is the time of two workers against that of two threads that run the same kernel on plain arrays.
Two ranks are compared with a batched step in PyTorch on two threads, if it is installed. The graph is FB15k-237 if the
environment variable LAPSE_DATA names a folder that contains it, else a graph of the same size with Zipf frequencies.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lapse.bench._groups import FULL, Context, Group, Job
from lapse.bench._rows import Row, at_least, at_most
from lapse.bench._timing import Sample, interleaved

#: Sizes of FB15k-237.
ENTITIES, RELATIONS, TRIPLES = 14541, 237, 272115
#: Triples of a batch of the PyTorch step that are tried; the fastest counts.
TORCH_BATCHES = (512, 1024, 2048, 4096, 8192)
TORCH = "a batched PyTorch step on 2 threads, its best batch size"
ARRAYS = "the same kernel and threads on plain arrays"


def run(context: Context) -> Iterator[Row]:
    """The row of one job."""
    from lapse import _mpi_loader
    from lapse.apps.kge import train

    comm = _mpi_loader.load().COMM_WORLD
    args, dataset, graph = options(context), *read_graph(context)
    plan = train.make_plan(comm, args, dataset)
    with train.open_server(comm, plan, args.seed) as server:
        if context.ranks == 1:
            yield from server.run(against_arrays, context, plan, graph, make_arrays(plan))[0]
        else:
            yield from server.run(against_torch, context, plan, graph)[0]


def options(context: Context) -> argparse.Namespace:
    """The options of the application: its defaults, with the management of the job."""
    from lapse.apps.kge import options as kge_options

    management = context.job.name or "lapse2"
    return kge_options.parse(["--workers", str(2 // context.ranks), "--management", management])


def read_graph(context: Context):
    """The data set and its name."""
    from lapse.apps.kge import data

    real = Path(os.environ.get("LAPSE_DATA", "/nonexistent"), "fb15k-237")
    if real.is_dir() and not context.quick:
        return data.read(real), "FB15k-237"
    return make_graph(
        *(n // 20 for n in (ENTITIES, RELATIONS, TRIPLES)) if context.quick else (ENTITIES, RELATIONS, TRIPLES)
    ), "synthetic"


def make_graph(entities: int, relations: int, triples: int):
    """Triples whose entities and relations have Zipf frequencies."""
    import numpy as np

    from lapse.apps.kge.data import Dataset

    rng = np.random.default_rng(0)

    def draw(n):
        weights = 1 / np.arange(1, n + 1) ** 0.7
        return rng.permutation(n)[rng.choice(n, triples, p=weights / weights.sum())]

    nothing = np.empty((0, 3), np.int64)
    train = np.stack([draw(entities), draw(relations), draw(entities)], axis=1)
    return Dataset([str(i) for i in range(entities)], [str(i) for i in range(relations)], train, nothing, nothing)


# --- what is measured ----------------------------------------------------------------------------------------------


class Blocks:
    """A worker's blocks of triples, epoch after epoch, some of them at a time."""

    def __init__(self, plan, worker: int) -> None:
        from lapse.apps.kge import train

        self._of_epoch = lambda epoch: train.batches(plan, worker, epoch)
        self.epoch = 0
        self._blocks = self._of_epoch(0)

    def take(self, count: int) -> list:
        """The next `count` blocks of an epoch; at its end there may be fewer."""
        taken = [block for block, _ in zip(self._blocks, range(count), strict=False)]
        if not taken:
            self.epoch += 1
            self._blocks = self._of_epoch(self.epoch)
            return self.take(count)
        return taken


def per_triple(kv, train: Callable, blocks: Blocks, count: int) -> float:
    """Seconds per triple, from barrier to barrier, while every worker trains `count` blocks."""
    taken = blocks.take(count)
    kv.barrier()
    begin = time.perf_counter()
    train(taken)
    kv.barrier()
    seconds = time.perf_counter() - begin
    return seconds / float(kv.allreduce(sum(map(len, taken))))


def on_server(kv, plan) -> Callable:
    """Trains blocks as the application does."""
    from lapse.apps.kge import train

    trainer = train.make_trainer(kv, plan, 0)

    def train_blocks(blocks):
        for block in blocks:
            trainer.train(block)
        trainer.finish()

    return train_blocks


def make_arrays(plan):
    """Values of entities and relations, initialized as on the server."""
    import numpy as np

    from lapse.apps.kge import train

    model, start = plan.model, train.start_values(plan.args)
    keys = np.arange(model.num_keys)
    parts = ((keys[: model.num_entities], model.dim), (keys[model.num_entities :], model.relation_length))
    return [start.values(part, 2 * length, plan.args.seed).astype(np.float32) for part, length in parts]


def on_arrays(plan, arrays, worker: int) -> Callable:
    """The same without a server."""
    from lapse.apps.kge import train
    from lapse.bench.plain._kge import PlainTrainer

    trainer = PlainTrainer(
        *arrays,
        rate=plan.args.lr,
        negatives=plan.args.num_negs_per_pos,
        **train.kernel_options(plan, seed=worker),
    )

    def train_blocks(blocks):
        for block in blocks:
            trainer.train(block)

    return train_blocks


def against_arrays(kv, context: Context, plan, graph: str, arrays) -> list[Row]:
    """The program of a worker; all return the same rows."""
    blocks, count = Blocks(plan, kv.id), 2 if context.quick else 40
    turns = {"ours": on_server(kv, plan), "arrays": on_arrays(plan, arrays, kv.id)}
    found = interleaved(
        {name: lambda train=train: per_triple(kv, train, blocks, count) for name, train in turns.items()},
        context.rounds(),
    )
    epoch = len(plan.dataset.train)
    return [
        context.row(
            "cost of the server",
            _parameters(context, graph),
            found["ours"] * epoch,
            found["arrays"] * epoch,
            unit="s/epoch",
            reference_name=ARRAYS,
            workers=plan.args.workers,
            target=at_most(1.25),
        )
    ]


def against_torch(kv, context: Context, plan, graph: str) -> list[Row]:
    """The program of a worker: rank 0 runs PyTorch in its turn, while the others wait in a barrier."""
    torch_seconds, note = _prepare_torch(context, plan) if kv.id == 0 else (None, "")
    if not kv.allreduce(int(torch_seconds is not None)):
        return []
    blocks, count = Blocks(plan, kv.id), 2 if context.quick else 40
    train = on_server(kv, plan)

    def theirs() -> float:
        kv.barrier()
        seconds = torch_seconds() if torch_seconds else 0.0
        kv.barrier()
        return seconds

    found = interleaved({"ours": lambda: per_triple(kv, train, blocks, count), "torch": theirs}, context.rounds())
    if kv.id != 0:
        return []
    rates = {name: Sample(tuple(1e-3 / seconds for seconds in sample.values)) for name, sample in found.items()}
    target = at_least(2.0) if plan.args.management == "lapse2" else None
    return [
        context.row(
            "training",
            _parameters(context, graph),
            rates["ours"],
            rates["torch"],
            unit="1000 triples/s",
            reference_name=TORCH,
            target=target,
            note=note,
        )
    ]


def _prepare_torch(context: Context, plan):
    """A function that trains some triples at the best batch size and returns the seconds per triple; a description."""
    try:
        import torch

        from lapse.bench._torch_step import Step
    except ImportError:
        return None, ""
    torch.set_num_threads(2)
    args, model = plan.args, plan.model
    step = Step(
        model.num_entities,
        model.num_relations,
        dim=model.dim,
        negatives=args.num_negs_per_pos,
        rate=args.lr,
        penalty=args.entity_n3,
        init_std=args.init_std,
    )
    triples = torch.from_numpy(plan.dataset.train[torch.randperm(len(plan.dataset.train)).numpy()])

    def seconds(batch: int) -> float:
        some = triples[: max(1024 if context.quick else 20480, batch)].split(batch)
        begin = time.perf_counter()
        for part in some:
            step.train(part)
        return (time.perf_counter() - begin) / sum(map(len, some))

    found = {batch: min(seconds(batch) for _ in range(3)) for batch in TORCH_BATCHES[: 2 if context.quick else None]}
    best = min(found, key=found.get)
    return lambda: seconds(best), f"PyTorch {torch.__version__} with batches of {best}"


def _parameters(context: Context, graph: str) -> dict:
    return {"graph": graph, "management": context.job.name or "lapse2"}


GROUPS = (
    Group(
        "kge",
        "training of ComplEx, against plain arrays and against PyTorch",
        run,
        jobs=(Job(1), Job(2), Job(2, FULL, name="lapse"), Job(2, FULL, name="classic")),
    ),
)
