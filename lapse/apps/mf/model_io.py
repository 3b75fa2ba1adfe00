"""A trained model in files that NumPy reads.

    rows.npy, columns.npy               float32 of shape (n, rank): factors
    row_biases.npy, column_biases.npy   float32 of shape (n,), if there are biases
    row_ids.txt, column_ids.txt         one name per line, in the order of the factors
    model.json                          mean (0 without biases), low, high, rank, biases, and how it was trained:
                                        solver, implicit, alpha, regularization, bias_regularization; of the sampler
                                        draws, whose factors are side by side (see `draws`)

The prediction for row i and column j is ``mean + row_biases[i] + column_biases[j] + rows[i] @ columns[j]``, clipped to
``low .. high``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import lapse
from lapse.apps._shared.files import write_arrays, write_model, write_text
from lapse.apps.mf.draws import pull_mean

if TYPE_CHECKING:
    from lapse.apps.mf.train import Plan

#: Values that are pulled at once.
SAVED_AT_ONCE = 4096
ABOUT = "model.json"
#: Options that `trained` needs for a row that is added.
TRAINED_BY = ("solver", "implicit", "alpha", "regularization", "bias_regularization")


def save(server: lapse.Server, plan: Plan, folder: Path, kept: int = 0) -> None:
    """Write the model into a folder, where it replaces an older one; the mean of so many draws, if any. Collective."""
    server.run(settle, plan)
    obsolete = [f"{side}_biases.npy" for side in ("row", "column")]
    write_model(server, folder, ABOUT, _write, plan, kept, obsolete=obsolete)


def settle(kv: lapse.Worker, plan: Plan) -> None:
    """Wait until the updates of all workers are in all replicas. Collective over all workers."""
    if len(plan.placement.replicated_keys):
        kv.wait_replica_sync()
    kv.barrier()


def _write(kv: lapse.Worker, folder: Path, plan: Plan, kept: int) -> None:
    matrix = plan.matrix
    for side, first, count, ids in (
        ("row", 0, matrix.num_rows, matrix.row_ids),
        ("column", matrix.num_rows, matrix.num_columns, matrix.column_ids),
    ):
        _save_side(kv, plan, folder, side, np.arange(first, first + count), kept)
        names = ids if ids is not None else range(1, count + 1)
        write_text(folder / f"{side}_ids.txt", "".join(f"{name}\n" for name in names))
    biases = plan.model.biases
    about = {
        "mean": matrix.mean if biases else 0.0,
        "low": matrix.low,
        "high": matrix.high,
        "rank": plan.model.rank * max(kept, 1),
        "biases": biases,
        **({"draws": kept} if kept else {}),
        **{name: getattr(plan.args, name) for name in TRAINED_BY},
    }
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")


def _save_side(kv: lapse.Worker, plan: Plan, folder: Path, side: str, keys: np.ndarray, kept: int) -> None:
    rank = plan.model.rank * max(kept, 1)
    shapes: dict[Path, tuple[int, ...]] = {folder / f"{side}s.npy": (len(keys), rank)}
    if plan.model.biases:
        shapes[folder / f"{side}_biases.npy"] = (len(keys),)
    values = pull_mean(kv, plan, keys, kept, SAVED_AT_ONCE)
    write_arrays(shapes, _separate(values, rank, plan.model.biases))


def _separate(values: Iterable[np.ndarray], rank: int, biases: bool) -> Iterator[tuple[np.ndarray, ...]]:
    """The factors, and biases if there are any, of each block."""
    for block in values:
        yield (block[:, :rank], block[:, rank]) if biases else (block[:, :rank],)
