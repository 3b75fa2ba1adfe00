"""Will an advertisement be clicked? A table of categories in a server, dense layers in PyTorch.

    python examples/click_through/train.py
    mpirun -n 4 python examples/click_through/train.py --optimizer adam --output model

By default clicks are drawn from a planted model, and the best AUC that any model could reach is printed.
"""

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from clicks_data import DENSE, FIELDS, Planted, auc, log_loss, read_criteo
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1]))
import torch_training

TEST_BATCH = 8192


class Model(nn.Module):
    """Two layers over the dense features and the rows of all categories."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding
        inputs = DENSE + FIELDS * embedding.embedding_dim
        self.layers = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 1))

    def scores(self, dense, ids):
        rows = self.embedding(ids).flatten(1)
        return self.layers(torch.cat([dense.to(rows.device, non_blocking=True), rows], 1)).squeeze(1)

    def forward(self, dense, ids, clicked):
        scores = self.scores(dense, ids)
        return nn.functional.binary_cross_entropy_with_logits(scores, clicked.to(scores.device, non_blocking=True))


class Batches(torch.utils.data.Dataset):
    """The batches of one worker in one epoch: of each batch of all workers its part, in an order that all agree on."""

    def __init__(self, examples, batch, seed, worker, workers):
        self.examples, self.batch, self.worker, self.workers = examples, batch, worker, workers
        self.order = np.random.default_rng(seed).permutation(len(examples))

    def __len__(self):
        return len(range(self.worker, len(self.order), self.batch))  # the last batch may have no part for some

    def __getitem__(self, number):
        if number >= len(self):
            raise IndexError(number)
        chosen = self.order[number * self.batch : (number + 1) * self.batch][self.worker :: self.workers]
        e = self.examples
        return tuple(torch.from_numpy(part[chosen]) for part in (e.dense, e.ids, e.clicked))


class ClickThrough(torch_training.Task):
    name, unit, std = "click_through", "examples", 0.05
    rates: ClassVar = {"sgd": 3.0, "adagrad": 0.05, "rowwise": 0.05, "adam": 0.002}
    dense_rate = 1e-3

    @staticmethod
    def add_options(parser):
        parser.add_argument("--data", help="a file in Criteo's format (.gz too); its last tenth is the test")
        parser.add_argument("--examples", type=int, default=200_000, help="to train with; default: %(default)s")
        parser.add_argument("--rows", type=int, default=500_000, help="of the table; default: %(default)s")
        parser.add_argument("--dim", type=int, default=16, help="length of the rows; default: %(default)s")
        parser.add_argument("--epochs", type=int, default=1)

    def __init__(self, options):
        self.options, self.rows, self.length = options, options.rows, options.dim
        self.examples, self.tests, self.best = self.read_data()
        self.size = len(self.examples)

    def read_data(self):
        """Examples to train and to test with, and the best AUC that can be reached if it is known."""
        options = self.options
        if options.data is not None:
            examples = read_criteo(options.data, options.rows, options.examples)
            end = len(examples) - max(1, len(examples) // 10)
            return examples.part(0, end), examples.part(end, len(examples)), None
        planted = Planted(options.rows, options.seed)
        tests, best = planted.examples(max(1, options.examples // 10), 1 << 20)
        return planted.examples(options.examples, 0)[0], tests, best

    def model(self, embedding):
        return Model(embedding)

    def batches(self, worker, workers, epoch):
        return Batches(self.examples, self.options.batch, (self.options.seed, epoch), worker, workers)

    def ids(self, batch):
        return [batch[1]]

    @torch.no_grad()
    def test(self, model, worker, workers):
        """The scores of some of the examples, and 0 for the others."""
        scores, mine = np.zeros(len(self.tests)), np.arange(worker, len(self.tests), workers)
        for first in range(0, len(mine), TEST_BATCH):
            chosen = mine[first : first + TEST_BATCH]
            dense, ids = torch.from_numpy(self.tests.dense[chosen]), torch.from_numpy(self.tests.ids[chosen])
            scores[chosen] = model.scores(dense, ids).cpu().numpy()
        return scores

    def figures(self, total):
        found = {"auc": auc(total, self.tests.clicked), "log_loss": log_loss(total, self.tests.clicked)}
        of_best = "" if self.best is None else f" (best possible {self.best:.4f})"
        line = f"AUC {found['auc']:.4f}{of_best}, log loss {found['log_loss']:.4f}"
        return {**found, "best_auc": self.best}, line


if __name__ == "__main__":
    torch_training.main(ClickThrough, __doc__)
