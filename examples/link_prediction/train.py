"""Link prediction: which entity completes a triple? Entities in a server, a scoring function written in PyTorch.

    python examples/link_prediction/train.py
    mpirun -n 4 python examples/link_prediction/train.py --graph FOLDER --output model

FOLDER has train.txt and test.txt with lines "subject relation object", separated by tabs. By default a graph is
planted, in which every entity has a hidden type, and a relation leads from each type to one other.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import lapse
import lapse.torch

RATES = {"sgd": 2.0, "adagrad": 0.1, "rowwise": 0.1, "adam": 0.005}
TEST_BATCH = 256


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", type=Path, help="a folder with train.txt and test.txt")
    parser.add_argument("--entities", type=int, default=2000, help="of the planted graph; default: %(default)s")
    parser.add_argument("--triples", type=int, default=60_000, help="of the planted graph; default: %(default)s")
    parser.add_argument("--dim", type=int, default=32, help="length of the vectors; default: %(default)s")
    parser.add_argument("--batch", type=int, default=1024, help="triples of all workers; default: %(default)s")
    parser.add_argument("--negatives", type=int, default=256, help="entities that a batch compares with")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--optimizer", choices=RATES, default="adagrad", help="of the entities; default: %(default)s")
    parser.add_argument("--rate", type=float, help="learning rate of the entities; by default one for each optimizer")
    parser.add_argument("--lookahead", type=int, default=8, help="batches whose rows are on their way")
    parser.add_argument("--plain", action="store_true", help="without a server: a sparse nn.Embedding, for comparison")
    parser.add_argument("--output", type=Path, help="a folder, for a checkpoint after each epoch")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output, if there is one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.rate = RATES[options.optimizer] if options.rate is None else options.rate
    if options.resume and options.output is None:
        parser.error("--resume needs --output")
    return options


# The graph -------------------------------------------------------------------------------------------


class Graph:
    """Triples to train and to test with, int64 of shape (n, 3), and all objects that are known for a query."""

    def __init__(self, num_entities, num_relations, train, test):
        self.num_entities, self.num_relations, self.train, self.test = num_entities, num_relations, train, test
        self.objects = {}
        for subject, relation, thing in np.concatenate([train, test]).tolist():
            self.objects.setdefault((subject, relation), []).append(thing)


def planted(entities, triples, seed, types=40, relations=10):
    """A graph of hidden types; an object is drawn from the type to which the relation leads, frequent ones first."""
    rng = np.random.default_rng((seed, 0))
    type_of = rng.integers(types, size=entities)
    members = [np.flatnonzero(type_of == number) for number in range(types)]
    leads_to = np.stack([rng.permutation(types) for _ in range(relations)])
    subjects, chosen = rng.integers(entities, size=triples), rng.integers(relations, size=triples)
    targets = leads_to[chosen, type_of[subjects]]
    objects = np.array(
        [members[t][int(len(members[t]) * rng.random() ** 3)] if len(members[t]) else 0 for t in targets]
    )
    found = rng.permutation(np.unique(np.stack([subjects, chosen, objects], 1), axis=0))
    tests = max(1, len(found) // 50)
    return Graph(entities, relations, found[tests:], found[:tests])


def read(folder):
    """A graph from files; names are numbered in the order of train.txt."""
    names, relations, splits = {}, {}, []
    for split in ("train", "test"):
        path, rows = folder / f"{split}.txt", []
        lines = path.read_bytes().decode().split("\n")  # names may contain what `splitlines` takes for an end
        for number, line in enumerate(lines[:-1] if not lines[-1] else lines, 1):
            words = line.removesuffix("\r").split("\t")
            if len(words) != 3:
                raise ValueError(f"{path}, line {number} has {len(words)} columns, but needs 3, separated by tabs")
            subject, relation, thing = words
            of_relation = relations.setdefault(relation, len(relations))
            rows.append([names.setdefault(subject, len(names)), of_relation, names.setdefault(thing, len(names))])
        splits.append(np.array(rows, np.int64).reshape(-1, 3))
    return Graph(len(names), len(relations), *splits)


# The model -------------------------------------------------------------------------------------------


class Scorer(nn.Module):
    """How well objects complete (subject, relation): their vectors are compared with what a network makes of both.

    To be replaced by whatever can be written in PyTorch. This one is DistMult (Yang et al., ICLR 2015) with a second
    layer over subject and relation, since a diagonal alone does not fit relations that have a direction.
    """

    def __init__(self, num_relations, dim):
        super().__init__()
        self.relations = nn.Embedding(num_relations, dim)
        self.layers = nn.Sequential(nn.Linear(2 * dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))

    def forward(self, subjects, relations, objects):
        """Scores of shape (n, m), of n queries and m objects."""
        of_relations = self.relations(relations)
        return (subjects * of_relations + self.layers(torch.cat([subjects, of_relations], 1))) @ objects.T


class Model(nn.Module):
    def __init__(self, entities, num_relations, dim):
        super().__init__()
        self.entities, self.scorer = entities, Scorer(num_relations, dim)

    def forward(self, triples, negatives):
        """The loss of a batch: the objects against entities that were drawn for it."""
        subjects, relations, objects = triples.T
        rows = self.entities(torch.cat([subjects, objects, negatives]))
        of_subjects, candidates = rows[: len(triples)], rows[len(triples) :]
        scores = self.scorer(of_subjects, relations, candidates)
        # Other objects of the batch, and negatives that happen to be the object, are no mistakes.
        ids = torch.cat([objects, negatives])
        target = torch.arange(len(triples))
        same = (ids == objects[:, None]) & (torch.arange(len(ids)) != target[:, None])
        return nn.functional.cross_entropy(scores.masked_fill(same, -1e9), target)


def batches_of(graph, options, worker, workers, epoch):
    """Triples and negatives of one worker: of each batch of all workers its part."""
    order = np.random.default_rng((options.seed, 1, epoch)).permutation(len(graph.train))
    rng = np.random.default_rng((options.seed, 2, epoch, worker))
    for first in range(0, len(order), options.batch):
        mine = order[first : first + options.batch][worker::workers]
        if len(mine):
            negatives = rng.integers(graph.num_entities, size=options.negatives)
            yield torch.from_numpy(graph.train[mine]), torch.from_numpy(negatives)


def train_epoch(model, batches, step, clear, bar):
    """The mean loss of an epoch, as this worker sees it."""
    total, count = 0.0, 0
    model.train()
    for triples, negatives in batches:
        clear()
        loss = model(triples, negatives)
        loss.backward()
        step()
        total, count = total + loss.item(), count + 1
        bar.update(1)
        bar.set_postfix(loss=f"{total / count:.4f}", refresh=False)
    return total / max(count, 1)


@torch.no_grad()
def reciprocal_ranks(model, vectors, graph, tests):
    """The sum of the reciprocal ranks of the objects of some test triples, other known objects left out."""
    total = 0.0
    for part in torch.from_numpy(tests).split(TEST_BATCH):
        subjects, relations, objects = part.T
        scores = model.scorer(vectors[subjects], relations, vectors)
        right = scores.gather(1, objects[:, None])
        for row, (subject, relation, thing) in enumerate(part.tolist()):
            known = [other for other in graph.objects[subject, relation] if other != thing]
            scores[row, known] = -torch.inf
        ranks = (scores > right).sum(1) + (scores == right).sum(1).add(1).div(2)  # ties: in the middle
        total += float((1 / ranks).sum())
    return total


def report(options, epoch, seconds, triples, mrr):
    """Print the figures of an epoch, and return them."""
    print(f"epoch {epoch + 1}/{options.epochs}: {triples / seconds:,.0f} triples/s, MRR {mrr:.4f}", flush=True)
    return {"mrr": mrr, "seconds_per_epoch": seconds, "triples_per_second": triples / seconds}


def run_on_server(options, graph):
    optimizers = {
        "sgd": lapse.optim.SGD,
        "adagrad": lapse.optim.Adagrad,
        "rowwise": lapse.optim.RowWiseAdagrad,
        "adam": lapse.optim.Adam,
    }
    optimizer = optimizers[options.optimizer](lr=options.rate)
    table = lapse.Table(graph.num_entities, options.dim, init=lapse.Normal(0, 0.1), optimizer=optimizer)
    tables = lapse.Tables(entities=table)
    with lapse.Server(tables, seed=options.seed) as server, server.worker() as kv:
        if "OMP_NUM_THREADS" not in os.environ:  # else each rank would start a thread for every core
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // len(server.sharing_ranks)))
        torch.manual_seed(options.seed)
        entities = tables["entities"]
        embedding = lapse.torch.Embedding(kv, entities)
        if options.optimizer == "sgd":
            # A worker's loss is a mean over its part of a batch: without this the steps of all of them would add up.
            embedding.lr = options.rate / kv.num_workers
        model = Model(embedding, graph.num_relations, options.dim)
        dense = lapse.torch.Dense(model, torch.optim.Adam(model.parameters(), lr=5e-3), kv)
        first, found = 0, {}
        if options.resume and (options.output / "CURRENT").exists():
            saved = server.load(options.output)
            dense.restore(saved["dense"])
            first, found = saved["epoch"], saved["found"]
        for epoch in range(first, options.epochs):
            mine = list(batches_of(graph, options, kv.id, kv.num_workers, epoch))
            batches = lapse.torch.Prefetcher(
                mine, kv, lambda batch: [entities.keys(batch[0][:, [0, 2]]), entities.keys(batch[1])], options.lookahead
            )
            bar = tqdm(total=len(batches), desc=f"epoch {epoch + 1}", leave=False, disable=None if kv.id == 0 else True)
            kv.barrier()
            begin = time.perf_counter()
            train_epoch(model, batches, dense.step, dense.zero_grad, bar)
            dense.join()
            kv.barrier()  # the gradients of the other workers have taken effect, too
            seconds = time.perf_counter() - begin
            bar.close()
            vectors = embedding.to_local().weight.detach()
            total = reciprocal_ranks(model, vectors, graph, graph.test[kv.id :: kv.num_workers])
            mrr = kv.allreduce(total) / len(graph.test)
            if kv.id == 0:
                found = report(options, epoch, seconds, len(graph.train), mrr)
            if options.output is not None:
                server.save(options.output, {"epoch": epoch + 1, "dense": dense.state(), "found": found})
        if kv.id == 0:
            print_result(options, kv.num_workers, first, found)


def run_plain(options, graph):
    """The same without a server, in one process."""
    torch.manual_seed(options.seed)
    embedding = nn.Embedding(graph.num_entities, options.dim, sparse=True)
    nn.init.normal_(embedding.weight, 0, 0.1)
    of_table = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}
    if options.optimizer not in of_table:
        raise SystemExit(f"PyTorch has no optimizer {options.optimizer!r} for sparse gradients")
    rows = of_table[options.optimizer](embedding.parameters(), lr=options.rate)
    model = Model(embedding, graph.num_relations, options.dim)
    scorer = torch.optim.Adam(model.scorer.parameters(), lr=5e-3)
    found = {}

    def step():
        rows.step()
        scorer.step()

    for epoch in range(options.epochs):
        batches = list(batches_of(graph, options, 0, 1, epoch))
        bar = tqdm(total=len(batches), desc=f"epoch {epoch + 1}", leave=False, disable=None)
        begin = time.perf_counter()
        train_epoch(model, batches, step, model.zero_grad, bar)
        seconds = time.perf_counter() - begin
        bar.close()
        mrr = reciprocal_ranks(model, embedding.weight.detach(), graph, graph.test) / len(graph.test)
        found = report(options, epoch, seconds, len(graph.train), mrr)
    print_result(options, 1, 0, found)


def print_result(options, workers, first, found):
    result = {"app": "link_prediction", "workers": workers, "epochs": options.epochs, "resumed_from": first or None}
    print("RESULT " + json.dumps({**result, **found}), flush=True)


def main():
    options = read_options()
    graph = planted(options.entities, options.triples, options.seed) if options.graph is None else read(options.graph)
    run_plain(options, graph) if options.plain else run_on_server(options, graph)


if __name__ == "__main__":
    main()
