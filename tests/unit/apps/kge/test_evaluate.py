"""Ranks and figures, against a slow direct computation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.apps.kge import _ranking, evaluate
from lapse.apps.kge.data import Known

NUM_ENTITIES = 7


def direct_rank(scores, target, left_out, equal=0.5):
    """With a half, the mean of the rank over all orders of equal scores."""
    others = [scores[e] for e in range(len(scores)) if e != target and e not in left_out]
    return 1 + sum(s > scores[target] for s in others) + sum(s == scores[target] for s in others) * equal


SCORES = st.lists(st.integers(-2, 2), min_size=NUM_ENTITIES, max_size=NUM_ENTITIES)
QUERIES = st.lists(
    st.tuples(SCORES, st.integers(0, NUM_ENTITIES - 1), st.sets(st.integers(0, NUM_ENTITIES - 1))),
    min_size=1,
    max_size=6,
)


@given(QUERIES, st.integers(1, NUM_ENTITIES))
def test_ranks_with_ties_and_filters_in_blocks_of_any_size(queries, size):
    scores = np.array([query[0] for query in queries], dtype=np.float32)
    targets = np.array([query[1] for query in queries])
    pairs = [(row, entity) for row, query in enumerate(queries) for entity in sorted(query[2] - {query[1]})]
    rows, entities = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    target_scores = scores[np.arange(len(targets)), targets]
    ranks = _ranking.Ranks(targets, target_scores, rows, entities)
    for first in range(0, NUM_ENTITIES, size):
        ranks.count(first, scores[:, first : first + size])
    assert ranks.raw.tolist() == [direct_rank(q[0], q[1], ()) for q in queries]
    assert ranks.filtered.tolist() == [direct_rank(q[0], q[1], q[2]) for q in queries]
    assert ranks.optimistic.tolist() == [direct_rank(q[0], q[1], q[2], 0) for q in queries]
    assert ranks.pessimistic.tolist() == [direct_rank(q[0], q[1], q[2], 1) for q in queries]


@pytest.mark.parametrize("model", ["complex", "transe"])
def test_ranks_of_scores_that_are_computed_and_counted_in_blocks(model):
    """More entities than are scored at once, some of them equal; more queries than a chunk."""
    rng = np.random.default_rng(0)
    vectors = rng.integers(-1, 2, size=(1248, 16)).astype(np.float32)
    queries, count = rng.integers(-1, 2, size=(50, 16)).astype(np.float32), 1240
    targets = rng.integers(count, size=50)
    wanted = _ranking.pair_scores(model, 1, queries, vectors[targets])
    rows = np.sort(rng.integers(50, size=400))
    entities = np.concatenate([np.sort(rng.choice(count, n, replace=False)) for n in np.bincount(rows, minlength=50)])
    left_out = [set(entities[rows == i].tolist()) - {targets[i]} for i in range(50)]
    keep = np.array([e != targets[i] for i, e in zip(rows, entities, strict=True)])
    ranks = _ranking.Ranks(targets, wanted, rows[keep], entities[keep])
    for first in (0, 640):
        ranks.score(model, 1, queries, first, min(640, count - first), vectors[first : first + 640])
    scores = _ranking.scores(model, 1, queries, vectors)[:, :count]
    assert ranks.raw.tolist() == [direct_rank(scores[i], targets[i], ()) for i in range(50)]
    assert ranks.filtered.tolist() == [direct_rank(scores[i], targets[i], left_out[i]) for i in range(50)]


def test_a_model_that_has_diverged_does_not_look_good():
    nan = np.full((1, 5), np.nan, dtype=np.float32)
    nothing = np.empty(0, np.int64)
    ranks = _ranking.Ranks(np.array([2]), np.array([np.nan]), nothing, nothing)
    ranks.count(0, nan)
    assert ranks.filtered == ranks.raw == 5


def test_figures():
    quality = evaluate.Quality.of(evaluate.sum_up(np.array([1.0, 2.5, 3.0, 10.0])))
    assert quality.mrr == pytest.approx((1 + 1 / 2.5 + 1 / 3 + 1 / 10) / 4)
    assert quality.mean_rank == pytest.approx(16.5 / 4)
    assert (quality.hits1, quality.hits3, quality.hits10) == (0.25, 0.75, 1.0)
    assert quality.named("_raw")["mrr_raw"] == quality.mrr


def test_no_triples_have_no_figures():
    quality = evaluate.Quality.of(np.zeros(evaluate.SUMS))
    assert quality.mrr is None and quality.hits10 is None
    assert "no triples" in str(quality)


def test_the_most_frequent_object():
    """Relation 0: object 1 twice, 2 once, 3 never; asked for 2 the answer 1 comes first."""
    train = np.array([[0, 0, 1], [4, 0, 1], [5, 0, 2]])
    test = np.array([[6, 0, 2]])
    known = Known(np.concatenate([train, test]), 1)
    rule = evaluate.frequency_rule(train, test, known, NUM_ENTITIES)
    assert rule["object"].mrr == pytest.approx(1 / 2)
    # as a subject, 6 ties with 1, 2 and 3 (5 is known, 0 and 4 are more frequent): 1 + 2 + 3 / 2
    assert rule["both"].mrr == pytest.approx((1 / 2 + 1 / 4.5) / 2)


def test_categories_of_relations():
    """Relation 0 is a bijection, 1 has many objects of a subject, 2 many subjects, 3 both, 4 does not occur."""
    few, many = np.arange(3), np.arange(6)
    pairs = [(few, few), (many // 3, many), (many, many // 3), (many // 2, many % 2), (few[:0], few[:0])]
    triples = np.concatenate([np.stack([s, np.full(len(s), r), o], 1) for r, (s, o) in enumerate(pairs)])
    repeated = np.concatenate([triples, triples[:3], triples[:3]])
    found = [evaluate.CATEGORIES[i] for i in evaluate.categories_of(repeated, 5)]
    assert found == ["1-1", "1-n", "n-1", "n-n", "1-1"]
