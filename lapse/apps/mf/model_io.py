"""A trained model in files that NumPy reads.

    rows.npy, columns.npy               float32 of shape (n, rank): factors
    row_biases.npy, column_biases.npy   float32 of shape (n,), if there are biases
    row_ids.txt, column_ids.txt         one name per line, in the order of the factors
    model.json                          mean (0 without biases), low, high, rank, biases, and how it was trained:
                                        solver, implicit, alpha, regularization, bias_regularization

The prediction for row i and column j is ``mean + row_biases[i] + column_biases[j] + rows[i] @ columns[j]``, clipped to
``low .. high``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared.files import pull_rows, write_arrays, write_model, write_text

if TYPE_CHECKING:
    from lapse.apps.mf.train import Plan

#: Values that are pulled at once.
SAVED_AT_ONCE = 4096
ABOUT = "model.json"
#: Options that `trained` needs for a row that is added.
TRAINED_BY = ("solver", "implicit", "alpha", "regularization", "bias_regularization")


def save(server: lapse.Server, plan: Plan, folder: Path) -> None:
    """Write the model into a folder, where it replaces an older one. Collective."""
    server.run(settle, plan)
    write_model(server, folder, ABOUT, _write, plan, obsolete=[f"{side}_biases.npy" for side in ("row", "column")])


def settle(kv: lapse.Worker, plan: Plan) -> None:
    """Wait until the updates of all workers are in all replicas. Collective over all workers."""
    if len(plan.placement.replicated_keys):
        kv.wait_replica_sync()
    kv.barrier()


def _write(kv: lapse.Worker, folder: Path, plan: Plan) -> None:
    matrix = plan.matrix
    _save_side(kv, plan, folder, "row", 0, matrix.num_rows, matrix.row_ids)
    _save_side(kv, plan, folder, "column", matrix.num_rows, matrix.num_columns, matrix.column_ids)
    biases = plan.model.biases
    about = {
        "mean": matrix.mean if biases else 0.0,
        "low": matrix.low,
        "high": matrix.high,
        "rank": plan.model.rank,
        "biases": biases,
        **{name: getattr(plan.args, name) for name in TRAINED_BY},
    }
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")


def _save_side(
    kv: lapse.Worker, plan: Plan, folder: Path, side: str, first_key: int, count: int, ids: list[str] | None
) -> None:
    shapes: dict[Path, tuple[int, ...]] = {folder / f"{side}s.npy": (count, plan.model.rank)}
    if plan.model.biases:
        shapes[folder / f"{side}_biases.npy"] = (count,)
    write_arrays(shapes, _factors(kv, plan, np.arange(first_key, first_key + count)))
    names = ids if ids is not None else range(1, count + 1)
    write_text(folder / f"{side}_ids.txt", "".join(f"{name}\n" for name in names))


def _factors(kv: lapse.Worker, plan: Plan, keys: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The factors, and biases if there are any, of a block of keys at a time."""
    rank = plan.model.rank
    for values in pull_rows(kv, keys, SAVED_AT_ONCE):
        yield (values[:, :rank], values[:, rank]) if plan.model.biases else (values[:, :rank],)
