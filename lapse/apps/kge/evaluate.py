"""How well a model completes triples: the rank of the true entity among all.

For each triple, all entities are scored in place of its object, then in place of its subject. The *raw* rank counts
every entity with a higher score; the *filtered* one excludes those that make a triple known from train, valid or test
(Bordes et al., NIPS 2013). Entities with an equal score count half: that is the expected rank if ties are broken at
random.

Relations are divided into four categories by how many entities their subjects and objects go with, and figures are
given for each (Bordes et al., NIPS 2013).

Every worker ranks a part of the triples. Entities are pulled in blocks, so that no rank needs to hold the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import lapse
import lapse.apps.kge._ranking as _ranking
from lapse.apps.kge.data import Known
from lapse.apps.kge.models import Model

#: Triples that are ranked in one pass over the entities, and entities that are scored at once.
QUERY_ROWS, ENTITY_ROWS = 4096, 2048
HITS = (1, 3, 10)
#: The number of sums that ranks are reduced to, which can be added over workers.
SUMS = 3 + len(HITS)
#: Categories of relations, by how many subjects an object has and how many objects a subject; "n" is above MANY.
CATEGORIES = ("1-1", "1-n", "n-1", "n-n")
MANY = 1.5
#: What is asked for, in the order of `rank`.
SIDES = ("object", "subject")
#: Of sums: over all triples in four ways, then by category and side.
ROWS = 4 + len(CATEGORIES) * len(SIDES)
_COLUMNS = {_ranking.SUBJECT: 0, _ranking.OBJECT: 2}


@dataclass(frozen=True)
class Quality:
    """Figures over both sides of all triples; None if there are no triples."""

    mrr: float | None
    mean_rank: float | None
    hits1: float | None
    hits3: float | None
    hits10: float | None

    @classmethod
    def of(cls, sums: np.ndarray) -> Quality:
        """From what `sum_up` returns, added over workers."""
        count = sums[0]
        return cls(*(sums[1:] / count).tolist()) if count else cls(*[None] * (SUMS - 1))

    def named(self, suffix: str = "") -> dict[str, float | None]:
        """The figures, by name."""
        return {name + suffix: value for name, value in vars(self).items()}

    def __str__(self) -> str:
        if self.mrr is None:
            return "none (no triples)"
        return (
            f"MRR {self.mrr:.4f}, mean rank {self.mean_rank:.0f}, Hits@1 {self.hits1:.4f}, "
            f"@3 {self.hits3:.4f}, @10 {self.hits10:.4f}"
        )


def sum_up(ranks: np.ndarray) -> np.ndarray:
    """The count, the sums of 1 / rank and of ranks, and the numbers of hits; shape (SUMS,)."""
    hits = [(ranks <= k).sum() for k in HITS]
    return np.array([len(ranks), (1 / ranks).sum(), ranks.sum(), *hits], dtype=np.float64)


@dataclass(frozen=True)
class Evaluation:
    """The figures of triples.

    Attributes
    ----------
    filtered, raw
        Over both sides.
    optimistic, pessimistic
        As `filtered`, if entities with an equal score do not count, and if all of them count.
    categories
        Filtered, by category of the relation and the side that is asked for.
    """

    filtered: Quality
    raw: Quality
    optimistic: Quality
    pessimistic: Quality
    categories: dict[str, dict[str, Quality]]

    @classmethod
    def of(cls, sums: np.ndarray) -> Evaluation:
        """From sums of shape (ROWS, SUMS), added over workers."""
        filtered, raw, optimistic, pessimistic = map(Quality.of, sums[:4])
        by_category = sums[4:].reshape(len(CATEGORIES), len(SIDES), SUMS)
        categories = {
            name: {side: Quality.of(each) for side, each in zip(SIDES, some, strict=True)}
            for name, some in zip(CATEGORIES, by_category, strict=True)
            if some[0, 0]
        }
        return cls(filtered, raw, optimistic, pessimistic, categories)

    def named(self) -> dict:
        """The figures, by name."""
        return {
            **self.filtered.named(),
            **self.raw.named("_raw"),
            "mrr_optimistic": self.optimistic.mrr,
            "mrr_pessimistic": self.pessimistic.mrr,
            "categories": {
                name: {side: quality.named() for side, quality in sides.items()}
                for name, sides in self.categories.items()
            },
        }


def categories_of(train: np.ndarray, num_relations: int) -> np.ndarray:
    """The category of each relation, as an index of `CATEGORIES`.

    A side is "n" if a pair of the relation and an entity on the other side has more than 1.5 different entities there
    on average, in the training triples.
    """
    distinct = np.unique(train, axis=0)
    triples = np.bincount(distinct[:, 1], minlength=num_relations)
    means = []
    for given in (2, 0):  # subjects of an object, objects of a subject
        pairs = np.unique(distinct[:, [1, given]], axis=0)
        means.append(triples / np.maximum(np.bincount(pairs[:, 0], minlength=num_relations), 1))
    subjects, objects = (mean > MANY for mean in means)
    return 2 * subjects + objects


def evaluate(kv: lapse.Worker, model: Model, known: Known, triples: np.ndarray, categories: np.ndarray) -> Evaluation:
    """Rank triples, when what was pushed to replicas before has reached all of them. Collective over all workers.

    `categories` is what `categories_of` returns. The result is the same on all workers.
    """
    kv.wait_replica_sync()
    kv.barrier()
    sums = np.zeros((ROWS, SUMS))
    mine = triples[kv.id :: kv.num_workers]
    for first in range(0, len(mine), QUERY_ROWS):
        part = mine[first : first + QUERY_ROWS]
        ranks = rank(kv, model, known, part)
        whole = (ranks.filtered, ranks.raw, ranks.optimistic, ranks.pessimistic)
        sums[:4] += [sum_up(each) for each in whole]
        places = len(SIDES) * categories[part[:, 1]]
        places = np.concatenate([places + side for side in range(len(SIDES))])
        for place in np.unique(places):
            sums[4 + place] += sum_up(ranks.filtered[places == place])
    return Evaluation.of(kv.allreduce(sums))


def rank(kv: lapse.Worker, model: Model, known: Known, triples: np.ndarray) -> _ranking.Ranks:
    """The ranks of the objects of n triples, and then of their subjects."""
    sides = [ask(kv, model, triples, asked) for asked in (_ranking.OBJECT, _ranking.SUBJECT)]
    queries, targets, target_scores = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    answers = [known.answers(triples, _COLUMNS[asked]) for asked in (_ranking.OBJECT, _ranking.SUBJECT)]
    rows = np.concatenate([answers[0][0], answers[1][0] + len(triples)])
    entities = np.concatenate([answers[0][1], answers[1][1]])
    ranks = _ranking.Ranks(targets, target_scores, rows, entities)
    for first, count, block in entity_blocks(kv, model):
        ranks.score(model.name, model.norm, queries, first, count, block)
    return ranks


def ask(kv: lapse.Worker, model: Model, triples: np.ndarray, asked: int) -> tuple[np.ndarray, ...]:
    """Queries for one side of triples, the entities that answer them, and the scores of these entities."""
    column = _COLUMNS[asked]
    given, targets = triples[:, 2 - column], triples[:, column]
    relations = model.num_entities + triples[:, 1]
    formula = asked
    if model.reciprocal and asked == _ranking.SUBJECT:  # the inverse relation's object
        relations, formula = relations + model.num_relations, _ranking.OBJECT
    unique, rows = np.unique(relations, return_inverse=True)
    queries = _ranking.queries(
        model.name,
        formula,
        pull_entities(kv, model, given),
        np.ascontiguousarray(pull_vectors(kv, model, unique)),
        rows,
        model.dim,
    )
    scores = _ranking.pair_scores(model.name, model.norm, queries, pull_entities(kv, model, targets))
    return queries, targets, scores


def pull_entities(kv: lapse.Worker, model: Model, entities: np.ndarray) -> np.ndarray:
    """Vectors of entities, each pulled once; shape (n, padded)."""
    unique, where = np.unique(entities, return_inverse=True)
    result = np.zeros((len(unique), _ranking.padded(model.dim)), dtype=np.float32)
    if len(unique):
        result[:, : model.dim] = pull_vectors(kv, model, unique)
    return result[where]


def pull_vectors(kv: lapse.Worker, model: Model, keys: np.ndarray) -> np.ndarray:
    """The vectors of keys of one length, without what is behind them."""
    values = kv.pull(keys).wait().reshape(len(keys), -1)
    return values[:, : model.vector_length(keys[0])]


def entity_blocks(kv: lapse.Worker, model: Model) -> Iterator[tuple[int, int, np.ndarray]]:
    """All entities' vectors, a block at a time: first entity, how many, and their vectors, padded.

    The next block is being pulled when one is returned; it overwrites that one.
    """
    length = kv.pull(0).wait().size  # including the sums of squares, if they are behind the vectors
    block = np.zeros((ENTITY_ROWS, _ranking.padded(model.dim)), dtype=np.float32)
    rooms = np.empty((2, ENTITY_ROWS * length), dtype=np.float32)
    firsts = range(0, model.num_entities, ENTITY_ROWS)

    def start(number: int) -> lapse.Operation:
        keys = np.arange(firsts[number], min(firsts[number] + ENTITY_ROWS, model.num_entities))
        return kv.pull(keys, rooms[number % 2, : len(keys) * length])

    coming = start(0)
    for number, first in enumerate(firsts):
        values = coming.wait().reshape(-1, length)
        if number + 1 < len(firsts):
            coming = start(number + 1)
        block[: len(values), : model.dim] = values[:, : model.dim]
        yield first, len(values), block


# --- a rule to compare with --------------------------------------------------------------------------------------


def frequency_rule(train: np.ndarray, triples: np.ndarray, known: Known, num_entities: int) -> dict[str, Quality]:
    """The rule "most frequent object of this relation" (or subject): its filtered quality.

    Returns
    -------
    dict
        By ``"object"``, the question (s, r, ?), and ``"both"``, that and (?, r, o), as models are measured.
    """
    sums = {column: _rule_sums(train, triples, known, num_entities, column) for column in (0, 2)}
    return {"object": Quality.of(sums[2]), "both": Quality.of(sums[0] + sums[2])}


def _rule_sums(train, triples, known: Known, num_entities: int, column: int) -> np.ndarray:
    total = np.zeros(SUMS)
    for relation in np.unique(triples[:, 1]):
        counts = np.bincount(train[train[:, 1] == relation, column], minlength=num_entities).astype(np.float32)
        asked = triples[triples[:, 1] == relation]
        for first in range(0, len(asked), QUERY_ROWS):
            part = asked[first : first + QUERY_ROWS]
            targets = part[:, column]
            ranks = _ranking.Ranks(targets, counts[targets], *known.answers(part, column))
            ranks.count(0, np.broadcast_to(counts, (len(part), num_entities)))
            total += sum_up(ranks.filtered)
    return total


# --- answers -----------------------------------------------------------------------------------------------------


def complete(
    kv: lapse.Worker,
    model: Model,
    known: Known,
    subject: int,
    relation: int,
    most: int = 5,
    accept: Callable[[int], bool] = lambda entity: True,
) -> list[int]:
    """The entities with the highest scores as objects of a subject and a relation, without known ones."""
    triple = np.array([[subject, relation, subject]])
    queries = ask(kv, model, triple, _ranking.OBJECT)[0]
    scores = np.concatenate(
        [
            _ranking.scores(model.name, model.norm, queries, block)[0, :count]
            for _, count, block in entity_blocks(kv, model)
        ]
    )
    scores[known.answers(triple, 2)[1]] = -np.inf
    best = (int(entity) for entity in np.argsort(-scores, kind="stable") if accept(int(entity)))
    return [entity for entity, _ in zip(best, range(most), strict=False)]
