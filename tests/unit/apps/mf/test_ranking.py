"""Figures of ranking against a slow computation, by hand, and in corners."""

import numpy as np
import pytest

from lapse.apps.mf.ranking import figures_of


def slow_figures(scores, seen, relevant, first):
    sums = np.zeros(5)
    for row in range(len(scores)):
        candidates = [column for column in range(scores.shape[1]) if not seen[row, column]]
        order = sorted(candidates, key=lambda column: -scores[row, column])
        good = [bool(relevant[row, column]) for column in order]
        if not any(good):
            continue
        most = min(sum(good), first)
        ideal = sum(1 / np.log2(2 + i) for i in range(most))
        hits = [i for i in range(min(first, len(good))) if good[i]]
        pairs = [(i, j) for i in range(len(good)) for j in range(len(good)) if good[i] and not good[j]]
        sums += (
            sum(1 / np.log2(2 + i) for i in hits) / ideal,
            len(hits) / most,
            sum(sum(good[: i + 1]) / (i + 1) for i in hits) / most,
            np.mean([i < j for i, j in pairs]) if pairs else 0.5,
            1,
        )
    return sums


@pytest.mark.parametrize("first", [1, 3, 10, 1000])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_figures_agree_with_a_slow_computation(first, share):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 23)).astype(np.float32)
    seen = rng.random(scores.shape) < 0.3
    relevant = (rng.random(scores.shape) < share) & ~seen
    np.testing.assert_allclose(figures_of(scores, seen, relevant, first), slow_figures(scores, seen, relevant, first))


def test_a_perfect_ranking_and_the_worst_one():
    relevant = np.array([[True, True, False, False, False]])
    nothing = np.zeros_like(relevant)
    scores = np.array([[5.0, 4.0, 3.0, 2.0, 1.0]])
    assert figures_of(scores, nothing, relevant, 2).tolist() == [1, 1, 1, 1, 1]
    assert figures_of(-scores, nothing, relevant, 2).tolist() == [0, 0, 0, 0, 1]


def test_rows_without_anything_relevant_do_not_count():
    cells = np.zeros((3, 4), bool)
    assert figures_of(np.zeros((3, 4)), cells, cells, 2).tolist() == [0, 0, 0, 0, 0]
