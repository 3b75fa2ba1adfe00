"""The kernel of sparse logistic regression against a loop, and how often replicas are synchronized."""

import numpy as np
import pytest
from lapse.apps.clicks._kernel import Trainer

import lapse
from lapse.apps._shared.placement import Ranks
from lapse.apps.clicks import data, options, placement

NUM_KEYS, FIELDS, RATE = 50, 4, 0.1


def by_a_loop(keys, clicked):
    """Weights, sums of squares and the loss after one step per example."""
    weights, squares, loss = np.zeros(NUM_KEYS), np.zeros(NUM_KEYS), 0.0
    for mine, click in zip(keys, clicked):
        score = weights[mine].sum()
        gradient = 1 / (1 + np.exp(-score)) - click
        loss += np.log1p(np.exp(-score if click else score))
        for key in mine:  # one that occurs twice is trained twice
            squares[key] += gradient**2
            weights[key] -= RATE * gradient / np.sqrt(squares[key] + 1e-8)
    return weights, squares, loss


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_batch_is_trained_one_example_after_the_other(batch):
    rng = np.random.default_rng(0)
    keys, clicked = rng.integers(NUM_KEYS, size=(300, FIELDS)), rng.integers(2, size=300).astype(np.uint8)
    with lapse.Server(NUM_KEYS, 2) as server, server.worker() as kv:
        trainer = Trainer(kv, fields=FIELDS, batch=64, rate=RATE, localize=False, lookahead=1)
        trainer.train(keys[:200], clicked[:200], batch)
        trainer.train(keys[200:], clicked[200:], batch)
        trainer.finish()
        found = kv.pull(np.arange(NUM_KEYS)).wait()
    weights, squares, loss = by_a_loop(keys, clicked)
    np.testing.assert_allclose(found, np.stack([weights, squares], axis=1), rtol=1e-3, atol=1e-4)
    assert trainer.examples == 300
    assert trainer.loss == pytest.approx(loss, rel=1e-4)


def test_what_is_no_example_is_an_error():
    with lapse.Server(NUM_KEYS, 2) as server, server.worker() as kv:
        trainer = Trainer(kv, fields=FIELDS, batch=8, rate=RATE, localize=False, lookahead=0)
        with pytest.raises(ValueError, match=r"shape \(3, 2\) for 3 examples"):
            trainer.train(np.zeros((3, 2), np.int64), np.zeros(3, np.uint8), 8)
        with pytest.raises(ValueError, match="0 examples"):
            Trainer(kv, fields=FIELDS, batch=0, rate=RATE, localize=False, lookahead=0)


def test_rounds_become_longer_as_the_training_proceeds():
    args = options.parse(["--sync-examples", "5000", "--keys", "100"])
    chosen = placement.decide(args, np.arange(100.0), 1000, Ranks(4))
    lengths = [chosen.examples_per_round(trained) for trained in (0, 10_000, 20_000, 1_000_000)]
    assert lengths == [placement.FEWEST_PER_ROUND, 1250, 2500, 5000]
    assert chosen.pace(5000)["max_pending"] > 3.9 * chosen.pace(1250)["max_pending"]
    assert len(chosen.replicated_keys) == 99 and not chosen.localize  # all that are used


def test_nothing_is_replicated_where_all_ranks_share_memory_or_nobody_asks():
    for given, ranks in (
        ([], Ranks(4, 4)),
        (["--management", "lapse"], Ranks(4)),
        (["--management", "classic"], Ranks(4)),
    ):
        chosen = placement.decide(options.parse(given), np.ones(1_000_000), 1000, ranks)
        assert not len(chosen.replicated_keys)
        assert chosen.localize == (given == ["--management", "lapse"])


def test_examples_do_not_depend_on_the_number_of_workers():
    recipe = data.Recipe(1000, seed=3)
    alone, third = recipe.draw(range(5)), recipe.draw(range(2, 5, 3))
    assert (alone[2].keys == third[0].keys).all() and (alone[2].clicked == third[0].clicked).all()
    assert 0.2 < np.mean([block.clicked.mean() for block in alone]) < 0.6
