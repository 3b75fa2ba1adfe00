"""CBOW, against the formulas in NumPy."""

import numpy as np
import pytest
from lapse.apps.word2vec._kernel import Trainer

import lapse
from mpi4py import MPI

WORDS = 6


def expected(start, sentences, alpha):
    """Without negatives, the word before and the word after predict; returns the values and the sum of losses."""
    rows, loss, predictions = start.astype(np.float64), 0.0, 0
    for sentence in sentences:
        for at, word in enumerate(sentence):
            context = [2 * sentence[place] for place in (at - 1, at + 1) if 0 <= place < len(sentence)]
            mean = rows[context].mean(axis=0)
            score = mean @ rows[2 * word + 1]
            step = alpha / (1 + np.exp(score))
            change = step * rows[2 * word + 1]
            rows[2 * word + 1] += step * mean
            np.add.at(rows, context, change)
            loss += np.log1p(np.exp(-score))
            predictions += 1
    return rows, loss, predictions


def train(kv, start, sentences, alpha, options):
    kv.set(np.arange(2 * WORDS), start).wait()
    options = {"is_replicated": np.zeros(2 * WORDS, np.uint8), "unit_pairs": 2, **options}
    trainer = Trainer(
        kv,
        dim=start.shape[1],
        is_localized=np.zeros(2 * WORDS, np.uint8),
        is_cbow=True,
        window=1,
        negative=0,
        keep=np.full(WORDS, 2**32 - 1, np.uint32),
        block_units=1,
        lookahead=0,
        seeds=(1, 2),
        **options,
    )
    words = np.concatenate(sentences).astype(np.int32)
    trainer.train(words, np.cumsum([len(each) for each in sentences]), alpha, alpha)
    trainer.finish()
    return kv.pull(np.arange(2 * WORDS)).wait(), trainer.loss, trainer.pairs


@pytest.mark.parametrize("dim", [3, 21])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_mean_of_the_context_predicts_and_all_of_it_learns(dim, in_place):
    rng = np.random.default_rng(dim)
    start = rng.normal(size=(2 * WORDS, dim)).astype(np.float32)
    sentences = [rng.integers(0, WORDS, n) for n in (2, 9, 5)] + [np.array([1, 2, 1, 1])]  # the same word on both sides
    with lapse.Server(2 * WORDS, dim, comm=MPI.COMM_SELF) as server:
        values, loss, predictions = server.run(train, start, sentences, 0.1, {"in_place": in_place})[0]
    rows, expected_loss, expected_predictions = expected(start, sentences, 0.1)
    np.testing.assert_allclose(values, rows, rtol=1e-4, atol=1e-5)
    assert predictions == expected_predictions
    assert loss == pytest.approx(expected_loss, rel=1e-5)


def test_a_prediction_has_one_set_of_negatives():
    start = np.zeros((2 * WORDS, 2), np.float32)
    with lapse.Server(2 * WORDS, 2, comm=MPI.COMM_SELF) as server:
        with pytest.raises(ValueError, match="share their negatives"):
            server.run(train, start, [np.array([0, 1])], 0.1, {"shares_negatives": False})
