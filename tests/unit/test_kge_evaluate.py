"""Ranks and figures, against a slow direct computation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.apps.kge import evaluate
from lapse.apps.kge.data import Known

NUM_ENTITIES = 7


def direct_rank(scores, target, left_out):
    """The mean of the rank over all orders of equal scores."""
    others = [scores[e] for e in range(len(scores)) if e != target and e not in left_out]
    return 1 + sum(s > scores[target] for s in others) + sum(s == scores[target] for s in others) / 2


def in_blocks(scores, size):
    for first in range(0, scores.shape[1], size):
        yield first, scores[:, first : first + size].copy()


SCORES = st.lists(st.integers(-2, 2), min_size=NUM_ENTITIES, max_size=NUM_ENTITIES)
QUERIES = st.lists(st.tuples(SCORES, st.integers(0, NUM_ENTITIES - 1), st.sets(st.integers(0, NUM_ENTITIES - 1))),
                   min_size=1, max_size=6)


@given(QUERIES, st.integers(1, NUM_ENTITIES))
def test_ranks_with_ties_and_filters_in_blocks_of_any_size(queries, size):
    scores = np.array([query[0] for query in queries], dtype=np.float32)
    targets = np.array([query[1] for query in queries])
    pairs = [(row, entity) for row, query in enumerate(queries) for entity in sorted(query[2] - {query[1]})]
    rows, entities = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    target_scores = scores[np.arange(len(targets)), targets]
    filtered, raw = evaluate.count_ranks(in_blocks(scores, size), targets, target_scores, rows, entities)
    assert raw.tolist() == [direct_rank(q[0], q[1], ()) for q in queries]
    assert filtered.tolist() == [direct_rank(q[0], q[1], q[2]) for q in queries]


def test_a_model_that_has_diverged_does_not_look_good():
    nan = np.full((1, 5), np.nan, dtype=np.float32)
    nothing = np.empty(0, np.int64)
    filtered, raw = evaluate.count_ranks(iter([(0, nan)]), np.array([2]), np.array([np.nan]), nothing, nothing)
    assert filtered == raw == 5


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
