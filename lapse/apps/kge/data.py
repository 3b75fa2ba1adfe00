"""Triples in files.

A data set is a folder with ``train``, ``valid`` and ``test``, each ending in

* ``.txt``, ``.tsv`` or ``.csv``: one triple per line, three names separated by tabs (or by spaces if there is no tab;
  in ``.csv`` by commas), or
* ``.del``: three ids from 0 on, as in LibKGE; their names may be in ``entity_ids.del`` and ``relation_ids.del``
  (id, tab, name),

or with ``train2id.txt``, ``valid2id.txt`` and ``test2id.txt`` of OpenKE: a line with the number of triples, then three
ids, subject, object and relation; names in ``entity2id.txt`` and ``relation2id.txt`` (a number, then name, tab, id).

Each may be compressed (`inputs`). Spaces belong to the names that tabs separate.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from lapse.apps._shared import columns, inputs
from lapse.apps._shared.job import AppError

SPLITS = ("train", "valid", "test")
PACKED = ("", ".gz", ".bz2", ".xz", ".lzma", ".zip")
SUFFIXES = tuple(suffix + packed for suffix in (".txt", ".tsv", ".csv", ".del") for packed in PACKED)
OPENKE = "2id.txt"
#: Ids are below this number: the sampling of negatives numbers keys by 32 bits.
MAX_IDS = 2**31
#: A data set looks wrong if it has so many ids, and uses fewer of them than this share.
MANY_IDS, FEW_USED = 100_000, 0.1
#: With fewer triples, names that occur once mean nothing.
MANY_LINES = 100

ROLES = ("subject", "relation", "object")
#: What headers call the columns, by `columns.match`.
NAMES: dict[str, frozenset[str]] = {
    "subject": columns.names("subject head source subj from lhs entity1 headentity subjectid headid"),
    "relation": columns.names("relation predicate rel relationship edge pred relationid property label"),
    "object": columns.names("object tail target obj to rhs entity2 tailentity objectid tailid"),
}
STRAIGHT, OF_OPENKE = (0, 1, 2), (0, 2, 1)

Row = list[str]
Allow = Callable[[int, int], None]


@dataclass(frozen=True)
class Dataset:
    """A knowledge graph, split.

    Attributes
    ----------
    entities, relations
        Names, by id.
    train, valid, test
        Triples of ids (subject, relation, object): arrays of int64, shape (n, 3).
    notes
        How the files were understood, if it is not obvious.
    """

    entities: list[str]
    relations: list[str]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    notes: list[str] = field(default_factory=list)

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


def _allow_any(entities: int, relations: int) -> None:
    """For `read`: any number of them."""


def read(folder: Path, chosen: str | None = None, allow: Allow = _allow_any) -> Dataset:
    """Read a data set.

    Parameters
    ----------
    chosen
        The value of ``--columns``, if it is given.
    allow
        Called with the numbers of entities and relations before anything of their size is allocated; raises if they are
        too many.

    Raises
    ------
    AppError
        For a missing file, or for a line that is not a triple, with file and line.
    """
    if not folder.is_dir():
        raise AppError(f"{folder} is not a folder; --dataset must be a folder with train, valid and test")
    is_openke = not any(_found(folder, "train", SUFFIXES)) and bool(_found(folder, "train", _openke_suffixes()))
    paths = [find(folder, split, _openke_suffixes() if is_openke else SUFFIXES) for split in SPLITS]
    kinds = {".del" in path.suffixes for path in paths}
    if len(kinds) > 1:
        raise AppError(
            f"{folder}: some of {', '.join(path.name for path in paths)} contain names (.txt) and some "
            "ids (.del), but all must be of one kind"
        )
    tables = [_Table(path, chosen, is_openke) for path in paths]
    dataset = _read_ids(folder, tables, is_openke, allow) if is_openke or kinds.pop() else _read_names(tables, allow)
    if len(dataset.train) == 0:
        raise AppError(f"{paths[0]}: no triples")
    notes = [f"{table.path}: {table.note}" for table in tables if table.note]
    return replace(dataset, notes=list(dict.fromkeys(notes)))


def visit(path: Path, take: Callable[[str, str, str], object]) -> None:
    """Call `take` with the names of each triple of a data set (a folder), or of a file; these are not collected.

    Raises
    ------
    AppError
        As `read`.
    """

    def pass_on(s: str, r: str, o: str) -> tuple[int, int, int]:
        take(s, r, o)
        return 0, 0, 0

    if not path.is_dir():
        _Table(path, None, False).triples(pass_on)
        return
    graph = read(path)
    for s, r, o in graph.everything().tolist():
        take(graph.entities[s], graph.relations[r], graph.entities[o])


def doubts(dataset: Dataset) -> list[str]:
    """What looks wrong in a data set that can be read, a line each."""
    found = _doubt_repetitions(dataset)
    if unseen := dataset.unseen():
        found.append(f"{unseen} triples of valid and test have an entity or relation that does not occur in train")
    if not len(dataset.test):
        found.append("there are no test triples: nothing will be evaluated")
    if _first_line_is_alone(dataset):
        s, r, o = dataset.train[0].tolist()
        shown = repr(" ".join((dataset.entities[s], dataset.relations[r], dataset.entities[o])))
        found.append(f"the first line of train, {shown}, has names that occur nowhere else: is it a header?")
    relations, objects = (_count_used(dataset.train[:, column]) for column in (1, 2))
    if relations > 2 * objects and len(dataset.train) >= MANY_LINES:
        found.append(
            f"train has {relations:,} different relations, but {objects:,} objects: if the order is subject, object, "
            "relation, say so by --columns 1,3,2"
        )
    if (total := len(dataset.entities)) > MANY_IDS:
        used = _count_used(dataset.train[:, [0, 2]].reshape(-1))
        if used < FEW_USED * total:
            found.append(f"{used:,} of {total:,} entities are in train: ids without gaps take less memory")
    if spaced := _differ_by_spaces(dataset.entities) or _differ_by_spaces(dataset.relations):
        found.append(f"names that differ by spaces around them only are different, such as {spaced!r}")
    return found


def _doubt_repetitions(dataset: Dataset) -> list[str]:
    numbers = _numbers(dataset.everything())
    train, valid, test = np.split(numbers, np.cumsum([len(dataset.train), len(dataset.valid)]))
    train = np.sort(train)
    found = []
    if again := int((train[1:] == train[:-1]).sum()):
        found.append(f"{again:,} triples occur more than once in train")
    for name, held_out in (("valid", valid), ("test", test)):
        at = np.minimum(np.searchsorted(train, held_out), len(train) - 1)
        if repeated := int((train[at] == held_out).sum()):
            found.append(f"{repeated:,} of {len(held_out):,} triples of {name} are in train, too")
    return found


def _numbers(triples: np.ndarray) -> np.ndarray:
    """A number per triple, the same for equal ones."""
    width = triples.max(axis=0) + 1
    if float(width[0]) * float(width[1]) * float(width[2]) < 2**62:
        return (triples[:, 0] * width[1] + triples[:, 1]) * width[2] + triples[:, 2]
    return np.unique(triples, axis=0, return_inverse=True)[1].reshape(-1)


def _count_used(ids: np.ndarray) -> int:
    used = np.zeros(int(ids.max(initial=-1)) + 1, bool)
    used[ids] = True
    return int(used.sum())


def _first_line_is_alone(dataset: Dataset) -> bool:
    """Whether the names of the first triple occur nowhere else, but for the first lines of the other files."""
    s, r, o = dataset.train[0].tolist()
    if len(dataset.train) < MANY_LINES or int((dataset.train[:, 1] == r).sum()) > 1:
        return False
    everything = dataset.everything()
    same = (everything == dataset.train[0]).all(axis=1)
    subjects, objects = everything[:, 0], everything[:, 2]
    uses = (everything[:, 1] == r) | (subjects == s) | (subjects == o) | (objects == s) | (objects == o)
    return int(same.sum()) <= len(SPLITS) and bool((uses == same).all())


def _differ_by_spaces(names: list[str]) -> str | None:
    spaced = [name for name in names if name != name.strip()]
    if not spaced:
        return None
    everything = set(names)
    return next((name for name in spaced if name.strip() in everything), None)


# --- files -------------------------------------------------------------------------------------------------------


def _openke_suffixes() -> tuple[str, ...]:
    return tuple(OPENKE + packed for packed in PACKED)


def _found(folder: Path, stem: str, suffixes: Sequence[str]) -> list[Path]:
    paths = [folder / (stem + suffix) for suffix in suffixes]
    return [path for path in paths if path.exists() and not path.is_dir()]


def find(folder: Path, stem: str, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """The one file of `folder` with this stem and one of `suffixes`."""
    found = _found(folder, stem, suffixes)
    if len(found) != 1:
        what = f"several of {', '.join(path.name for path in found)}" if found else "none"
        plain = [suffix for suffix in suffixes if not suffix.endswith(PACKED[1:])]
        raise AppError(
            f"{folder}: {what} found, but there must be one of {', '.join(stem + suffix for suffix in plain)}, or "
            f"one of these with {', '.join(PACKED[1:])}"
        )
    return found[0]


class _Table:
    """A file of triples: which of its columns are taken, and its lines.

    Attributes
    ----------
    note
        What was understood, if it is not obvious; known after reading.
    """

    def __init__(self, path: Path, chosen: str | None, is_openke: bool) -> None:
        self.path = path
        self.note = ""
        self._chosen, self._is_openke = chosen, is_openke
        self._is_csv = ".csv" in path.suffixes
        self._taken: tuple[int, ...] = OF_OPENKE if is_openke else STRAIGHT
        self._declared: int | None = None

    def triples(self, parse: Callable[[str, str, str], tuple[int, int, int]]) -> np.ndarray:
        """All triples, shape (n, 3), as `parse` numbers subject, relation and object (or raises `ValueError`)."""
        lines = _lines(self.path)
        first = list(islice(lines, 2))
        self._begin([(number, line, self._split(number, line)) for number, line in first])
        lines = chain(first[self._skipped :], lines)
        triples = []
        s, r, o = self._taken
        is_plain = not self._chosen
        for number, line in lines:
            row = self._split(number, line)
            if is_plain and len(row) != columns.TAKEN:
                raise self._no_triple(number, line, row)
            try:
                names = row[s], row[r], row[o]
            except IndexError:
                raise self._no_triple(number, line, row) from None
            try:
                triples.append(parse(*names))
            except ValueError as error:
                raise AppError(f"{self.path}:{number}: {error}") from None
        self._check_count(len(triples))
        return np.array(triples, dtype=np.int64).reshape(-1, 3)

    def _split(self, number: int, line: str) -> Row:
        if not self._is_csv:
            return line.split("\t") if "\t" in line else line.split()
        try:
            return next(csv.reader([line]), [])
        except csv.Error as error:
            raise AppError(f"{self.path}:{number}: {line[:80]!r} is not a line of CSV: {error}") from None

    def _no_triple(self, number: int, line: str, row: Row) -> AppError:
        found = len([name for name in row if name.strip()])
        return AppError(
            f"{self.path}:{number}: {line[:80]!r} is not a triple: expected three columns, subject, relation and "
            f"object, and found {found}; of more columns, --columns chooses"
        )

    def _begin(self, first: list[tuple[int, str, Row]]) -> None:
        """Find a header or a count in the first line, and decide which columns are taken."""
        self._skipped = 0
        if not first:
            return
        number, line, row = first[0]
        if len(row) == 1 and _is_digits(row[0]) and (len(first) == 1 or len(first[1][2]) > 1):
            self._declared, self._skipped = int(row[0][:20]), 1
            if not (self._is_openke or self._chosen):
                raise AppError(
                    f"{self.path}:{number}: the number {line[:20]} alone, as OpenKE begins its files, whose columns "
                    f"are subject, object and relation: rename it to {self.path.name.partition('.')[0]}{OPENKE}, or "
                    "say so by --columns 1,3,2"
                )
        if self._is_openke:
            self.note = "OpenKE's format, columns are subject, object and relation"
        found = columns.match(row, NAMES)
        is_header = self._skipped == 0 and len(row) >= columns.TAKEN and all(len(at) == 1 for at in found.values())
        if self._chosen:
            self._choose(self._chosen, row if self._skipped == 0 else None, is_header, first)
        elif is_header:
            self._skipped = 1
            self._taken = tuple(found[role][0] for role in ROLES)
            if len(row) > columns.TAKEN:
                self._chosen = ",".join(str(at + 1) for at in self._taken)
            self.note = f"the first line is a header: {columns.describe(self._taken, ROLES, row)}"

    def _choose(self, chosen: str, row: Row | None, is_header: bool, first: list[tuple[int, str, Row]]) -> None:
        named = not columns.are_numbers(chosen)
        width = len(row if row is not None else first[-1][2])
        try:
            self._taken = columns.choose(chosen, row if named else None, width)
        except ValueError as error:
            raise AppError(f"{self.path}:{first[0][0]}: {error}") from None
        if named or is_header:
            self._skipped = 1
        self.note = columns.describe(self._taken, ROLES, row if self._skipped and row is not None else None)

    def _check_count(self, found: int) -> None:
        if self._declared is not None and self._declared != found:
            raise AppError(
                f"{self.path}: {found:,} triples, but its first line declares {self._declared:,}: is the file complete?"
            )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, without their ends, numbered from 1."""
    number = 0
    try:
        with inputs.recognize(path).open() as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise AppError(
            f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start}): convert it first "
            "(iconv -f LATIN1 -t UTF-8)"
        ) from None
    except inputs.DamagedError as error:
        raise AppError(f"{error} (after line {number:,})") from None


