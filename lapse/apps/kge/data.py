"""Triples in files.

A data set is a folder with ``train``, ``valid`` and ``test``, each ending in

* ``.txt``: one triple per line, three names separated by tabs (or by spaces if there is no tab), or
* ``.del``: three ids from 0 on, as in LibKGE; their names may be in ``entity_ids.del`` and ``relation_ids.del``
  (id, tab, name),

plain or compressed by gzip (``.gz``).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapse.apps._shared.job import AppError

SPLITS = ("train", "valid", "test")
SUFFIXES = (".txt", ".del", ".txt.gz", ".del.gz")
#: Ids are below this number: the sampling of negatives numbers keys by 32 bits.
MAX_IDS = 2**31


@dataclass(frozen=True)
class Dataset:
    """A knowledge graph, split.

    Attributes
    ----------
    entities, relations
        Names, by id.
    train, valid, test
        Triples of ids (subject, relation, object): arrays of int64, shape (n, 3).
    """

    entities: list[str]
    relations: list[str]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    def everything(self) -> np.ndarray:
        """All triples."""
        return np.concatenate([self.train, self.valid, self.test])

    def unseen(self) -> int:
        """The number of triples of valid and test with an entity or relation that does not occur in train."""
        entities = np.zeros(len(self.entities), bool)
        relations = np.zeros(len(self.relations), bool)
        entities[self.train[:, [0, 2]]] = True
        relations[self.train[:, 1]] = True
        held_out = np.concatenate([self.valid, self.test])
        return int((~(entities[held_out[:, [0, 2]]].all(axis=1) & relations[held_out[:, 1]])).sum())


def read(folder: Path) -> Dataset:
    """Read a data set.

    Raises
    ------
    AppError
        For a missing file, or for a line that is not a triple, with file and line.
    """
    paths = [find(folder, split) for split in SPLITS]
    kinds = {".del" in path.suffixes for path in paths}
    if len(kinds) > 1:
        raise AppError(
            f"{folder}: some of {', '.join(path.name for path in paths)} contain names (.txt) and some "
            "ids (.del), but all must be of one kind"
        )
    dataset = _read_ids(folder, paths) if kinds.pop() else _read_names(paths)
    if len(dataset.train) == 0:
        raise AppError(f"{paths[0]}: no triples")
    return dataset


def find(folder: Path, stem: str) -> Path:
    """The one file of `folder` with this stem and one of `SUFFIXES`."""
    if not folder.is_dir():
        raise AppError(f"{folder} is not a folder; --dataset must be a folder with train, valid and test")
    found = [folder / (stem + suffix) for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()]
    if len(found) != 1:
        what = f"several of {', '.join(path.name for path in found)}" if found else "none"
        raise AppError(
            f"{folder}: {what} found, but there must be one of " + ", ".join(stem + suffix for suffix in SUFFIXES)
        )
    return found[0]


def _read_names(paths: list[Path]) -> Dataset:
    entities: dict[str, int] = {}
    relations: dict[str, int] = {}

    def parse(columns: list[str]) -> tuple[int, int, int]:
        s, r, o = columns
        return (
            entities.setdefault(s, len(entities)),
            relations.setdefault(r, len(relations)),
            entities.setdefault(o, len(entities)),
        )

    splits = [_read_triples(path, parse) for path in paths]
    return Dataset(list(entities), list(relations), *splits)


def _read_ids(folder: Path, paths: list[Path]) -> Dataset:
    splits = [_read_triples(path, _to_ids) for path in paths]
    together = np.concatenate(splits)
    counts = (int(together[:, [0, 2]].max(initial=-1)) + 1, int(together[:, 1].max(initial=-1)) + 1)
    return Dataset(
        _read_id_names(folder, "entity_ids", counts[0]), _read_id_names(folder, "relation_ids", counts[1]), *splits
    )


def _read_id_names(folder: Path, stem: str, count: int) -> list[str]:
    """The names of ids, if there is a file with them; otherwise an id is its own name."""
    path = next(
        (folder / (stem + suffix) for suffix in (".del", ".del.gz") if (folder / (stem + suffix)).is_file()), None
    )
    names = [str(i) for i in range(count)]
    if path is None:
        return names
    for number, line in _lines(path):
        number_text, _, name = line.partition("\t")
        try:
            names_at = _to_id(number_text)
        except ValueError as error:
            raise AppError(f"{path}:{number}: {error}") from None
        names.extend(str(i) for i in range(len(names), names_at + 1))
        names[names_at] = name
    return names


def _to_ids(columns: list[str]) -> tuple[int, int, int]:
    s, r, o = columns
    return _to_id(s), _to_id(r), _to_id(o)


def _to_id(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not an id; ids must be integers from 0 on")
    if len(text.lstrip("0")) > 10 or int(text) >= MAX_IDS:
        raise ValueError(f"id {text[:40]} is too large; ids must be below {MAX_IDS}")
    return int(text)


def _read_triples(path: Path, parse: Callable[[list[str]], tuple[int, int, int]]) -> np.ndarray:
    triples = []
    for number, line in _lines(path):
        columns = [column.strip() for column in line.split("\t")] if "\t" in line else line.split()
        if len(columns) != 3 or not all(columns):
            raise AppError(
                f"{path}:{number}: {line[:80]!r} is not a triple: expected three columns, subject, "
                f"relation and object, and found {len([c for c in columns if c])}"
            )
        try:
            triples.append(parse(columns))
        except ValueError as error:
            raise AppError(f"{path}:{number}: {error}") from None
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, without their ends, numbered from 1."""
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise AppError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise AppError(f"{path}: damaged gzip file after line {number}: {error}") from None


# --- known triples -----------------------------------------------------------------------------------------------


class Known:
    """The entities that are known to complete a pair, which filtered ranks exclude.

    Parameters
    ----------
    triples
        All of train, valid and test.
    num_relations
        The number of relations.
    """

    def __init__(self, triples: np.ndarray, num_relations: int) -> None:
        self._num_relations = num_relations
        self._pairs, self._entities = {}, {}
        for asked_column, given_column in ((0, 2), (2, 0)):
            pairs = self._number(triples[:, given_column], triples[:, 1])
            order = np.lexsort((triples[:, asked_column], pairs))
            pairs, entities = pairs[order], triples[order, asked_column]
            first = np.ones(len(pairs), bool)  # a triple that occurs twice counts once
            first[1:] = (pairs[1:] != pairs[:-1]) | (entities[1:] != entities[:-1])
            self._pairs[asked_column], self._entities[asked_column] = pairs[first], entities[first]

    def _number(self, entities: np.ndarray, relations: np.ndarray) -> np.ndarray:
        return entities * self._num_relations + relations

    def answers(self, triples: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
        """The entities that complete triples without their subject (`column` 0) or object (2).

        Returns
        -------
        rows, entities
            Entity ``entities[i]`` completes triple ``rows[i]``. The triple's own entity is excluded.
        """
        wanted = self._number(triples[:, 2 - column], triples[:, 1])
        first = np.searchsorted(self._pairs[column], wanted, "left")
        counts = np.searchsorted(self._pairs[column], wanted, "right") - first
        rows = np.repeat(np.arange(len(triples)), counts)
        behind = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        entities = self._entities[column][first[rows] + behind]
        other = entities != triples[rows, column]
        return rows[other], entities[other]
