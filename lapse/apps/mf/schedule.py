"""The order in which a worker trains its ratings, by algorithm."""

from __future__ import annotations

import numpy as np

from lapse.apps._shared import streams
from lapse.apps.mf._order import shuffle

#: Purposes of random streams; see `streams`.
BLOCKS, ORDER = range(2)
#: Instead of a worker's number, for choices that are the same for all workers.
EVERYBODY = 2**32 - 1


class LatinSquare:
    """DSGD's schedule for an epoch: in each sub-epoch, every worker has a block of columns of its own.

    There are as many sub-epochs as workers; over them, every worker has every block once (Gemulla et al., KDD 2011,
    section 4). Each epoch has its own blocks, cut from the columns in random order so that all have about the same
    number of ratings; with more workers than columns some are empty. All workers compute the same blocks.

    Parameters
    ----------
    counts
        The number of training ratings per column, of all workers.
    workers
        The number of workers.
    seed, epoch
        They determine the random choices.
    """

    def __init__(self, counts: np.ndarray, workers: int, seed: int, epoch: int) -> None:
        rng = streams.generator(seed, epoch, EVERYBODY, BLOCKS)
        self.workers = workers
        self._start = int(rng.integers(workers))
        self.block_of = cut_evenly(counts, workers, rng.permutation(len(counts)))

    def block(self, worker: int, sub_epoch: int) -> int:
        """The block of a worker.

        Its next block is the current one of the next worker, which is often of the same rank.
        """
        return (worker + self._start + sub_epoch) % self.workers

    def orders(
        self, worker: int, rows: np.ndarray, columns: np.ndarray, batch: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """The numbers of a worker's ratings for each sub-epoch; `rows` and `columns` are those of its ratings.

        If a block has more ratings than `batch`, its rows are assigned at random to groups of about that many, and
        one group follows the other: a batch has the rows of its group only, each of them often, and pulls fewer keys
        than the same number of ratings from the whole block. Within a group the order is random.
        """
        groups = max(round(len(rows) / self.workers / batch), 1)
        counts = np.bincount(rows, minlength=1)
        group_of = cut_evenly(counts, groups, rng.permutation(len(counts)))
        turn_of = (np.arange(self.workers) - worker - self._start) % self.workers  # when the worker has each block
        number = (groups * turn_of[self.block_of[columns]] + group_of[rows]).astype(np.int32)
        order, ends = shuffle(number, groups * self.workers, int(rng.integers(2**63)))
        return np.split(order, ends[groups - 1 : -1 : groups])


def cut_evenly(counts: np.ndarray, parts: int, order: np.ndarray | None = None) -> np.ndarray:
    """Assign items to `parts` of about the same number of ratings.

    Parameters
    ----------
    counts
        The number of ratings per item.
    parts
        The number of parts.
    order
        A permutation of the items: each part is a run of it; None: in their order.

    Returns
    -------
    numpy.ndarray of int32
        The part of each item.
    """
    weights = counts.astype(np.float64) + 1e-3  # items without ratings are distributed as well
    weights = weights if order is None else weights[order]
    before = np.cumsum(weights) - weights / 2  # the middle of an item determines its part
    part_of = np.empty(len(counts), np.int32)
    part_of[slice(None) if order is None else order] = np.minimum(before / weights.sum() * parts, parts - 1)
    return part_of


def plain_order(ratings: int, rng: np.random.Generator) -> np.ndarray:
    """All ratings in random order."""
    return rng.permutation(ratings)


def columnwise_order(columns: np.ndarray, num_columns: int, rng: np.random.Generator) -> np.ndarray:
    """Columns in random order, and the ratings of each column in random order."""
    turn = rng.permutation(num_columns).astype(np.int32)
    shuffled = rng.permutation(len(columns))
    return shuffled[np.argsort(turn[columns[shuffled]], kind="stable")]
