"""Click logs: those of a file in the format of Criteo's, or drawn from a planted model.

Each example has 13 dense features, 26 categories, and whether it was clicked.
"""

import gzip
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DENSE, FIELDS = 13, 26
CATEGORIES = np.geomspace(4, 20_000, FIELDS)  # of each field of the planted model
BLOCK = 4096  # examples that are drawn together


@dataclass
class Examples:
    """Some examples.

    Attributes
    ----------
    dense : float32 array of shape (n, 13)
    ids : int64 array of shape (n, 26)
        Rows of the table: field and category, hashed.
    clicked : float32 array of shape (n,)
    """

    dense: np.ndarray
    ids: np.ndarray
    clicked: np.ndarray

    def __len__(self):
        return len(self.clicked)

    def part(self, first, end):
        return Examples(self.dense[first:end], self.ids[first:end], self.clicked[first:end])


def joined(parts):
    """All examples of some, in order."""
    return Examples(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("dense", "ids", "clicked")))


def hashed(categories, rows):
    """The row of each category, given as an unsigned 64-bit number of shape (n, 26)."""
    x = categories * np.uint64(32) + np.arange(FIELDS, dtype=np.uint64)
    for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
        x = (x ^ (x >> np.uint64(32))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(32))) % np.uint64(rows)).astype(np.int64)


# The planted model -----------------------------------------------------------------------------------


class Planted:
    """Draws examples whose chance of a click is a known function of their features.

    The logit is a sum of a weight for each category, of the products of two vectors of neighbouring fields, and of the
    dense features. Categories follow a law like Zipf's: their logarithm is uniform.
    """

    def __init__(self, rows, seed=0, length=4):
        rng = np.random.default_rng((seed, 0))
        self.rows, self.seed = rows, seed
        self.weights = [rng.normal(0, 0.35, int(n) + 1) for n in CATEGORIES]
        self.vectors = [rng.normal(0, 0.25, (int(n) + 1, length)) for n in CATEGORIES]
        self.of_dense = rng.normal(0, 0.2, DENSE)

    def block(self, number):
        """4096 examples, the same wherever they are drawn, and their logits."""
        rng = np.random.default_rng((self.seed, 1, number))
        categories = (CATEGORIES ** rng.random((BLOCK, FIELDS))).astype(np.int64)
        dense = rng.normal(size=(BLOCK, DENSE)).astype(np.float32)
        logits = dense @ self.of_dense - 1
        vectors = [of_field[categories[:, field]] for field, of_field in enumerate(self.vectors)]
        for field, weights in enumerate(self.weights):
            logits += weights[categories[:, field]] + (vectors[field] * vectors[field - 1]).sum(axis=1)
        clicked = rng.random(BLOCK) < 1 / (1 + np.exp(-logits))
        return Examples(dense, hashed(categories.astype(np.uint64), self.rows), clicked.astype(np.float32)), logits

    def examples(self, count, first_block):
        """So many examples, and the AUC of their true logits: no model can expect a better one."""
        blocks = [self.block(first_block + number) for number in range(-(-count // BLOCK))]
        all_of_them = joined([examples for examples, _ in blocks])
        logits = np.concatenate([logits for _, logits in blocks])
        return all_of_them.part(0, count), auc(logits[:count], all_of_them.clicked[:count])


# Criteo's format -------------------------------------------------------------------------------------


def read_criteo(path, rows, most=None):
    """Read lines of a label, 13 integers and 26 hexadecimal categories, separated by tabs; any of them may be missing.

    Integers become log(1 + x), missing ones 0; a missing category is one of its own.
    """
    opened = gzip.open if Path(path).suffix == ".gz" else open
    dense, categories, clicked = [], [], []
    with opened(path, "rt") as file:
        for number, line in enumerate(itertools.islice(file, most), 1):
            words = line.rstrip("\n").split("\t")
            if len(words) != 1 + DENSE + FIELDS:
                raise ValueError(f"{path}, line {number} has {len(words)} columns, but needs {1 + DENSE + FIELDS}")
            try:
                clicked.append(float(words[0]))
                dense.append([float(word) if word else 0.0 for word in words[1 : 1 + DENSE]])
                categories.append([int(word, 16) + 1 if word else 0 for word in words[1 + DENSE :]])
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not clicked:
        raise ValueError(f"{path} has no lines")
    x = np.log1p(np.maximum(np.array(dense, np.float32), 0))
    return Examples(x, hashed(np.array(categories, np.uint64), rows), np.array(clicked, np.float32))


# Quality ---------------------------------------------------------------------------------------------


def auc(scores, clicked):
    """The chance that a clicked example has a higher score than one that was not; ties count half."""
    scores, clicked = np.asarray(scores), np.asarray(clicked) > 0
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positive, negative = clicked.sum(), (~clicked).sum()
    return float((ranks[clicked].sum() - positive * (positive + 1) / 2) / max(positive * negative, 1))


def log_loss(scores, clicked):
    """The mean logistic loss."""
    return float(np.logaddexp(0, np.where(np.asarray(clicked) > 0, -scores, scores)).mean())
