"""The highest scores, found block by block, are those of a sort of all."""

import numpy as np
import pytest

from lapse.apps._shared import top
from lapse.apps._shared.top import Best, Cosines

NAMES = [f"name {i}" for i in range(1000)]


def expected(scores, k, left_out=()):
    """By a sort of everything: equal ones in the order of their numbers."""
    order = [i for i in np.argsort(-scores, kind="stable") if i not in set(left_out) and scores[i] > -np.inf]
    return np.array(order[:k], int)


@pytest.mark.parametrize("levels", [2, 10, 10**9])
@pytest.mark.parametrize("k", [1, 7, 300])
@pytest.mark.parametrize("block", [1, 13, 200, 1000])
def test_the_best_of_all_blocks(levels, k, block):
    rng = np.random.default_rng(levels * k + block)
    scores = rng.integers(0, levels, (3, 250)).astype(np.float32)
    left_out = [np.array([], int), np.array([249, 0, 13, 13]), np.arange(245)]
    best = Best(3, k, left_out)
    for first in range(0, 250, block):
        best.add(first, scores[:, first : first + block].copy())
    for (ids, found, names), row, gone in zip(best.answers(NAMES), scores, left_out, strict=True):
        np.testing.assert_array_equal(ids, expected(row, k, gone))
        np.testing.assert_array_equal(found, row[ids])
        assert names == [NAMES[i] for i in ids]


def test_what_is_no_number_is_no_answer():
    best = Best(1, 3)
    best.add(0, np.array([[np.nan, 1, -np.inf, 2]], np.float32))
    assert best.answers(NAMES)[0].ids.tolist() == [3, 1]


def test_cosines_are_those_of_a_whole_matrix(monkeypatch):
    monkeypatch.setattr(top, "ELEMENTS", 64)
    matrix = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    matrix[3] = 0
    cosines = Cosines(matrix)
    vectors = np.stack([cosines.unit(4), cosines.unit(5)])
    lengths = np.linalg.norm(matrix, axis=1)
    lengths[3] = 1
    for _ in range(2):  # with the lengths, and without
        found = np.concatenate([block for _, block in cosines.blocks(vectors)], axis=1)
        np.testing.assert_allclose(found, vectors @ (matrix / lengths[:, None]).T, atol=1e-6)
    assert not cosines.unit(3).any()
