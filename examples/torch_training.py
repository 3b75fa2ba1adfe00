"""What the examples with PyTorch share: options, the loop over epochs with and without a server, and checkpoints.

An example is a `Task`: a table, a model over its rows, batches, and a measure of quality. The table is trained by the
optimizer that was chosen, the other layers by Adam.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

import lapse
import lapse.torch

OPTIMIZERS = {
    "sgd": (lapse.optim.SGD, torch.optim.SGD),
    "adagrad": (lapse.optim.Adagrad, torch.optim.Adagrad),
    "rowwise": (lapse.optim.RowWiseAdagrad, None),
    "adam": (lapse.optim.Adam, torch.optim.SparseAdam),
}


SHOW_EVERY = 20  # steps


class Task:
    """What is trained; an example makes a subclass, whose objects are made with the options of the command line.

    Attributes
    ----------
    name, unit : str
        Of the example, and of what it is trained with, such as "triples".
    rates : dict of str to float
        Learning rates of the table by optimizer.
    dense_rate : float
        Learning rate of the other layers.
    std : float
        Standard deviation of the initial rows.
    rows, length, size : int
        Shape of the table; number of examples or triples.
    """

    @staticmethod
    def add_options(parser):
        """Add the options of the example to a parser."""
        raise NotImplementedError

    def model(self, embedding):
        """The model: called with the tensors of a batch, it gives the mean of their losses."""
        raise NotImplementedError

    def batches(self, worker, workers, epoch):
        """The batches of a worker in an epoch: a sequence of tuples of tensors, its part of those of all workers."""
        raise NotImplementedError

    def ids(self, batch):
        """The rows that a batch needs, as a list of tensors."""
        raise NotImplementedError

    def test(self, model, worker, workers):
        """A worker's part of the test: a number or an array, to be added to those of the other workers."""
        raise NotImplementedError

    def figures(self, total):
        """The figures of a test, a dict, and a line that tells them."""
        raise NotImplementedError


def main(kind, doc):
    """Train a task of some kind as the command line says."""
    options = read_options(kind, doc)
    run_plain(kind(options), options) if options.plain else run_on_server(kind(options), options)


def read_options(kind, doc):
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind.add_options(parser)
    parser.add_argument("--batch", type=int, default=1024, help="of all workers together; default: %(default)s")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adagrad", help="of the table; default: %(default)s")
    parser.add_argument("--rate", type=float, help="learning rate of the table; by default one for each optimizer")
    parser.add_argument("--lookahead", type=int, default=8, help="batches whose rows are on their way")
    parser.add_argument("--sync", action="store_true", help="rows never lack a gradient of their own worker")
    parser.add_argument("--device", type=torch.device, help="where the dense layers compute, such as cuda")
    parser.add_argument("--threads-per-call", type=int, default=1, help="that share the pulls and gradients of a batch,"
                        " where a rank has cores to spare: beside a GPU, for example")  # fmt: skip
    parser.add_argument("--loader-workers", type=int, default=0, help="processes of the DataLoader")
    parser.add_argument("--plain", action="store_true", help="without a server: a sparse nn.Embedding, for comparison")
    parser.add_argument("--output", type=Path, help="a folder, for a checkpoint after each epoch")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output, if there is one")
    parser.add_argument("--slow-down", type=float, default=1.0, help="let computing take as many times longer: for "
                        "experiments with emulated hosts, see docs/scaling.md")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.rate is None:
        options.rate = kind.rates[options.optimizer]
    if options.resume and options.output is None:
        parser.error("--resume needs --output")
    if options.plain and OPTIMIZERS[options.optimizer][1] is None:
        parser.error(f"--plain: PyTorch has no optimizer {options.optimizer!r} for sparse gradients")
    return options


def tables_of(task, options):
    """The only table of a task."""
    optimizer = OPTIMIZERS[options.optimizer][0](lr=options.rate)
    return lapse.Tables({task.name: lapse.Table(task.rows, task.length, lapse.Normal(0, task.std), optimizer)})


def run_on_server(task, options):
    """Train with the table in a server."""
    tables = tables_of(task, options)
    table = tables[task.name]
    threads = options.threads_per_call
    with lapse.Server(tables, seed=options.seed, threads_per_call=threads) as server, server.worker() as kv:
        if "OMP_NUM_THREADS" not in os.environ:  # else each rank would start a thread for every core
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // len(server.sharing_ranks)))
        embedding = lapse.torch.Embedding(kv, table, sync=options.sync, device=options.device)
        if options.optimizer == "sgd":
            # A worker's loss is a mean over its part of a batch: without this the steps of all of them would add up.
            embedding.lr = options.rate / kv.num_workers
        torch.manual_seed(options.seed)
        model = task.model(embedding).to(options.device)
        dense = lapse.torch.Dense(model, torch.optim.Adam(model.parameters(), lr=task.dense_rate), kv)
        rest = rest_for(task, options, kv) if options.slow_down > 1 else 0.0
        first, found = 0, {}
        if options.resume and (options.output / "CURRENT").exists():
            saved = server.load(options.output)
            dense.restore(saved["dense"])
            first, found = saved["epoch"], saved["found"]
        for epoch in range(first, options.epochs):
            mine = task.batches(kv.id, kv.num_workers, epoch)
            loader = torch.utils.data.DataLoader(
                mine, batch_size=None, num_workers=options.loader_workers, pin_memory=is_gpu(options.device)
            )
            batches = lapse.torch.Prefetcher(
                loader,
                kv,
                lambda batch: [table.keys(ids) for ids in task.ids(batch)],
                options.lookahead,
                sync=options.sync,
            )
            kv.barrier()
            begin = time.perf_counter()
            train_epoch(model, batches, dense.zero_grad, dense.step, epoch, kv.id == 0, rest)
            dense.join()
            kv.barrier()  # the gradients of the other workers have taken effect, too
            seconds = time.perf_counter() - begin
            model.eval()
            total = kv.allreduce(task.test(model, kv.id, kv.num_workers))
            if kv.id == 0:
                found = report(task, options, epoch, seconds, total)
                found |= {"share_computing": rest * len(batches) / seconds} if rest else {}
            if options.output is not None:
                server.save(options.output, {"epoch": epoch + 1, "dense": dense.state(), "found": found})
        if kv.id == 0:
            print_result(task, options, kv.num_workers, first, found)


