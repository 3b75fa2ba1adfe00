"""The model in files that NumPy reads.

    rows.npy, columns.npy               float32 of shape (n, rank): factors
    row_biases.npy, column_biases.npy   float32 of shape (n,), with biases
    row_ids.txt, column_ids.txt         a name a line, in the order of the factors
    model.json                          mean (0 without biases), low, high, rank, biases

The prediction for row i and column j is ``mean + row_biases[i] + column_biases[j] + rows[i] @ columns[j]``, clipped to
``low .. high``.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

import lapse

log = logging.getLogger(__name__)

#: Values that are pulled at once, so that no rank holds the whole model.
SAVED_AT_ONCE = 4096


def save(server: lapse.Server, plan, folder: Path) -> None:
    """Write the model of a `train.Plan` into `folder` (rank 0 does). Collective."""
    server.run(_save, plan, folder)
    log.info("wrote the model to %s", folder)


def _save(kv: lapse.Worker, plan, folder: Path) -> None:
    if plan.placement.is_replicated.any():
        kv.wait_replica_sync()
    kv.barrier()
    if kv.id != 0:
        return
    matrix = plan.matrix
    _save_side(kv, plan, folder, "row", 0, matrix.num_rows, matrix.row_ids)
    _save_side(kv, plan, folder, "column", matrix.num_rows, matrix.num_columns, matrix.column_ids)
    biases = plan.model.biases
    about = {"mean": matrix.mean if biases else 0.0, "low": matrix.low, "high": matrix.high, "rank": plan.model.rank,
             "biases": biases}
    (folder / "model.json").write_text(json.dumps(about, indent=1) + "\n")


def _save_side(kv: lapse.Worker, plan, folder: Path, side: str, first_key: int, count: int, ids) -> None:
    rank = plan.model.rank
    factors = open_memmap(folder / f"{side}s.npy", "w+", np.float32, (count, rank))
    biases = open_memmap(folder / f"{side}_biases.npy", "w+", np.float32, (count,)) if plan.model.biases else None
    for begin in range(0, count, SAVED_AT_ONCE):
        end = min(begin + SAVED_AT_ONCE, count)
        values = kv.pull(np.arange(first_key + begin, first_key + end)).wait()
        factors[begin:end] = values[:, :rank]
        if biases is not None:
            biases[begin:end] = values[:, rank]
    factors.flush()
    if biases is not None:
        biases.flush()
    with open(folder / f"{side}_ids.txt", "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{name}\n" for name in (ids if ids is not None else range(1, count + 1)))
