"""A trained model in files: embeddings for NumPy, and the names of entities and relations.

====================  =========================================================================
entities.npy          float32, shape (entities, dim)
relations.npy         float32, shape (relations, dim); RESCAL: (relations, dim, dim)
inverse_relations.npy  the same for the relations that predict subjects, if the model has them
entities.tsv          one line per entity: id, tab, name
relations.tsv         likewise
model.json            the model's name, sizes and norm, and its quality
====================  =========================================================================

In complex vectors the first half holds real parts, the second imaginary ones, in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import lapse
from lapse.apps._shared.files import pull_rows, write_arrays, write_text
from lapse.apps.kge.data import Dataset
from lapse.apps.kge.models import Model

#: Elements that are pulled at once.
PULLED_ELEMENTS = 1 << 20
#: Names of files.
ABOUT, INVERSE = "model.json", "inverse_relations"


def write(kv: lapse.Worker, folder: Path, model: Model, dataset: Dataset, figures: dict) -> None:
    """Write the model into a folder."""
    shape = (model.dim, model.dim) if model.name == "rescal" else (model.dim,)
    firsts = {
        "entities": (0, model.num_entities, (model.dim,)),
        "relations": (model.num_entities, model.num_relations, shape),
    }
    if model.reciprocal:
        firsts[INVERSE] = (model.num_entities + model.num_relations, model.num_relations, shape)
    for stem, (first, count, row_shape) in firsts.items():
        write_arrays({folder / f"{stem}.npy": (count, *row_shape)}, _vectors(kv, first, count, row_shape))
    for stem, names in (("entities", dataset.entities), ("relations", dataset.relations)):
        write_text(folder / f"{stem}.tsv", "".join(f"{i}\t{name}\n" for i, name in enumerate(names)))
    write_text(folder / ABOUT, json.dumps({**vars(model), **figures}, indent=1) + "\n")


def _vectors(kv: lapse.Worker, first: int, count: int, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray]]:
    """The vectors of `count` keys from `first` on, a block at a time, without what is behind them."""
    length = int(np.prod(shape))
    for values in pull_rows(kv, np.arange(first, first + count), max(PULLED_ELEMENTS // length, 1)):
        yield (values[:, :length].reshape(-1, *shape),)
