"""Training on arrays without a server, the reference of the benchmarks."""

import numpy as np
import pytest
from lapse.bench.plain._kge import PlainTrainer

MODEL = {
    "model": "complex",
    "loss": "softmax",
    "dim": 16,
    "relation_length": 16,
    "num_entities": 20,
    "num_relations": 1,
    "reciprocal": True,
    "block": 10,
    "negatives": 8,
}


def test_training_on_arrays_finds_what_it_is_told():
    """One fact for each of many subjects: their loss falls, and what is trained are the arrays given."""
    rng = np.random.default_rng(0)
    entities, relations = (np.zeros((n, 32), np.float32) for n in (20, 2))
    for array in (entities, relations):
        array[:, :16] = rng.normal(0, 0.1, size=(len(array), 16))
    triples = np.array([[i, 0, 10 + i % 5] for i in range(10)])
    losses = []
    for _ in range(30):
        trainer = PlainTrainer(entities, relations, rate=0.2, seed=len(losses), **MODEL)
        trainer.train(triples)
        losses.append(trainer.loss / trainer.triples)
    assert losses[-1] < losses[0] / 4
    assert (entities[:, 16:] >= 0).all() and (entities[:15, 16:] > 0).any(axis=1).all()
    with pytest.raises(ValueError, match="shapes"):
        PlainTrainer(entities, relations[:1].copy(), rate=0.1, **MODEL)
