"""Group ``torch``: a training step with tables in the server, against one in PyTorch alone.

One rank: forward pass, backward pass and update of a table, in the same process and in turns with `nn.Embedding` or
`nn.EmbeddingBag` with sparse gradients and PyTorch's optimizer. All fields of a batch share one table, of which
both sides have one: 26 of this size, twice, and the states of optimizers would need more memory than many machines
have. Two ranks: steps of a recommender whose rows come by messages, with `lapse.torch.Prefetcher`, against those with
shared memory. Needs PyTorch, which has one thread in each rank.

With a GPU: steps of a recommender whose dense layers compute there, against the same step when its rows are on the GPU
already. The GPU waits for the rest. Beside it, the same model with the whole table in the GPU's memory.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lapse.bench._groups import NORMAL, Context, Group, Job
from lapse.bench._rows import Row, at_most
from lapse.bench._timing import interleaved

if TYPE_CHECKING:
    from lapse.bench._torch_tables import Size

#: Optimizers of PyTorch, by their names in `lapse.optim`.
OPTIMIZERS = {"SGD": "SGD", "Adagrad": "Adagrad", "Adam": "SparseAdam"}
MODULES = ("Embedding", "EmbeddingBag")
ROWS_THERE = "the same step with rows that are on the GPU"
MOST_THREADS = 14
SHARED = "the same ranks with shared memory"


def run(context: Context) -> Iterator[Row]:
    """The rows of one job; none without PyTorch."""
    try:
        import torch

        from lapse.bench import _torch_tables
    except ImportError as error:
        if context.rank == 0:
            print(f"skipped: {error}: pip install 'lapse[torch]'", file=sys.stderr)
        return
    torch.set_num_threads(1)
    size = _torch_tables.Size(20_000, 16, 64, 26) if context.quick else _torch_tables.Size(1_000_000, 64, 2048, 26)
    if context.ranks == 1:
        for distribution in ("uniform",) if context.quick else ("uniform", "Zipf"):
            for name in OPTIMIZERS:
                yield from _against_pytorch(context, size, name, distribution)
        if torch.cuda.is_available():
            yield from _on_gpu(context, size)
        else:
            print("skipped: dense layers on a GPU: PyTorch sees none here", file=sys.stderr)
    else:
        yield from _messages_against_shared_memory(context, size)


def _against_pytorch(context: Context, size: Size, optimizer: str, distribution: str) -> Iterator[Row]:
    import torch

    import lapse
    from lapse.bench import _torch_tables

    tables = lapse.Tables(categories=lapse.Table(size.rows, size.length, optimizer=getattr(lapse.optim, optimizer)()))
    with lapse.Server(tables) as server, server.worker() as kv:
        turns: dict[str, Callable[[], float]] = {}
        for name in MODULES:
            theirs = _torch_tables.plain(name, size, OPTIMIZERS[optimizer])
            ours = _torch_tables.served(name, kv, tables["categories"])
            batches = _torch_tables.Batches(size, distribution, seed=0)
            turns[name] = lambda step=ours, batches=batches: _seconds(step, batches)
            turns[f"{name} of PyTorch"] = lambda step=theirs, batches=batches: _seconds(step, batches)
        found = interleaved(turns, context.rounds(7), warm_ups=2)
    for name in MODULES:
        yield context.row(
            f"{name}, {optimizer}",
            {"ids": distribution, "batch": f"{size.batch} x {size.fields}", "table": f"{size.rows} x {size.length}"},
            found[name] * 1e3,
            found[f"{name} of PyTorch"] * 1e3,
            unit="ms/step",
            reference_name=f"nn.{name}(sparse=True) and torch.optim.{OPTIMIZERS[optimizer]}",
            target=at_most(1.0) if optimizer != "SGD" else None,
            note=f"PyTorch {torch.__version__}, one thread",
        )


def _seconds(step: Callable[[Any], None], batches: Any) -> float:
    batch = batches.draw()
    begin = time.perf_counter()
    step(batch)
    return time.perf_counter() - begin


def _on_gpu(context: Context, size: Size) -> Iterator[Row]:
    import torch

    from lapse.bench import _torch_device

    device = torch.device("cuda", torch.cuda.current_device())
    batches = (size.batch,) if context.quick else (size.batch, 4 * size.batch)
    cores = len(os.sched_getaffinity(0))
    threads = sorted({1, min(8, cores), max(1, min(MOST_THREADS, cores - 2))})
    for name in _torch_device.LAYERS:
        for batch, count in itertools.product(batches, threads):
            yield from _on_gpu_with(context, dataclasses.replace(size, batch=batch), name, device, count)


def _on_gpu_with(context: Context, size: Size, name: str, device: Any, threads: int) -> Iterator[Row]:
    import torch

    import lapse
    from lapse.bench import _torch_device

    steps = 3 if context.quick else 30
    tables = lapse.Tables(categories=lapse.Table(size.rows, size.length, lapse.Normal(), lapse.optim.Adagrad()))
    with lapse.Server(tables, threads_per_call=threads) as server, server.worker() as kv:
        turns = _torch_device.turns(kv, tables["categories"], size, name, device, steps)
        found = interleaved(turns, context.rounds(5), warm_ups=1)
    there = found.pop("rows there")
    for way, seconds in found.items():
        row = context.row(
            f"a step on a GPU, {way}",
            {
                "ids": "Zipf",
                "batch": f"{size.batch} x {size.fields}",
                "table": f"{size.rows} x {size.length}",
                "layers": name,
                "threads per call": threads,
            },
            seconds * 1e3,
            there * 1e3,
            unit="ms/step",
            reference_name=ROWS_THERE,
            note=f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}",
        )
        yield dataclasses.replace(row, figures={"share of the step that waits for rows": max(0.0, 1 - 1 / row.ratio)})


def _messages_against_shared_memory(context: Context, size: Size) -> Iterator[Row]:
    import contextlib

    import lapse
    from lapse.bench import _torch_tables

    steps, turns = 3 if context.quick else 12, {}
    tables = lapse.Tables(categories=lapse.Table(size.rows, size.length, optimizer=lapse.optim.Adagrad()))
    with contextlib.ExitStack() as stack:
        for way, shared_memory in (("messages", False), ("shared memory", True)):
            server = stack.enter_context(lapse.Server(tables, shared_memory=shared_memory))
            kv = stack.enter_context(server.worker())
            epoch = _torch_tables.recommender(kv, tables["categories"], size, steps, context.rank)
            turns[way] = lambda kv=kv, epoch=epoch: _seconds_of_epoch(kv, epoch) / steps
        found = interleaved(turns, context.rounds(5), warm_ups=0 if context.quick else 1)
    yield context.row(
        "a step of a recommender, Prefetcher, Adagrad",
        {"ids": "Zipf", "batch": f"{size.batch} x {size.fields}", "table": f"{size.rows} x {size.length}"},
        found["messages"] * 1e3,
        found["shared memory"] * 1e3,
        unit="ms/step",
        reference_name=SHARED,
        target=at_most(1.5),
        note="rows by messages, as between two hosts",
    )


def _seconds_of_epoch(kv: Any, epoch: Callable[[], None]) -> float:
    kv.barrier()
    begin = time.perf_counter()
    epoch()
    kv.barrier()
    return time.perf_counter() - begin


GROUPS = (
    Group("torch", "a training step with tables in the server, against PyTorch alone", run, (Job(1), Job(2, NORMAL))),
)