# --- names and ids -----------------------------------------------------------------------------------------------


def _read_names(tables: list[_Table], allow: Allow) -> Dataset:
    entities: dict[str, int] = {}
    relations: dict[str, int] = {}

    def parse(s: str, r: str, o: str) -> tuple[int, int, int]:
        return (
            entities.setdefault(s, len(entities)),
            relations.setdefault(r, len(relations)),
            entities.setdefault(o, len(entities)),
        )

    splits = [table.triples(parse) for table in tables]
    if empty := [name for name in chain(entities, relations) if not name.strip()]:
        raise _empty_name(tables, empty[0])
    allow(len(entities), len(relations))
    train, valid, test = splits
    return Dataset(list(entities), list(relations), train, valid, test)


def _empty_name(tables: list[_Table], name: str) -> AppError:
    """Where a name is empty: looked for only when there is one."""

    def refuse(*names: str) -> tuple[int, int, int]:
        if name in names:
            raise ValueError(f"{chr(9).join(names)[:80]!r} is not a triple: a name is empty")
        return 0, 0, 0

    try:
        for table in tables:
            table.triples(refuse)
    except AppError as error:
        return error
    return AppError(f"{tables[0].path.parent}: a name is empty")


def _read_ids(folder: Path, tables: list[_Table], is_openke: bool, allow: Allow) -> Dataset:
    splits = [table.triples(_to_ids) for table in tables]
    together = np.concatenate(splits)
    counts = (int(together[:, [0, 2]].max(initial=-1)) + 1, int(together[:, 1].max(initial=-1)) + 1)
    allow(*counts)
    stems = ("entity", "relation")
    suffixes = _openke_suffixes() if is_openke else tuple("_ids.del" + packed for packed in PACKED)
    read = _read_openke_names if is_openke else _read_id_names
    found = [_found(folder, stem, suffixes) for stem in stems]
    names = [read(paths[0]) if paths else {} for paths in found]
    totals = [max(count, *(n + 1 for n in each), 0) for count, each in zip(counts, names)]
    allow(*totals)
    entities, relations = ([each.get(i, str(i)) for i in range(n)] for n, each in zip(totals, names))
    train, valid, test = splits
    return Dataset(entities, relations, train, valid, test)


