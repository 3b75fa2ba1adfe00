"""A trained model in files: embeddings for NumPy, names for people.

====================  =========================================================================
entities.npy          float32, shape (entities, dim)
relations.npy         float32, shape (relations, dim); RESCAL: (relations, dim, dim)
inverse_relations.npy  the same for the relations that ask for subjects, where the model has them
entities.tsv          a line per entity: id, tab, name
relations.tsv         likewise
model.json            the model's name, sizes and norm, and its quality
====================  =========================================================================

In complex vectors the first half holds real parts, the second imaginary ones, in the same order.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

import lapse
from lapse.apps.kge.data import Dataset
from lapse.apps.kge.evaluate import pull_vectors
from lapse.apps.kge.models import Model

#: Elements that are pulled at once.
PULLED_ELEMENTS = 1 << 20


def write(kv: lapse.Worker, model: Model, dataset: Dataset, folder: Path, figures: dict) -> None:
    """Write the model (the first worker does). Each file appears when it is complete."""
    if kv.id != 0:
        return
    shape = (model.dim, model.dim) if model.name == "rescal" else (model.dim,)
    firsts = {"entities": (0, model.num_entities, (model.dim,)),
              "relations": (model.num_entities, model.num_relations, shape)}
    if model.reciprocal:
        firsts["inverse_relations"] = (model.num_entities + model.num_relations, model.num_relations, shape)
    for stem, (first, count, row_shape) in firsts.items():
        _write_vectors(kv, folder / f"{stem}.npy", first, count, row_shape)
    for stem, names in (("entities", dataset.entities), ("relations", dataset.relations)):
        _write_text(folder / f"{stem}.tsv", "".join(f"{i}\t{name}\n" for i, name in enumerate(names)))
    _write_text(folder / "model.json", json.dumps({**vars(model), **figures}, indent=1) + "\n")


def _write_vectors(kv: lapse.Worker, path: Path, first: int, count: int, shape: tuple[int, ...]) -> None:
    temporary = _temporary(path)
    try:
        array = np.lib.format.open_memmap(temporary, "w+", np.float32, (count, *shape))
        step = max(PULLED_ELEMENTS // int(np.prod(shape)), 1)
        for start in range(0, count, step):
            end = min(start + step, count)
            array[start:end] = pull_vectors(kv, first + np.arange(start, end)).reshape(-1, *shape)
        array.flush()
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _write_text(path: Path, text: str) -> None:
    temporary = _temporary(path)
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def _temporary(path: Path) -> Path:
    """Beside the file, so that it can take its place; a killed run's is overwritten by the next."""
    return path.with_name(path.name + ".part")
