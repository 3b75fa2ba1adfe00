"""What all workers know: the decisions that hold for all epochs, and the parameters of the kernels."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from lapse.apps.kge.data import Dataset, Known
from lapse.apps.kge.models import Model
from lapse.apps.kge.placement import Placement

#: Purposes of random streams; see `streams`.
SHUFFLING, DROPOUT, SHARING = range(3)


@dataclass(frozen=True)
class Plan:
    """What all workers know.

    Attributes
    ----------
    categories
        Of the relations; see `evaluate`.
    shares
        Per worker of all ranks: the rows of ``dataset.train`` that it trains. Of no use if all entities are negatives:
        all workers train every triple together then.
    """

    args: argparse.Namespace
    dataset: Dataset
    known: Known
    categories: np.ndarray
    model: Model
    placement: Placement
    shares: list[np.ndarray]


def learning_rate(args: argparse.Namespace, epoch: int, reductions: int = 0) -> float:
    """The learning rate of an epoch.

    It decreases linearly from epoch to epoch, to `lr_final` times `lr` in the last one; and each of the `reductions` so
    far has multiplied it by `lr_plateau`.
    """
    done = epoch / max(args.epochs - 1, 1)
    return args.lr * (1 + (args.lr_final - 1) * done) * args.lr_plateau**reductions


def kernel_options(plan: Plan, seed: int) -> dict:
    """The parameters of the kernels' gradients."""
    args, model = plan.args, plan.model
    return dict(
        model=model.name,
        loss=args.loss,
        dim=model.dim,
        relation_length=model.relation_length,
        num_entities=model.num_entities,
        num_relations=model.num_relations,
        reciprocal=model.reciprocal,
        block=args.batch_size,
        norm=model.norm,
        margin=args.margin,
        entity_dropout=args.entity_dropout,
        relation_dropout=args.relation_dropout,
        entity_n3=args.entity_n3,
        entity_l2=args.entity_l2,
        relation_n3=args.relation_n3,
        relation_l2=args.relation_l2,
        seed=seed,
    )
