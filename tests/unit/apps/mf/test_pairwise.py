"""Bayesian personalized ranking: each step against its formula, and negatives that are none."""

import numpy as np
from lapse.apps.mf._kernel import Trainer
from lapse.apps.mf._model import Model

import lapse
from mpi4py import MPI

ROWS, COLUMNS, RANK, RATE, REGULARIZATION = 2, 3, 11, 0.1, 0.07


def train(kv, start):
    """Train the two ratings of row 0, which lacks column 1 only, one after the other."""
    kv.set(np.arange(ROWS + COLUMNS), start).wait()
    model = Model(
        rank=RANK,
        biases=False,
        adagrad=False,
        mean=0.0,
        low=0.0,
        high=0.0,
        regularization=REGULARIZATION,
        bias_regularization=0.0,
    )
    columns = np.array([0, 2], np.int32)
    trainer = Trainer(
        kv,
        model,
        np.zeros(2, np.int32),
        columns,
        np.ones(2, np.float32),
        first_row=0,
        num_rows=ROWS,
        first_column=ROWS,
        num_columns=COLUMNS,
        batch=2,
        lookahead=0,
        localize=np.zeros(COLUMNS, np.uint8),
        seen=np.array([0, 2, 2]),
        seen_columns=columns,
    )
    trained = []
    for column in (0, 1) * 30:
        before = trainer.ranked
        trainer.train(np.array([column]), RATE)
        trainer.finish()
        trained.append((columns[column], trainer.ranked > before))
    return trained, trainer.loss, kv.pull(np.arange(ROWS + COLUMNS)).wait()


def test_a_rating_is_ranked_above_a_column_that_its_row_lacks():
    start = np.random.default_rng(0).normal(size=(ROWS + COLUMNS, RANK)).astype(np.float32)
    sampling = lapse.Sampling("naive", lapse.Uniform(ROWS, ROWS + COLUMNS))
    with lapse.Server(ROWS + COLUMNS, RANK, comm=MPI.COMM_SELF, sampling=sampling) as server:
        trained, loss, values = server.run(train, start)[0]
    expected, expected_loss = start.astype(np.float64), 0.0
    negative = ROWS + 1
    for column, was_ranked in trained:
        if was_ranked:
            row, better, worse = expected[0], expected[ROWS + column], expected[negative]
            score = row @ (better - worse)
            step, keep = RATE / (1 + np.exp(score)), 1 - RATE * REGULARIZATION
            expected_loss += np.log1p(np.exp(-score))
            changed = keep * row + step * (better - worse), keep * better + step * row, keep * worse - step * row
            expected[[0, ROWS + column, negative]] = changed
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)
    assert abs(loss - expected_loss) < 1e-3
    assert 0.15 < np.mean([was_ranked for _, was_ranked in trained]) < 0.55  # one column of three is a negative
