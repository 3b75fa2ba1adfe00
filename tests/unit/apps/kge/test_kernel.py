"""Scores, losses and gradients of the models, against plain NumPy and finite differences."""

import itertools

import numpy as np
import pytest

from lapse.apps.kge import _gradients, _ranking

NUM_ENTITIES, NUM_RELATIONS, BLOCK, NEGATIVES = 9, 3, 5, 4
MODELS = ("complex", "distmult", "rescal", "transe")


def relation_length(model, dim):
    return dim * dim if model == "rescal" else dim


def make(model, loss="softmax", dim=6, reciprocal=False, **more):
    return _gradients.Gradients(
        model=model,
        loss=loss,
        dim=dim,
        relation_length=relation_length(model, dim),
        num_entities=NUM_ENTITIES,
        num_relations=NUM_RELATIONS,
        reciprocal=reciprocal,
        block=BLOCK,
        negatives=NEGATIVES,
        **more,
    )


def world(model, dim=6, reciprocal=False, seed=0):
    rng = np.random.default_rng(seed)
    entities = rng.normal(size=(NUM_ENTITIES, dim)).astype(np.float32)
    relations = rng.normal(size=((1 + reciprocal) * NUM_RELATIONS, relation_length(model, dim))).astype(np.float32)
    triples = np.stack([rng.integers(n, size=BLOCK) for n in (NUM_ENTITIES, NUM_RELATIONS, NUM_ENTITIES)], axis=1)
    return entities, relations, triples, rng.integers(NUM_ENTITIES, size=2 * NEGATIVES)


