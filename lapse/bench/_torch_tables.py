"""What the group ``torch`` measures: steps with a table in the server and in PyTorch, on the same ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import lapse
import lapse.torch


@dataclass(frozen=True)
class Size:
    """Of a table, and of a batch: `batch` examples of `fields` ids each."""

    rows: int
    length: int
    batch: int
    fields: int


class Batches:
    """Draws ids: uniformly, or with a logarithm that is uniform, by the law of Zipf."""

    def __init__(self, size: Size, distribution: str, seed: int) -> None:
        self._size, self._is_uniform = size, distribution == "uniform"
        self._rng = np.random.default_rng(seed)
        self._order = self._rng.permutation(size.rows)  # frequent ids are not neighbours

    def draw(self) -> torch.Tensor:
        """Ids of shape (batch, fields)."""
        shape = self._size.batch, self._size.fields
        if self._is_uniform:
            return torch.from_numpy(self._rng.integers(0, self._size.rows, shape))
        return torch.from_numpy(self._order[(self._size.rows ** self._rng.random(shape)).astype(np.int64) - 1])


def plain(name: str, size: Size, optimizer: str) -> Callable[[torch.Tensor], None]:
    """A step of a module of PyTorch."""
    torch.sparse.check_sparse_tensor_invariants.disable()  # the default, without its warning
    options = {} if name == "Embedding" else {"mode": "sum"}
    module = getattr(nn, name)(size.rows, size.length, sparse=True, **options)
    step = getattr(torch.optim, optimizer)(module.parameters(), lr=0.01)

    def train(ids: torch.Tensor) -> None:
        module.zero_grad()
        module(ids).square().mean().backward()
        step.step()

    return train


def served(name: str, kv: lapse.Worker, table: Any) -> Callable[[torch.Tensor], None]:
    """A step of one of `lapse.torch`; all of its gradients have taken effect when it returns."""
    options = {} if name == "Embedding" else {"mode": "sum"}
    module = getattr(lapse.torch, name)(kv, table, **options)

    def train(ids: torch.Tensor) -> None:
        module(ids).square().mean().backward()
        lapse.torch.flush(kv)

    return train


def recommender(kv: lapse.Worker, table: Any, size: Size, steps: int, rank: int) -> Callable[[], None]:
    """Some steps of a model with two dense layers over the rows of all fields."""
    embedding = lapse.torch.Embedding(kv, table)
    layers = nn.Sequential(nn.Linear(size.fields * size.length, 128), nn.ReLU(), nn.Linear(128, 1))
    dense = lapse.torch.Dense(layers, torch.optim.Adam(layers.parameters()), kv)
    draws = Batches(size, "Zipf", seed=1)
    for _ in range(rank):
        draws.draw()
    batches = lapse.torch.Prefetcher([draws.draw() for _ in range(steps)], kv, table.keys)

    def train() -> None:
        for ids in batches:
            dense.zero_grad()
            dense(embedding(ids).flatten(1)).square().mean().backward()
            dense.step()
        dense.join()

    return train
