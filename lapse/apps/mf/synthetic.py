"""The synthetic matrix of the papers: planted factors, noise, and Zipf-distributed rows and columns.

As in Renz-Wieland et al. (PVLDB 13(12), 2020; SIGMOD 2022): the numbers of entries in rows and in columns follow
Zipf's law with exponent 1.1, an entry is the product of two planted factors plus noise, and no cell occurs twice.
The content of a row depends on the seed and the row only, so that each rank generates its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import lapse
from lapse.apps.mf.data import Share

#: Rows with more than this share of filled cells weigh all cells instead of drawing some.
DENSE = 1 / 8
#: Purposes of random streams.
ROW_FACTORS, COLUMN_FACTORS, ROW_CELLS = range(3)
DISTINCT = 7  # keeps these streams apart from those of the training


@dataclass(frozen=True)
class Recipe:
    """The properties of the matrix.

    Attributes
    ----------
    rows, columns, entries
        Its size; at least one entry per row.
    rank
        Length of the planted factors; entries without noise have variance 1.
    noise
        Standard deviation of the noise.
    exponent
        Exponent of Zipf's law.
    seed
        Seed of all random streams.
    """

    rows: int
    columns: int
    entries: int
    rank: int = 5
    noise: float = 0.1
    exponent: float = 1.1
    seed: int = 1

    def __post_init__(self) -> None:
        most = self.rows * self.columns
        if not self.rows <= self.entries <= most:
            raise ValueError(
                f"{self.entries:,} entries do not fit into a matrix of {self.rows:,} x {self.columns:,}: "
                f"must be from {self.rows:,} (one per row) to {most:,}"
            )


def zipf(count: int, exponent: float) -> np.ndarray:
    """The probabilities of ranks 1 to `count`."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def row_sizes(recipe: Recipe) -> np.ndarray:
    """Entries of each row, int64: in proportion to Zipf's law, but at least 1 and at most a full row."""
    weights = zipf(recipe.rows, recipe.exponent)
    low, high = 0.0, recipe.entries / weights[-1]
    for _ in range(200):  # bisection for the factor that gives the right sum
        middle = (low + high) / 2
        if _sizes(middle * weights, recipe).sum() < recipe.entries:
            low = middle
        else:
            high = middle
    sizes = _sizes(low * weights, recipe)
    missing = recipe.entries - int(sizes.sum())
    sizes[np.flatnonzero(sizes < recipe.columns)[:missing]] += 1
    return sizes


def _sizes(expected: np.ndarray, recipe: Recipe) -> np.ndarray:
    return np.clip(np.floor(expected), 1, recipe.columns).astype(np.int64)


def make_share(recipe: Recipe, index: int = 0, count: int = 1) -> Share:
    """Generate every `count`-th row, from row `index` on."""
    weights = zipf(recipe.columns, recipe.exponent)
    cumulated = np.cumsum(weights)
    mine = np.arange(index, recipe.rows, count)
    sizes = row_sizes(recipe)[mine]
    cells_of_rows, values_of_rows = [], []
    for row, size in zip(mine.tolist(), sizes.tolist()):
        rng = _stream(recipe.seed, ROW_CELLS, row)
        cells = draw_cells(rng, weights, cumulated, size)
        cells_of_rows.append(cells.astype(np.int32))
        values_of_rows.append(_entries(recipe, row, cells, rng))
    rows = np.repeat(mine, sizes)
    columns = np.concatenate([np.empty(0, np.int32), *cells_of_rows])
    values = np.concatenate([np.empty(0, np.float32), *values_of_rows])
    identities = rows.astype(np.uint64) * np.uint64(recipe.columns) + columns.astype(np.uint64)
    return Share(rows.astype(np.int32), columns, values, identities, shape=(recipe.rows, recipe.columns))


def draw_cells(rng: np.random.Generator, weights: np.ndarray, cumulated: np.ndarray, size: int) -> np.ndarray:
    """Draw `size` distinct columns, one after the other by `weights` among the remaining ones; sorted.

    A well filled row takes the largest of ``log(weight) + Gumbel noise``, which is the same distribution (the random
    keys of Efraimidis and Spirakis 2006, in logarithms); a sparse one draws with repetition until it has enough
    different columns, also the same, without looking at all of them.
    """
    if size > DENSE * len(weights):
        scores = np.log(weights) + rng.gumbel(size=len(weights))
        return np.sort(np.argpartition(-scores, size - 1)[:size])
    drawn = np.empty(0, np.int64)
    while True:
        more = np.searchsorted(cumulated, rng.random(2 * size) * cumulated[-1], side="right")
        drawn = np.concatenate([drawn, more])
        first = np.sort(np.unique(drawn, return_index=True)[1])
        if len(first) >= size:
            return np.sort(drawn[first[:size]])


def _entries(recipe: Recipe, row: int, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scores = planted(recipe, ROW_FACTORS, np.array([row])) @ planted(recipe, COLUMN_FACTORS, cells).T
    return (scores[0] + rng.normal(0, recipe.noise, len(cells))).astype(np.float32)


def planted(recipe: Recipe, purpose: int, numbers: np.ndarray) -> np.ndarray:
    """Planted factors of rows or columns, shape (len(numbers), rank).

    Elements have variance ``rank ** -0.5``, so that a product of two factors has variance 1.
    """
    seed = int(np.random.SeedSequence((recipe.seed, DISTINCT, purpose)).generate_state(1)[0])
    return lapse.Normal(0, recipe.rank**-0.25).values(numbers, recipe.rank, seed)


def _stream(seed: int, purpose: int, row: int) -> np.random.Generator:
    return np.random.default_rng((seed, DISTINCT, purpose, row))
