"""Will an advertisement be clicked? A table of categories in a server, dense layers in PyTorch.

    python examples/click_through/train.py
    mpirun -n 4 python examples/click_through/train.py --optimizer adam --output model

By default clicks are drawn from a planted model, and the best AUC that any model could reach is printed.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from clicks_data import DENSE, FIELDS, Planted, auc, log_loss, read_criteo
from torch import nn
from tqdm import tqdm

import lapse
import lapse.torch

RATES = {"sgd": 0.5, "adagrad": 0.05, "rowwise": 0.05, "adam": 0.002}
TEST_BATCH = 8192


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a file in Criteo's format (.gz too); its last tenth is the test")
    parser.add_argument("--examples", type=int, default=200_000, help="to train with; default: %(default)s")
    parser.add_argument("--rows", type=int, default=500_000, help="of the table; default: %(default)s")
    parser.add_argument("--dim", type=int, default=16, help="length of the rows; default: %(default)s")
    parser.add_argument("--batch", type=int, default=1024, help="examples of all workers; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--optimizer", choices=RATES, default="adagrad", help="of the table; default: %(default)s")
    parser.add_argument("--rate", type=float, help="learning rate of the table; by default one for each optimizer")
    parser.add_argument("--lookahead", type=int, default=8, help="batches whose rows are on their way")
    parser.add_argument("--sync", action="store_true", help="rows never lack a gradient of their own worker")
    parser.add_argument("--loader-workers", type=int, default=0, help="processes of the DataLoader")
    parser.add_argument("--plain", action="store_true", help="without a server: a sparse nn.Embedding, for comparison")
    parser.add_argument("--output", type=Path, help="a folder, for a checkpoint after each epoch")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output, if there is one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.rate = RATES[options.optimizer] if options.rate is None else options.rate
    if options.resume and options.output is None:
        parser.error("--resume needs --output")
    return options


class Model(nn.Module):
    """Two layers over the dense features and the rows of all categories."""

    def __init__(self, embedding, dim):
        super().__init__()
        self.embedding = embedding
        self.layers = nn.Sequential(nn.Linear(DENSE + FIELDS * dim, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense, ids):
        return self.layers(torch.cat([dense, self.embedding(ids).flatten(1)], 1)).squeeze(1)


class Batches(torch.utils.data.Dataset):
    """The batches of one worker in one epoch: of each batch of all workers its part, in an order that all agree on."""

    def __init__(self, examples, options, worker, workers, epoch):
        self.examples, self.worker, self.workers, self.batch = examples, worker, workers, options.batch
        self.order = np.random.default_rng((options.seed, epoch)).permutation(len(examples))

    def __len__(self):
        return len(range(self.worker, len(self.order), self.batch))  # the last batch may have no part for some

    def __getitem__(self, number):
        if number >= len(self):
            raise IndexError(number)
        chosen = self.order[number * self.batch : (number + 1) * self.batch][self.worker :: self.workers]
        e = self.examples
        return tuple(torch.from_numpy(part[chosen]) for part in (e.dense, e.ids, e.clicked))


def read_data(options):
    """Examples to train and to test with, and the best AUC that can be reached if it is known."""
    if options.data is not None:
        examples = read_criteo(options.data, options.rows, options.examples)
        end = len(examples) - max(1, len(examples) // 10)
        return examples.part(0, end), examples.part(end, len(examples)), None
    planted = Planted(options.rows, options.seed)
    tests, best = planted.examples(max(1, options.examples // 10), 1 << 20)
    return planted.examples(options.examples, 0)[0], tests, best


def train_epoch(model, batches, step, clear, bar):
    """The mean loss of an epoch, as this worker sees it."""
    total, count = 0.0, 0
    model.train()
    for dense, ids, clicked in batches:
        clear()
        loss = nn.functional.binary_cross_entropy_with_logits(model(dense, ids), clicked)
        loss.backward()
        step()
        total, count = total + loss.item() * len(clicked), count + len(clicked)
        bar.update(1)
        bar.set_postfix(loss=f"{total / count:.4f}", refresh=False)
    return total / max(count, 1)


@torch.no_grad()
def scores_of(model, examples, positions):
    """The scores of the examples at some positions; 0 at the others."""
    model.eval()
    scores = np.zeros(len(examples))
    for first in range(0, len(positions), TEST_BATCH):
        chosen = positions[first : first + TEST_BATCH]
        scores[chosen] = model(torch.from_numpy(examples.dense[chosen]), torch.from_numpy(examples.ids[chosen])).numpy()
    return scores


def report(options, epoch, seconds, examples, scores, tests, best):
    """Print the figures of an epoch, and return them."""
    found = {"auc": auc(scores, tests.clicked), "log_loss": log_loss(scores, tests.clicked)}
    of_best = "" if best is None else f" (best possible {best:.4f})"
    print(
        f"epoch {epoch + 1}/{options.epochs}: {examples / seconds:,.0f} examples/s, AUC {found['auc']:.4f}{of_best}, "
        f"log loss {found['log_loss']:.4f}",
        flush=True,
    )
    return {**found, "seconds_per_epoch": seconds, "examples_per_second": examples / seconds}


def run_on_server(options):
    examples, tests, best = read_data(options)
    optimizers = {
        "sgd": lapse.optim.SGD,
        "adagrad": lapse.optim.Adagrad,
        "rowwise": lapse.optim.RowWiseAdagrad,
        "adam": lapse.optim.Adam,
    }
    optimizer = optimizers[options.optimizer](lr=options.rate)
    table = lapse.Table(options.rows, options.dim, init=lapse.Normal(0, 0.05), optimizer=optimizer)
    tables = lapse.Tables(categories=table)
    with lapse.Server(tables, seed=options.seed) as server, server.worker() as kv:
        if "OMP_NUM_THREADS" not in os.environ:  # else each rank would start a thread for every core
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // len(server.sharing_ranks)))
        torch.manual_seed(options.seed)
        categories = tables["categories"]
        embedding = lapse.torch.Embedding(kv, categories, sync=options.sync)
        if options.optimizer == "sgd":
            # A worker's loss is a mean over its part of a batch: without this the steps of all of them would add up.
            embedding.lr = options.rate / kv.num_workers
        model = Model(embedding, options.dim)
        dense = lapse.torch.Dense(model, torch.optim.Adam(model.parameters(), lr=1e-3), kv)
        first, found = 0, {}
        if options.resume and (options.output / "CURRENT").exists():
            saved = server.load(options.output)
            dense.restore(saved["dense"])
            first, found = saved["epoch"], saved["found"]
        for epoch in range(first, options.epochs):
            mine = Batches(examples, options, kv.id, kv.num_workers, epoch)
            loader = torch.utils.data.DataLoader(mine, batch_size=None, num_workers=options.loader_workers)
            batches = lapse.torch.Prefetcher(
                loader, kv, lambda batch: categories.keys(batch[1]), options.lookahead, sync=options.sync
            )
            bar = tqdm(total=len(batches), desc=f"epoch {epoch + 1}", leave=False, disable=None if kv.id == 0 else True)
            kv.barrier()
            begin = time.perf_counter()
            train_epoch(model, batches, dense.step, dense.zero_grad, bar)
            dense.join()
            kv.barrier()  # the gradients of the other workers have taken effect, too
            seconds = time.perf_counter() - begin
            bar.close()
            positions = np.arange(kv.id, len(tests), kv.num_workers)
            scores = kv.allreduce(scores_of(model, tests, positions))
            if kv.id == 0:
                found = report(options, epoch, seconds, len(examples), scores, tests, best)
            if options.output is not None:
                server.save(options.output, {"epoch": epoch + 1, "dense": dense.state(), "found": found})
        if kv.id == 0:
            print_result(options, kv.num_workers, first, found, best)


def run_plain(options):
    """The same without a server, in one process."""
    examples, tests, best = read_data(options)
    torch.manual_seed(options.seed)
    embedding = nn.Embedding(options.rows, options.dim, sparse=True)
    nn.init.normal_(embedding.weight, 0, 0.05)
    of_table = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}
    if options.optimizer not in of_table:
        raise SystemExit(f"PyTorch has no optimizer {options.optimizer!r} for sparse gradients")
    rows = of_table[options.optimizer](embedding.parameters(), lr=options.rate)
    model = Model(embedding, options.dim)
    layers = torch.optim.Adam(model.layers.parameters(), lr=1e-3)
    found = {}

    def step():
        rows.step()
        layers.step()

    for epoch in range(options.epochs):
        batches = Batches(examples, options, 0, 1, epoch)
        bar = tqdm(total=len(batches), desc=f"epoch {epoch + 1}", leave=False, disable=None)
        begin = time.perf_counter()
        train_epoch(model, batches, step, model.zero_grad, bar)
        seconds = time.perf_counter() - begin
        bar.close()
        scores = scores_of(model, tests, np.arange(len(tests)))
        found = report(options, epoch, seconds, len(examples), scores, tests, best)
    print_result(options, 1, 0, found, best)


def print_result(options, workers, first, found, best):
    result = {"app": "click_through", "workers": workers, "epochs": options.epochs, "resumed_from": first or None}
    print("RESULT " + json.dumps({**result, **found, "best_auc": best}), flush=True)


if __name__ == "__main__":
    given = read_options()
    run_plain(given) if given.plain else run_on_server(given)
