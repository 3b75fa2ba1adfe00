"""What all workers know: the decisions that hold for all epochs, and the kernels for a worker's ratings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

import lapse
from lapse.apps._shared.options import pace_options
from lapse.apps.mf._kernel import Trainer
from lapse.apps.mf._model import Model
from lapse.apps.mf.matrix import Matrix, Part
from lapse.apps.mf.placement import Placement
from lapse.apps.mf.sides import Side


@dataclass(frozen=True)
class Plan:
    """What all workers know for training and evaluation."""

    args: argparse.Namespace
    matrix: Matrix
    model: Model
    placement: Placement
    sides: tuple[Side, Side] | None = None  # rows and columns, for solvers that take them in turns

    @property
    def num_factors(self) -> int:
        """How many keys rows and columns have: row i has the key i, column j the key ``num_rows + j``."""
        return self.matrix.num_rows + self.matrix.num_columns

    @property
    def num_keys(self) -> int:
        """Behind the factors, the sampler has two sums for each held-out rating, and then the draws that it keeps."""
        return self.first_kept_key + kept_draws(self.args) * self.num_factors

    @property
    def first_kept_key(self) -> int:
        """Draw d of the factor with the key k is kept at ``first_kept_key + d * num_factors + k``."""
        if self.args.solver != "gibbs":
            return self.num_factors
        return self.num_factors + -(-2 * self.matrix.num_held_out // self.model.length)

    @property
    def mean(self) -> float:
        """What predictions begin with."""
        return self.matrix.mean if self.model.biases else 0.0


def model_of(args: argparse.Namespace, mean: float = 0.0, low: float = 0.0, high: float = 0.0) -> Model:
    """The model that the options describe, of ratings with this mean and range."""
    return Model(
        rank=args.rank,
        biases=has_biases(args),
        adagrad=args.solver == "sgd" and args.step == "adagrad",
        mean=mean,
        low=low,
        high=high,
        regularization=args.regularization,
        bias_regularization=args.bias_regularization,
    )


def kept_draws(args: argparse.Namespace) -> int:
    """How many draws of the sampler are kept for the model."""
    if args.solver != "gibbs" or args.output is None:
        return 0
    return min(args.kept_draws, args.epochs - args.burn_in)


def has_biases(args: argparse.Namespace) -> bool:
    """Whether rows and columns have a bias, and the mean is added."""
    return not args.no_biases and not args.implicit


def part_of(kv: lapse.Worker, plan: Plan, parts: list[Part]) -> Part:
    """The part of a worker among those of its rank."""
    return parts[kv.id - kv.rank * plan.args.workers]


def make_trainer(
    kv: lapse.Worker,
    plan: Plan,
    part: Part,
    *,
    batch: int,
    lookahead: int = 0,
    localize: np.ndarray | None = None,
    exclusive: bool = False,
    ranks: bool = False,
) -> Trainer:
    """The kernel for some ratings of a worker, which are predicted, or ranked above columns without a rating."""
    first, end = plan.matrix.bounds[kv.id : kv.id + 2].tolist()
    columns = plan.matrix.num_columns
    return Trainer(
        kv,
        plan.model,
        part.rows,
        part.columns,
        part.values,
        first_row=first,
        num_rows=end - first,
        first_column=plan.matrix.num_rows,
        num_columns=columns,
        batch=batch,
        lookahead=lookahead,
        localize=np.zeros(columns, np.uint8) if localize is None else localize,
        exclusive=exclusive,
        **(seen_columns(part, end - first) if ranks else {}),
        **pace_options(plan.args),
    )


def seen_columns(part: Part, rows: int) -> dict[str, np.ndarray]:
    """For `Trainer`: the columns of each row of a worker, and where they begin."""
    order = np.lexsort((part.columns, part.rows))
    starts = np.concatenate([[0], np.cumsum(np.bincount(part.rows, minlength=rows))])
    return {"seen": starts, "seen_columns": part.columns[order]}