def run_plain(task, options):
    """The same without a server, in one process; rows and layers begin alike."""
    tables = tables_of(task, options)
    with lapse.Server(tables, seed=options.seed) as server, server.worker() as kv:
        rows = all_rows(lapse.torch.Embedding(kv, tables[task.name]))
    embedding = Local.from_pretrained(rows, freeze=False, sparse=True)
    torch.manual_seed(options.seed)
    model = task.model(embedding).to(options.device)
    layers = [parameter for parameter in model.parameters() if parameter is not embedding.weight]
    optimizers = [
        OPTIMIZERS[options.optimizer][1](embedding.parameters(), lr=options.rate),
        torch.optim.Adam(layers, lr=task.dense_rate),
    ]
    found = {}
    for epoch in range(options.epochs):
        begin = time.perf_counter()
        train_epoch(
            model,
            task.batches(0, 1, epoch),
            model.zero_grad,
            lambda: [optimizer.step() for optimizer in optimizers],
            epoch,
            True,
        )
        seconds = time.perf_counter() - begin
        model.eval()
        found = report(task, options, epoch, seconds, task.test(model, 0, 1))
    print_result(task, options, 1, 0, found)


def train_epoch(model, batches, clear, step, epoch, shows, rest=0.0):
    """Train with all batches, under a progress bar if it shows; `rest` seconds are added to each."""
    model.train()
    total = 0.0
    with tqdm(total=len(batches), desc=f"epoch {epoch + 1}", leave=False, disable=None if shows else True) as bar:
        for number, batch in enumerate(batches, 1):
            clear()
            loss = model(*batch)
            time.sleep(rest)  # when rows are here, and before gradients go
            loss.backward()
            step()
            total += loss.detach()
            bar.update(1)
            if number % SHOW_EVERY == 0:  # a GPU is waited for
                bar.set_postfix(loss=f"{total.item() / number:.4f}", refresh=False)


class Local(nn.Embedding):
    """Takes ids in the host's memory wherever its rows are, as `lapse.torch.Embedding` does."""

    def forward(self, ids):
        return super().forward(ids.to(self.weight.device, non_blocking=True))


def is_gpu(device):
    return device is not None and device.type == "cuda"


class Rows(nn.Module):
    """Stands for a table whose rows come from nowhere."""

    def __init__(self, length):
        super().__init__()
        self.embedding_dim = length

    def forward(self, ids):
        return torch.zeros(*ids.shape, self.embedding_dim, requires_grad=True)


def rest_for(task, options, kv):
    """By how much a step has to be longer, if computing in the dense layers is to take its CPU time so many times.

    Measured with batches of this worker, beside the server: it communicates by its own threads, in its own time.
    """
    model = task.model(Rows(options.dim))
    optimizer = torch.optim.Adam(model.parameters())
    batches = [batch for batch, _ in zip(task.batches(kv.id, kv.num_workers, 0), range(10))]
    seconds = []
    for batch in batches:
        begin = time.thread_time()
        optimizer.zero_grad()
        model(*batch).backward()
        optimizer.step()
        seconds.append(time.thread_time() - begin)
    slowest = kv.allreduce(sorted(seconds)[len(seconds) // 2], "max")  # the hosts are alike
    return (options.slow_down - 1) * slowest


def all_rows(embedding):
    """All rows of a table, wherever they are: a tensor that may not be changed."""
    local = embedding.to_local() if hasattr(embedding, "to_local") else embedding
    return local.weight.detach().cpu()


def report(task, options, epoch, seconds, total):
    """Print the figures of an epoch, and return them."""
    figures, line = task.figures(total)
    print(f"epoch {epoch + 1}/{options.epochs}: {task.size / seconds:,.0f} {task.unit}/s, {line}", flush=True)
    return {**figures, "seconds_per_epoch": seconds, f"{task.unit}_per_second": task.size / seconds}


def print_result(task, options, workers, first, found):
    """The last line, for programs."""
    known = {"app": task.name, "workers": workers, "epochs": options.epochs, "resumed_from": first or None}
    print("RESULT " + json.dumps({**known, **found}), flush=True)