def score(model, norm, s, r, o):
    """The definitions in the papers."""
    dim = len(s)
    if model == "complex":
        s, r, o = (x[: dim // 2] + 1j * x[dim // 2 :] for x in (s, r, o))
        return (s * r * o.conj()).sum().real
    if model == "distmult":
        return (s * r * o).sum()
    if model == "rescal":
        return s @ r.reshape(dim, dim) @ o
    return -np.linalg.norm(s + r - o, ord=norm)


def direct_loss(
    model, loss, entities, relations, triples, negatives, *, norm=1, margin=1.0, reciprocal=False, n3=0.0, l2=0.0
):
    """What the kernel computes, one score at a time, in float64."""
    entities, relations = entities.astype(float), relations.astype(float)
    total = 0.0
    for s, r, o in triples:
        inverse = relations[NUM_RELATIONS + r] if reciprocal else None
        for side in (0, 1):

            def of(e, side=side, s=s, r=r, o=o, inverse=inverse):
                if side == 0:
                    return score(model, norm, entities[s], relations[r], entities[e])
                if reciprocal:
                    return score(model, norm, entities[o], inverse, entities[e])
                return score(model, norm, entities[e], relations[r], entities[o])

            true = s if side else o
            against = [of(e) for e in negatives[side * NEGATIVES :][:NEGATIVES] if e != true]
            total += row_loss(loss, of(true), np.array(against), margin)
        used = [entities[s], relations[r], entities[o]] + ([inverse] if reciprocal else [])
        total += sum(penalty(model, x, n3, l2) for x in used)
    return total


def row_loss(loss, true, against, margin):
    if loss == "softmax":
        return np.logaddexp.reduce([true, *against]) - true
    if loss == "bce":
        return np.logaddexp(0, -true) + np.logaddexp(0, against).sum()
    return np.maximum(margin - true + against, 0).sum()


def penalty(model, x, n3, l2):
    modulus = np.hypot(*np.split(x, 2)) if model == "complex" else np.abs(x)
    return n3 * (modulus**3).sum() + l2 * (modulus**2).sum()


def differences(fn, array, step=1e-2):
    """Central finite differences of `fn` by each element of `array`."""
    result = np.zeros_like(array, dtype=float)
    for index in np.ndindex(array.shape):
        kept = array[index]
        ends = []
        for sign in (1, -1):
            array[index] = kept + sign * step
            ends.append((fn(), float(array[index])))
        array[index] = kept
        result[index] = (ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1])
    return result


CASES = [(*case, 1) for case in itertools.product(MODELS, ("softmax", "bce", "margin"), (False, True))]
CASES += [("transe", "softmax", False, 2), ("transe", "margin", True, 2)]


@pytest.mark.parametrize("model, loss, reciprocal, norm", CASES)
def test_loss_and_gradients(model, loss, reciprocal, norm):
    entities, relations, triples, negatives = world(model, reciprocal=reciprocal)
    negatives[0] = triples[0, 2]  # equal to a target: must be left out
    kernel = make(
        model,
        loss,
        reciprocal=reciprocal,
        norm=norm,
        margin=1.5,
        entity_n3=0.1,
        relation_n3=0.1,
        entity_l2=0.05,
        relation_l2=0.05,
    )

    def direct():
        return direct_loss(
            model,
            loss,
            entities,
            relations,
            triples,
            negatives,
            norm=norm,
            margin=1.5,
            reciprocal=reciprocal,
            n3=0.1,
            l2=0.05,
        )

    found, *gradients = kernel.of(entities, relations, triples, negatives)
    assert found == pytest.approx(direct(), rel=1e-4)
    for array, gradient in zip((entities, relations), gradients, strict=True):
        expected = differences(direct, array, 1e-4)
        np.testing.assert_allclose(gradient, expected, atol=2e-2 * np.abs(expected).max())


@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_of_a_large_block_is_the_sum_of_those_of_its_parts(model):
    """The kernel goes through a block a few triples at a time."""
    dim, negatives, large = 20, 37, 110
    rng = np.random.default_rng(0)
    entities = rng.normal(size=(300, dim)).astype(np.float32)
    relations = rng.normal(size=(6, relation_length(model, dim))).astype(np.float32)
    triples = np.stack([rng.integers(n, size=large) for n in (300, 3, 300)], axis=1)
    sampled = rng.integers(300, size=2 * negatives)
    kernel = _gradients.Gradients(
        model=model,
        loss="softmax",
        dim=dim,
        relation_length=relation_length(model, dim),
        num_entities=300,
        num_relations=3,
        reciprocal=True,
        block=large,
        negatives=negatives,
        entity_n3=0.1,
        relation_l2=0.1,
    )
    whole = kernel.of(entities, relations, triples, sampled)
    parts = [kernel.of(entities, relations, triples[i : i + 10].copy(), sampled) for i in range(0, large, 10)]
    for found, expected in zip(whole, map(sum, zip(*parts, strict=True)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dim", [2, 16, 18, 40, 300])
def test_scores_of_any_length(model, dim):
    entities, relations, triples, _ = world(model, dim)
    padded, rows = _ranking.padded(dim), _ranking.padded(NUM_ENTITIES)
    everything = np.zeros((rows, padded), np.float32)
    everything[:NUM_ENTITIES, :dim] = entities
    for norm in (1, 2):
        for asked, known in ((_ranking.OBJECT, 0), (_ranking.SUBJECT, 2)):
            query = _ranking.queries(model, asked, everything[triples[:, known]], relations, triples[:, 1].copy(), dim)
            found = _ranking.scores(model, norm, query, everything)
            for i, (s, r, o) in enumerate(triples):
                for e in range(NUM_ENTITIES):
                    ends = (entities[s], entities[e]) if asked == _ranking.OBJECT else (entities[e], entities[o])
                    expected = score(model, norm, *(x.astype(float) for x in (ends[0], relations[r], ends[1])))
                    assert found[i, e] == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_a_pair_has_the_score_it_has_among_all(model):
    """To the last bit: otherwise ties would not be seen."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(33, 320)).astype(np.float32)
    entities = rng.normal(size=(48, 320)).astype(np.float32)
    everything = _ranking.scores(model, 1, query, entities)
    pairs = _ranking.pair_scores(model, 1, query, entities[:33])
    assert (np.diagonal(everything) == pairs).all()


@pytest.mark.parametrize("loss", ["softmax", "bce", "margin"])
def test_large_scores_stay_finite(loss):
    entities, relations, triples, negatives = world("distmult")
    kernel = make("distmult", loss)
    for scale in (100, 0):
        found, *gradients = kernel.of(entities * scale, relations, triples, negatives)
        assert np.isfinite(found) and all(np.isfinite(g).all() for g in gradients)


def test_dropout_is_part_of_the_gradient():
    """The masks are the same in each call: the loss is a function of the values."""
    entities, relations, triples, negatives = world("complex", reciprocal=True)
    kernel = make("complex", reciprocal=True, entity_dropout=0.3, relation_dropout=0.3, seed=5)
    loss, *gradients = kernel.of(entities, relations, triples, negatives)
    assert loss != make("complex", reciprocal=True).of(entities, relations, triples, negatives)[0]
    for array, gradient in zip((entities, relations), gradients, strict=True):
        expected = differences(lambda: kernel.of(entities, relations, triples, negatives)[0], array)
        np.testing.assert_allclose(gradient, expected, atol=3e-2 * np.abs(expected).max())


def test_what_cannot_be_is_refused():
    entities, relations, triples, negatives = world("distmult")
    with pytest.raises(IndexError, match="9 entities"):
        make("distmult").of(entities, relations, triples + 100, negatives)
    with pytest.raises(ValueError, match="at most 5"):
        make("distmult").of(entities, relations, np.concatenate([triples] * 2), negatives)
    for bad in ({"dim": 0}, {"entity_dropout": 1.0}, {"relation_dropout": -0.1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            make("distmult", **bad)
    with pytest.raises(ValueError, match="padded"):
        _ranking.scores("distmult", 1, np.zeros((2, 5), np.float32), np.zeros((16, 5), np.float32))