def _read_id_names(path: Path) -> dict[int, str]:
    """The names of ids; an id without one is its own name."""
    names: dict[int, str] = {}
    for number, line in _lines(path):
        number_text, _, name = line.partition("\t")
        _add_name(names, path, number, number_text, name)
    return names


def _read_openke_names(path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for number, line in _lines(path):
        if number == 1 and _is_digits(line.strip()):
            continue
        name, _, number_text = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
        _add_name(names, path, number, number_text.strip(), name)
    return names


def _add_name(names: dict[int, str], path: Path, number: int, text: str, name: str) -> None:
    try:
        identity = _to_id(text)
        if names.setdefault(identity, name) != name:
            raise ValueError(f"id {identity} has the names {names[identity][:40]!r} and {name[:40]!r}")
    except ValueError as error:
        raise AppError(f"{path}:{number}: {error}") from None


def _to_ids(s: str, r: str, o: str) -> tuple[int, int, int]:
    return _to_id(s), _to_id(r), _to_id(o)


def _to_id(text: str) -> int:
    text = text.strip()
    if not _is_digits(text):
        raise ValueError(f"{text[:40]!r} is not an id; ids must be integers from 0 on")
    if len(text.lstrip("0")) > 10 or int(text) >= MAX_IDS:
        raise ValueError(f"id {text[:40]} is too large; ids must be below {MAX_IDS}")
    return int(text)


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


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
