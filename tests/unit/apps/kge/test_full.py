"""The softmax over all entities, against plain NumPy and finite differences."""

import numpy as np
import pytest

from lapse.apps.kge import _full

ENTITIES, RELATIONS, TRIPLES, DIM = 37, 3, 9, 6


def make(model="complex", own=None, workers=1, reciprocal=True, dim=DIM, **more):
    keys = ENTITIES + (2 if reciprocal else 1) * RELATIONS
    return _full.FullGradients(
        np.arange(keys) if own is None else own,
        workers,
        model=model,
        loss="softmax",
        dim=dim,
        relation_length=dim * dim if model == "rescal" else dim,
        num_entities=ENTITIES,
        num_relations=RELATIONS,
        reciprocal=reciprocal,
        block=TRIPLES,
        **more,
    )


def world(model, reciprocal=True, dim=DIM, seed=0):
    rng = np.random.default_rng(seed)
    shape = ((2 if reciprocal else 1) * RELATIONS, dim * dim if model == "rescal" else dim)
    entities = rng.normal(0, 0.5, size=(ENTITIES, dim)).astype(np.float32)
    relations = rng.normal(0, 0.5, size=shape).astype(np.float32)
    triples = np.stack([rng.integers(n, size=TRIPLES) for n in (ENTITIES, RELATIONS, ENTITIES)], axis=1)
    triples[0] = triples[1]  # the same query twice
    triples[2, 2] = triples[2, 0]  # an entity with itself
    return entities, relations, triples


def scores_of(model, entity, relation, others):
    dim = len(entity)
    if model == "complex":
        entity, relation, others = (x[..., : dim // 2] + 1j * x[..., dim // 2 :] for x in (entity, relation, others))
        return (entity * relation * others.conj()).sum(-1).real
    if model == "distmult":
        return others @ (entity * relation)
    return others @ (entity @ relation.reshape(dim, dim))


def cross_entropy(scores, target):
    most = scores.max()
    return most + np.log(np.exp(scores - most).sum()) - scores[target]


def questions(s, r, o, reciprocal):
    """Given entity, relation and target, and whether the target is a subject."""
    return [(s, r, o, False), (o, RELATIONS + r, s, False) if reciprocal else (o, r, s, True)]


def norms(model, entities, relations, given, relation, target, asks_subject):
    """The squared norms of a question, of the one back, and of both entities."""
    everything = np.eye(entities.shape[1])  # scores for unit vectors are the elements of a query
    e, r, t = entities[given], relations[relation], entities[target]
    forth, back = (scores_of(model, e, r, everything), np.array([scores_of(model, x, r, t) for x in everything]))
    if asks_subject:
        forth, back = np.array([scores_of(model, x, r, e) for x in everything]), scores_of(model, t, r, everything)
    return sum((x**2).sum() for x in (forth, back, e, t))


def direct_loss(model, entities, relations, triples, reciprocal, relation_weight, n3, dura):
    """What the kernel computes, in float64."""
    entities, relations = entities.astype(float), relations.astype(float)
    total = 0.0
    for s, r, o in triples:
        total += cross_entropy(scores_of(model, entities[s], relations[r], entities), o)
        if reciprocal:
            total += cross_entropy(scores_of(model, entities[o], relations[RELATIONS + r], entities), s)
        else:
            total += cross_entropy(np.array([scores_of(model, e, relations[r], entities[o]) for e in entities]), s)
        pairs = [(s, r, o), (o, RELATIONS + r, s)] if reciprocal else [(s, r, o)]
        for first, relation, second in pairs if relation_weight else ():
            scores = np.array([scores_of(model, entities[first], each, entities[second]) for each in relations])
            total += relation_weight * cross_entropy(scores, relation)
        if dura:
            total += dura * sum(
                norms(model, entities, relations, *question) for question in questions(s, r, o, reciprocal)
            )
        for x in (entities[s], entities[o], *(relations[each] for _, each, _ in pairs)):
            parts = x if model != "complex" else np.hypot(*x.reshape(2, -1))
            total += n3 * (np.abs(parts) ** 3).sum()
    return total


@pytest.mark.parametrize("width", [16, 8, 4])
@pytest.mark.parametrize(
    "model, reciprocal, relation_weight, dura",
    [
        ("complex", True, 0.0, 0.0),
        ("complex", True, 0.7, 0.05),
        ("complex", False, 0.7, 0.0),
        ("distmult", True, 0.7, 0.0),
        ("distmult", False, 0.0, 0.05),
        ("rescal", True, 0.0, 0.05),
        ("rescal", False, 0.0, 0.05),
    ],
)
def test_the_loss_and_its_gradients(model, reciprocal, relation_weight, dura, width):
    entities, relations, triples = world(model, reciprocal)
    n3 = 0.1
    weights = 4 * ENTITIES if width == 8 else 1 << 24  # examples a few at a time, or all together
    gradients = make(
        model,
        reciprocal=reciprocal,
        relation_weight=relation_weight,
        dura=dura,
        most_weights=weights,
        entity_n3=n3,
        relation_n3=n3,
    )
    _full.use_width(width)
    try:
        loss, *found = gradients.of(entities, relations, triples)
        again = gradients.of(entities, relations, triples)
    finally:
        _full.use_width(16)
    assert loss == again[0] and all(np.array_equal(a, b) for a, b in zip(found, again[1:]))

    def direct():
        return direct_loss(model, entities, relations, triples, reciprocal, relation_weight, n3, dura)

    assert loss == pytest.approx(direct(), rel=1e-5)
    rng = np.random.default_rng(1)
    for vectors, gradient in zip((entities, relations), found):
        for _ in range(12):
            place = tuple(rng.integers(n) for n in vectors.shape)
            old, around = vectors[place], []
            for change in (1e-2, -1e-2):
                vectors[place] = old + np.float32(change)
                around.append((direct(), float(vectors[place])))
            vectors[place] = old
            (high, above), (low, below) = around
            assert gradient[place] == pytest.approx((high - low) / (above - below), rel=2e-3, abs=2e-3)
