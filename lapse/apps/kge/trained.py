"""A trained knowledge-graph embedding that answers questions: likely objects and subjects, scores of triples.

The arrays are mapped and names searched in their files (`model_io` describes them): a model takes 8 bytes of memory per
entity.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lapse.apps._shared.job import AppError
from lapse.apps._shared.names import Name, Names, numbers_of
from lapse.apps._shared.saved import check_folder, map_array, map_names, read_about
from lapse.apps._shared.top import Answers, Best, blocks
from lapse.apps.kge.model_io import ABOUT, INVERSE

#: Questions that are answered in one pass over the entities, and triples that are scored at once.
QUESTIONS_AT_ONCE, TRIPLES_AT_ONCE = 64, 1024
NAMES = ("complex", "distmult", "rescal", "transe")

Left = Sequence[np.typing.ArrayLike] | None


class Files(NamedTuple):
    """The arrays of a model, mapped."""

    entities: np.ndarray
    relations: np.ndarray
    inverse: np.ndarray | None


class Model:
    """A trained model; made by `load`.

    Attributes
    ----------
    name
        ``complex``, ``distmult``, ``rescal`` or ``transe``; `lapse.apps.kge.models` has their formulas.
    entities, relations
        The names: sequences of str with ``index(name)``.
    entity_vectors
        float32, shape (entities, dim); mapped.
    """

    def __init__(self, name: str, norm: int, files: Files, entities: Names, relations: Names) -> None:
        self.name, self.norm = name, norm
        self.entities, self.relations = entities, relations
        self.entity_vectors = files.entities
        self._relation_vectors, self._inverse = files.relations, files.inverse

    @classmethod
    def load(cls, path: str | os.PathLike) -> Model:
        """Open the folder that a training wrote.

        Raises
        ------
        AppError
            When it is no model, or its files do not fit together, with the file.
        """
        folder = Path(path)
        check_folder(folder, "kge", ABOUT)
        kinds: dict[str, type | tuple[type, ...]] = {"name": str, "dim": int, "norm": int, "reciprocal": bool}
        about = read_about(folder / ABOUT, {**kinds, "num_entities": int, "num_relations": int})
        name, dim, num_relations = about["name"], about["dim"], about["num_relations"]
        if name not in NAMES:
            raise AppError(f"{folder / ABOUT}: the model is {name!r}, but must be one of {', '.join(NAMES)}")
        shape = (num_relations, dim, dim) if name == "rescal" else (num_relations, dim)
        files = Files(
            map_array(folder / "entities.npy", (about["num_entities"], dim)),
            map_array(folder / "relations.npy", shape),
            map_array(folder / f"{INVERSE}.npy", shape) if about["reciprocal"] else None,
        )
        entities = map_names(folder / "entities.tsv", len(files.entities), "entity", before=b"\t")
        return cls(
            name, about["norm"], files, entities, map_names(folder / "relations.tsv", num_relations, "relation", b"\t")
        )

    def objects(
        self, subjects: Sequence[Name], relations: Sequence[Name], k: int = 10, left_out: Left = None
    ) -> list[Answers]:
        """The `k` likeliest objects of each pair of a subject and a relation.

        Parameters
        ----------
        subjects, relations
            Names, or numbers (as in the model's files), of the same length.
        left_out
            For each pair, the numbers of entities that are no answers, such as known ones.

        Raises
        ------
        UnknownNameError
            With names that are alike.
        """
        return self._complete(subjects, relations, k, left_out, asks_subject=False)

    def subjects(
        self, relations: Sequence[Name], objects: Sequence[Name], k: int = 10, left_out: Left = None
    ) -> list[Answers]:
        """The `k` likeliest subjects of each pair of a relation and an object; as `objects`.

        With inverse relations in the model they are used.
        """
        return self._complete(objects, relations, k, left_out, asks_subject=True)

    def scores(self, subjects: Sequence[Name], relations: Sequence[Name], objects: Sequence[Name]) -> np.ndarray:
        """The scores of triples, as objects of their subjects and relations; float32, shape (n,)."""
        s, r, o = (
            numbers_of(self.entities, subjects),
            numbers_of(self.relations, relations),
            numbers_of(self.entities, objects),
        )
        if not len(s) == len(r) == len(o):
            raise ValueError(f"{len(s)} subjects, {len(r)} relations and {len(o)} objects")
        result = np.empty(len(s), np.float32)
        for first in range(0, len(s), TRIPLES_AT_ONCE):
            some = slice(first, first + TRIPLES_AT_ONCE)
            queries = self._queries(s[some], r[some], asks_subject=False)
            answers = np.asarray(self.entity_vectors[o[some]])
            if self.name == "transe":
                result[some] = -np.linalg.norm(queries - answers, self.norm, axis=1)
            else:
                result[some] = np.einsum("ij,ij->i", queries, answers)
        return result

    def _complete(
        self, given: Sequence[Name], relations: Sequence[Name], k: int, left_out: Left, *, asks_subject: bool
    ) -> list[Answers]:
        entities, kinds = numbers_of(self.entities, given), numbers_of(self.relations, relations)
        if len(entities) != len(kinds):
            raise ValueError(f"{len(entities)} entities and {len(kinds)} relations")
        found: list[Answers] = []
        for first in range(0, len(entities), QUESTIONS_AT_ONCE):
            some = slice(first, first + QUESTIONS_AT_ONCE)
            queries = self._queries(entities[some], kinds[some], asks_subject)
            best = Best(len(queries), k, None if left_out is None else left_out[some])
            for row, block in blocks(self.entity_vectors):
                best.add(row, self._scores(queries, block))
            found += best.answers(self.entities)
        return found

    def _scores(self, queries: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Scores of all entities of a block for queries; shape (queries, entities)."""
        if self.name != "transe":
            return queries @ block.T
        scores = np.empty((len(queries), len(block)), np.float32)
        difference = np.empty_like(block)
        for query, out in zip(queries, scores, strict=True):
            np.subtract(block, query, out=difference)
            if self.norm == 1:
                np.abs(difference, out=difference).sum(axis=1, out=out)
            else:
                np.sqrt(np.einsum("ij,ij->i", difference, difference), out=out)
        return np.negative(scores, out=scores)

    def _queries(self, entities: np.ndarray, relations: np.ndarray, asks_subject: bool) -> np.ndarray:
        """What the answering entities are compared with: the other entity, seen through the relation."""
        vectors = np.asarray(self.entity_vectors[entities])
        if asks_subject and self._inverse is not None:
            return self._through(vectors, np.asarray(self._inverse[relations]), 1)
        return self._through(vectors, np.asarray(self._relation_vectors[relations]), -1 if asks_subject else 1)

    def _through(self, e: np.ndarray, r: np.ndarray, sign: int) -> np.ndarray:
        """`sign`: 1 when the object is asked for, -1 when the subject is."""
        if self.name == "distmult":
            return e * r
        if self.name == "transe":
            return e + sign * r
        if self.name == "rescal":
            return np.einsum("ni,nij->nj" if sign == 1 else "nj,nij->ni", e, r)
        half = e.shape[1] // 2
        real, imaginary, r_real, r_imaginary = e[:, :half], e[:, half:], r[:, :half], sign * r[:, half:]
        return np.hstack([real * r_real - imaginary * r_imaginary, real * r_imaginary + imaginary * r_real])
