"""A trained factorization that answers questions: the best columns for a row, similar columns, rows that are new.

The arrays are mapped and names searched in their files (`model_io` describes them): a model takes 16 bytes of memory
per row and column.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lapse.apps._shared.names import Name, Names, numbers_of
from lapse.apps._shared.saved import check_folder, map_array, map_names, read_about
from lapse.apps._shared.top import Answers, Best, Cosines, blocks
from lapse.apps.mf.model_io import ABOUT

#: Rows that are answered in one pass over the columns.
ROWS_AT_ONCE = 64
#: For a new row, if the training had none (the sampler draws it): the defaults of gradient descent.
REGULARIZATION, BIAS_REGULARIZATION = 0.1, 0.02

Left = Sequence[np.typing.ArrayLike] | None


class NewRow(NamedTuple):
    """The parameters of a row that was not trained: factors, shape (rank,), and bias (0 without biases)."""

    factors: np.ndarray
    bias: float


class Side(NamedTuple):
    """Rows or columns: factors and biases, mapped, and names."""

    factors: np.ndarray
    biases: np.ndarray | None
    names: Names


class Model:
    """A trained model; made by `load`. Rows are users, columns items, whatever they stand for.

    Attributes
    ----------
    rows, columns
        The names: sequences of str with ``index(name)``.
    about
        What ``model.json`` says: ``mean``, ``low``, ``high``, ``rank``, ``biases``, ``implicit`` and others.
    """

    def __init__(self, rows: Side, columns: Side, about: dict) -> None:
        self.rows, self.columns, self.about = rows.names, columns.names, about
        self._rows, self._columns = rows, columns
        self._cosines = Cosines(columns.factors)
        self._gramian: np.ndarray | None = None

    @classmethod
    def load(cls, path: str | os.PathLike) -> Model:
        """Open the folder that a training wrote.

        Raises
        ------
        AppError
            When it is no model, or its files do not fit together, with the file.
        """
        folder = Path(path)
        check_folder(folder, "mf", ABOUT)
        number = (int, float)
        kinds: dict[str, type | tuple[type, ...]] = {"mean": number, "low": number, "high": number}
        about = read_about(folder / ABOUT, {**kinds, "rank": int, "biases": bool})

        def side(name: str, kind: str) -> Side:
            factors = map_array(folder / f"{name}s.npy", (None, about["rank"]))
            biases = map_array(folder / f"{name}_biases.npy", (len(factors),)) if about["biases"] else None
            return Side(factors, biases, map_names(folder / f"{name}_ids.txt", len(factors), kind))

        return cls(side("row", "user"), side("column", "item"), about)

    @property
    def is_implicit(self) -> bool:
        """Whether predictions say how likely a cell is used, not which rating it has."""
        return bool(self.about.get("implicit", False))

    def recommend(self, users: Sequence[Name | NewRow], k: int = 10, left_out: Left = None) -> list[Answers]:
        """The `k` items with the highest predictions for each user; scores are not clipped to the range of ratings.

        Parameters
        ----------
        users
            Names, numbers, or what `fold_in` returns.
        left_out
            For each user, the numbers of items that are no answers, such as those that it has.

        Raises
        ------
        UnknownNameError
            With names that are alike.
        """
        rows = self._new_rows(users)
        found: list[Answers] = []
        for first in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[first : first + ROWS_AT_ONCE]
            factors = np.stack([row.factors for row in some])
            offsets = np.array([[row.bias + self.about["mean"]] for row in some], np.float32)
            best = Best(len(some), k, None if left_out is None else left_out[first : first + ROWS_AT_ONCE])
            for column, block in blocks(self._columns.factors):
                scores = factors @ block.T + offsets
                if self._columns.biases is not None:
                    scores += self._columns.biases[column : column + len(block)]
                best.add(column, scores)
            found += best.answers(self.columns)
        return found

    def similar(self, items: Sequence[Name], k: int = 10) -> list[Answers]:
        """The `k` items whose factors have the largest cosine with those of each item, without it."""
        places = numbers_of(self.columns, items)
        found: list[Answers] = []
        for first in range(0, len(places), ROWS_AT_ONCE):
            some = places[first : first + ROWS_AT_ONCE]
            best = Best(len(some), k, some[:, None])  # its own
            for column, cosines in self._cosines.blocks(np.stack([self._cosines.unit(place) for place in some])):
                best.add(column, cosines)
            found += best.answers(self.columns)
        return found

    def predict(self, users: Sequence[Name | NewRow], items: Sequence[Name]) -> np.ndarray:
        """The predictions for pairs of a user and an item, float32, shape (n,); ratings are clipped to their range."""
        rows, places = self._new_rows(users), numbers_of(self.columns, items)
        if len(rows) != len(places):
            raise ValueError(f"{len(rows)} users and {len(places)} items")
        if not rows:
            return np.empty(0, np.float32)
        scores = np.einsum("ij,ij->i", np.stack([row.factors for row in rows]), self._columns.factors[places])
        scores += np.array([row.bias + self.about["mean"] for row in rows], np.float32)
        if self._columns.biases is not None:
            scores += self._columns.biases[places]
        return self.clip(scores)

    def clip(self, scores: np.ndarray) -> np.ndarray:
        """Scores as predictions: ratings are within their range."""
        return scores if self.is_implicit else np.clip(scores, self.about["low"], self.about["high"])

    def fold_in(
        self,
        items: Sequence[Name],
        ratings: Sequence[float] | np.ndarray,
        regularization: float | None = None,
        bias_regularization: float | None = None,
    ) -> NewRow:
        """The parameters of a new user that fit its ratings best, while those of items stay.

        They are the solution of a least-squares problem, as in a half epoch of the solver ``als``: of explicit ratings
        Zhou et al., *Large-Scale Parallel Collaborative Filtering for the Netflix Prize*, AAIM 2008; of implicit ones
        Hu, Koren, Volinsky, *Collaborative Filtering for Implicit Feedback Datasets*, ICDM 2008.

        Parameters
        ----------
        items, ratings
            What the user has rated, and how.
        regularization, bias_regularization
            L2 regularization, per rating (implicit: once); None: that of the training, or, if that had none, 0.1 and
            0.02.

        Raises
        ------
        ValueError
            Without ratings, if they are not finite, or for a regularization that is not above 0.
        """
        places, values = numbers_of(self.columns, items), np.asarray(ratings, np.float64)
        if len(places) == 0 or values.shape != places.shape:
            raise ValueError(f"a new user needs a rating per item: {len(places)} items, {values.size} ratings")
        if not np.isfinite(values).all():
            raise ValueError("a rating is not a finite number")
        strength = regularization or self.about.get("regularization") or REGULARIZATION
        if strength < 0:
            raise ValueError(f"regularization is {strength}, but must be above 0")
        factors = self._columns.factors[places].astype(np.float64)
        rank = factors.shape[1]
        if self.is_implicit:
            more = float(self.about["alpha"]) * values  # confidence beyond 1
            matrix = self._products() + strength * np.eye(rank) + (factors * more[:, None]).T @ factors
            solution = np.linalg.solve(matrix, factors.T @ ((1 + more) * (values != 0)))
            return NewRow(solution.astype(np.float32), 0.0)
        targets = values - self.about["mean"]
        penalties = np.full(rank, strength)
        if self._columns.biases is not None:
            targets -= self._columns.biases[places]
            factors = np.hstack([factors, np.ones((len(places), 1))])
            bias_strength = bias_regularization or self.about.get("bias_regularization") or BIAS_REGULARIZATION
            penalties = np.append(penalties, bias_strength)
        solution = np.linalg.solve(factors.T @ factors + len(places) * np.diag(penalties), factors.T @ targets)
        return NewRow(solution[:rank].astype(np.float32), float(solution[rank:].sum()))

    def _products(self) -> np.ndarray:
        """The sum of the outer products of all columns' factors."""
        if self._gramian is None:
            rank = self._columns.factors.shape[1]
            self._gramian = np.zeros((rank, rank))
            for _, block in blocks(self._columns.factors):
                self._gramian += block.T @ block
        return self._gramian

    def _new_rows(self, users: Sequence[Name | NewRow]) -> list[NewRow]:
        known = [user for user in users if not isinstance(user, NewRow)]
        places = iter(numbers_of(self.rows, known).tolist())
        return [user if isinstance(user, NewRow) else self._row(next(places)) for user in users]

    def _row(self, place: int) -> NewRow:
        bias = 0.0 if self._rows.biases is None else float(self._rows.biases[place])
        return NewRow(np.asarray(self._rows.factors[place]), bias)
