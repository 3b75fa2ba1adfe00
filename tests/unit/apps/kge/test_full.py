"""The softmax over all entities, against plain NumPy and finite differences."""

import numpy as np
import pytest

from lapse.apps.kge import _full, full

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
        block=2 * TRIPLES,
        **more,
    )


def world(model, reciprocal=True, dim=DIM, seed=0):
    rng = np.random.default_rng(seed)
    shape = ((2 if reciprocal else 1) * RELATIONS, dim * dim if model == "rescal" else dim)
    entities = rng.normal(0, 0.5, size=(ENTITIES, dim)).astype(np.float32)
    relations = rng.normal(0, 0.5, size=shape).astype(np.float32)
    triples = np.stack([rng.integers(n, size=TRIPLES) for n in (ENTITIES, RELATIONS, ENTITIES)], axis=1)
    triples[0] = triples[1]  # the same question twice
    triples[2, 2] = triples[2, 0]  # an entity with itself
    triples[3, :2] = triples[4, :2] = triples[5, :2]  # a query with three targets
    triples[6, 1:] = triples[7, 1:]
    return entities, relations, triples


def both_ways(triples):
    """Each triple as a question for its object, and then as one for its subject."""
    return np.concatenate([triples, triples]), len(triples)


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


@pytest.mark.parametrize("model, reciprocal", [("complex", True), ("rescal", False)])
def test_questions_of_one_query_count_as_if_they_were_asked_apart(model, reciprocal):
    entities, relations, triples = world(model, reciprocal)
    triples[:5, :2] = 1, 2
    apart = triples[[0, 5, 1, 6, 2, 7, 3, 8, 4]]  # no neighbors of the same query
    together = triples[np.lexsort((triples[:, 0], triples[:, 1]))]
    gradients = make(model, reciprocal=reciprocal, entity_n3=0.1, dura=0.05)
    results, counts = [], []
    for order in (apart, together):
        results.append(gradients.of(entities, relations, order, TRIPLES))
        counts.append(gradients.num_queries)
    assert counts[0] == TRIPLES > counts[1]
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_question_for_an_object_and_one_for_a_subject_are_never_one_query():
    """Without inverse relations, the last of one kind and the first of the other may have the same rows."""
    entities, relations, _ = world("rescal", reciprocal=False)
    gradients = make("rescal", reciprocal=False)
    pair = np.array([[1, 2, 3], [4, 2, 1]])
    loss = gradients.of(entities, relations, pair, 1)[0]
    assert gradients.num_queries == 2
    parts = [gradients.of(entities, relations, pair[i : i + 1], 1 - i)[0] for i in (0, 1)]
    assert loss == pytest.approx(sum(parts), rel=1e-5) and parts[0] != pytest.approx(parts[1], rel=1e-3)


def test_questions_are_numbered_by_query():
    triples = np.array([[0, 0, 1], [0, 0, 2], [3, 1, 1], [3, 0, 1]])
    queries = full.number_queries(triples)
    objects, subjects = queries[:4], queries[4:]
    assert objects[0] == objects[1] < objects[3] < objects[2] < subjects.min()
    assert subjects[0] == subjects[3] < subjects[1] < subjects[2]
    assert len(full.number_queries(triples[:0])) == 0


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_questions_in_random_order_with_some_of_a_query_together(most):
    rng = np.random.default_rng(0)
    queries = np.unique(rng.integers(40, size=500) ** 2 // 40, return_inverse=True)[1]
    order = full.shuffle(queries, most, rng)
    assert sorted(order) == list(range(500))
    assert not np.array_equal(order, full.shuffle(queries, most, rng))
    ends = np.flatnonzero(np.diff(queries[order], append=-1))
    runs = np.diff(ends, prepend=-1)
    if most == 1000:
        assert len(runs) == queries.max() + 1  # each query once
    else:  # parts of a query may meet by chance
        assert np.mean(runs <= most) > 0.9 and np.bincount(queries).max() > 3 * most
    if most == 3:
        assert np.mean(runs == 3) > 0.5
    assert full.shuffle(queries[:0], most, rng).tolist() == []


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
    weights = 4 * ENTITIES if width == 8 else 1 << 24  # queries a few at a time, or all together
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
        loss, *found = gradients.of(entities, relations, *both_ways(triples))
        again = gradients.of(entities, relations, *both_ways(triples))
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
