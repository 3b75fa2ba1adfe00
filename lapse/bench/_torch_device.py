"""Steps of a recommender whose dense layers compute on a GPU: tables in the server, and in the GPU's memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import lapse
import lapse.torch
from lapse.bench._torch_tables import Batches, Size

#: Dense parts, by how many cross layers they have and the widths of the hidden layers behind them: that of
#: examples/click_through, the top layers of DLRM (Naumov et al., arXiv:1906.00091) and the dense part of DLRM-DCNv2,
#: both as in MLPerf's training benchmark.
LAYERS = {
    "64": (0, (64,)),
    "1024-1024-512-256": (0, (1024, 1024, 512, 256)),
    "3 cross, 1024-1024-512-256": (3, (1024, 1024, 512, 256)),
}
CROSS_RANK = 512
RATE = 0.01


@dataclass(frozen=True)
class Model:
    """Dense layers on a device, and what makes the rows of a batch's ids."""

    rows_of: Callable[[torch.Tensor], torch.Tensor]
    layers: nn.Module
    step: Callable[[], None]

    def train(self, ids: torch.Tensor) -> None:
        """A step, which the host does not wait for."""
        self.layers.zero_grad()
        self.layers(self.rows_of(ids).flatten(1)).square().mean().backward()
        self.step()


class Cross(nn.Module):
    """A layer of DCN-V2 (Wang et al., WWW 2021) with a matrix of low rank: x0 * (U V x + b) + x."""

    def __init__(self, inputs: int, count: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(inputs, CROSS_RANK, bias=False) for _ in range(count))
        self.up = nn.ModuleList(nn.Linear(CROSS_RANK, inputs) for _ in range(count))

    def forward(self, first: torch.Tensor) -> torch.Tensor:
        x = first
        for down, up in zip(self.down, self.up):
            x = first * up(down(x)) + x
        return x


def layers_of(size: Size, name: str, device: torch.device) -> nn.Sequential:
    """Cross layers, and linear layers with ReLU between them, over the rows of all fields."""
    torch.manual_seed(1)
    num_cross, widths = LAYERS[name]
    inputs = size.fields * size.length
    parts: list[nn.Module] = [Cross(inputs, num_cross)]
    for width in widths:
        parts += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*parts, nn.Linear(inputs, 1)).to(device)


def served(kv: lapse.Worker, table: Any, size: Size, name: str, device: torch.device) -> Model:
    """A table in the server."""
    embedding = lapse.torch.Embedding(kv, table, device=device)
    layers = layers_of(size, name, device)
    dense = lapse.torch.Dense(layers, torch.optim.Adam(layers.parameters()), kv)
    return Model(embedding, layers, dense.step)


def resident(size: Size, name: str, device: torch.device) -> Model:
    """A table in the GPU's memory, with sparse gradients and PyTorch's AdaGrad."""
    torch.sparse.check_sparse_tensor_invariants.disable()  # the default, without its warning
    embedding = nn.Embedding(size.rows, size.length, sparse=True, device=device)
    layers = layers_of(size, name, device)
    optimizers = [torch.optim.Adagrad(embedding.parameters(), RATE), torch.optim.Adam(layers.parameters())]

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()
        embedding.zero_grad()

    return Model(lambda ids: embedding(ids.to(device, non_blocking=True)), layers, step)


def without_table(ids: torch.Tensor, size: Size, name: str, device: torch.device) -> Model:
    """Rows that are there already: the distinct ones of one batch, which is trained again and again."""
    keys, places = torch.unique(ids, return_inverse=True)
    distinct = torch.randn(len(keys), size.length, device=device, requires_grad=True)
    places = places.to(device)
    layers = layers_of(size, name, device)
    optimizer = torch.optim.Adam(layers.parameters())

    def step() -> None:
        optimizer.step()
        distinct.grad = None

    return Model(lambda ids: nn.functional.embedding(places, distinct), layers, step)


def seconds_per_step(model: Model, batches: Iterable[torch.Tensor], device: torch.device) -> float:
    """The mean over some steps, from an idle device until it is idle again."""
    torch.cuda.synchronize(device)
    begin, count = time.perf_counter(), 0
    for ids in batches:
        model.train(ids)
        count += 1
    torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / count


def turns(
    kv: lapse.Worker, table: Any, size: Size, name: str, device: torch.device, steps: int
) -> dict[str, Callable[[], float]]:
    """What is measured in turns: functions that return the seconds of a step."""
    draws = Batches(size, "Zipf", seed=1)
    ids = [draws.draw().pin_memory() for _ in range(steps)]
    ours, theirs, bound = (
        served(kv, table, size, name, device),
        resident(size, name, device),
        without_table(ids[0], size, name, device),
    )

    return {
        "without Prefetcher": lambda: seconds_per_step(ours, ids, device),
        "Prefetcher": lambda: seconds_per_step(ours, lapse.torch.Prefetcher(ids, kv, table.keys), device),
        "nn.Embedding": lambda: seconds_per_step(theirs, ids, device),
        "rows there": lambda: seconds_per_step(bound, ids, device),
    }
