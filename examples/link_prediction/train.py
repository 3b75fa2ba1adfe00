"""Link prediction: which entity completes a triple? Entities in a server, a scoring function written in PyTorch.

    python examples/link_prediction/train.py
    mpirun -n 4 python examples/link_prediction/train.py --graph FOLDER --output model

FOLDER has train.txt and test.txt with lines "subject relation object", separated by tabs. By default a graph is
planted, in which every entity has a hidden type, and a relation leads from each type to one other.
"""

import copy
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1]))
import torch_training

TEST_BATCH = 256


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
    tests = max(1, len(found) // 20)
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

    def forward(self, triples, candidates):
        """The loss of a batch: the objects of its triples, which are the first candidates, against all the others."""
        subjects, relations, objects = triples.T
        rows = self.entities(torch.cat([subjects, candidates]))
        relations = relations.to(rows.device, non_blocking=True)
        scores = self.scorer(rows[: len(triples)], relations, rows[len(triples) :])
        # Candidates that happen to be the object are no mistakes.
        target = torch.arange(len(triples))
        same = (candidates == objects[:, None]) & (torch.arange(len(candidates)) != target[:, None])
        same, target = (x.to(rows.device, non_blocking=True) for x in (same, target))
        return nn.functional.cross_entropy(scores.masked_fill(same, -1e9), target)


@torch.no_grad()
def reciprocal_ranks(scorer, vectors, graph, tests):
    """The sum of the reciprocal ranks of the objects of some test triples, other known objects left out."""
    total = 0.0
    for part in torch.from_numpy(tests).split(TEST_BATCH):
        subjects, relations, objects = part.T
        scores = scorer(vectors[subjects], relations, vectors)
        right = scores.gather(1, objects[:, None])
        for row, (subject, relation, thing) in enumerate(part.tolist()):
            known = [other for other in graph.objects[subject, relation] if other != thing]
            scores[row, known] = -torch.inf
        ranks = (scores > right).sum(1) + (scores == right).sum(1).add(1).div(2)  # ties: in the middle
        total += float((1 / ranks).sum())
    return total


class LinkPrediction(torch_training.Task):
    name, unit, std = "link_prediction", "triples", 0.1
    rates: ClassVar = {"sgd": 15.0, "adagrad": 0.1, "rowwise": 0.1, "adam": 0.005}
    dense_rate = 5e-3

    @staticmethod
    def add_options(parser):
        parser.add_argument("--graph", type=Path, help="a folder with train.txt and test.txt")
        parser.add_argument("--entities", type=int, default=1000, help="of the planted graph; default: %(default)s")
        parser.add_argument("--triples", type=int, default=150_000, help="of the planted graph; default: %(default)s")
        parser.add_argument("--dim", type=int, default=32, help="length of the vectors; default: %(default)s")
        parser.add_argument("--negatives", type=int, default=256, help="entities that a batch compares with")
        parser.add_argument("--epochs", type=int, default=5)

    def __init__(self, options):
        self.options, self.length = options, options.dim
        if options.graph is None:
            self.graph = planted(options.entities, options.triples, options.seed)
        else:
            self.graph = read(options.graph)
        self.rows, self.size = self.graph.num_entities, len(self.graph.train)

    def model(self, embedding):
        return Model(embedding, self.graph.num_relations, self.length)

    def batches(self, worker, workers, epoch):
        """Of each batch of all workers a worker's part of the triples, and the candidates, of which all have the same.

        These are the objects of the whole batch, and entities that are drawn for it.
        """
        options = self.options
        order = np.random.default_rng((options.seed, 1, epoch)).permutation(self.size)
        rng = np.random.default_rng((options.seed, 2, epoch))
        batches = []
        for first in range(0, self.size, options.batch):
            triples = self.graph.train[order[first : first + options.batch]]
            negatives = rng.integers(self.rows, size=options.negatives)
            mine = np.arange(len(triples)) % workers == worker
            if mine.any():
                candidates = np.concatenate([triples[mine, 2], triples[~mine, 2], negatives])
                batches.append((torch.from_numpy(triples[mine]), torch.from_numpy(candidates)))
        return batches

    def ids(self, batch):
        triples, candidates = batch
        return [triples[:, 0], candidates]

    def test(self, model, worker, workers):
        vectors = torch_training.all_rows(model.entities)
        return reciprocal_ranks(
            copy.deepcopy(model.scorer).cpu(), vectors, self.graph, self.graph.test[worker::workers]
        )

    def figures(self, total):
        mrr = total / len(self.graph.test)
        return {"mrr": mrr}, f"MRR {mrr:.4f}"


if __name__ == "__main__":
    torch_training.main(LinkPrediction, __doc__)
