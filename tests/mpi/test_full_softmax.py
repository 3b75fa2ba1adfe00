"""The softmax over all entities: whoever owns which entities, and wherever they are, the training is the same."""

import numpy as np
import pytest
from lapse.apps.kge._full_kernel import FullTrainer

import lapse
from lapse.apps._shared.placement import NormalThenZero

ENTITIES, RELATIONS, DIM = 90, 3, 6
KEYS = ENTITIES + 2 * RELATIONS
PARAMETERS = dict(
    model="complex",
    loss="softmax",
    dim=DIM,
    relation_length=DIM,
    num_entities=ENTITIES,
    num_relations=RELATIONS,
    reciprocal=True,
    block=40,
    entity_n3=0.1,
    relation_weight=0.5,
)


def train(kv, own, optimizer="adagrad"):
    """The values after some batches, and the loss."""
    trainer = FullTrainer(kv, own[kv.id % 2], rate=0.1, optimizer=optimizer, most_weights=1000, **PARAMETERS)
    rng = np.random.default_rng(0)
    for _ in range(5):
        triples = np.stack([rng.integers(n, size=20) for n in (ENTITIES, RELATIONS, ENTITIES)], axis=1)
        triples[:6, :2] = triples[0, :2]  # questions of one query
        trainer.train(np.concatenate([triples, triples]), 20)
        kv.barrier()
    trainer.finish()
    return kv.pull(np.arange(KEYS)).wait(), trainer.loss


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
@pytest.mark.parametrize("shift", [0, 1])
def test_values_that_cannot_be_borrowed_are_trained_all_the_same(shift, optimizer):
    """With a shift, those at home on another rank."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    by_server = dict(optimizer=lapse.optim.Adam()) if optimizer == "adam" else {}
    length = DIM if by_server else 2 * DIM
    with lapse.Server(KEYS, length, workers=2, **by_server) as server:
        server.initialize(np.arange(KEYS), NormalThenZero(lambda length: DIM, 0.1))
        start = server.run(lambda kv: kv.pull(np.arange(KEYS)).wait())[0]
        homes = comm.allgather(server.local_keys())
        mine = homes[(comm.rank + shift) % comm.size]
        values, loss = server.run(train, [mine[::2].copy(), mine[1::2].copy()], optimizer)[0]
    with lapse.Server(KEYS, length, comm=MPI.COMM_SELF, **by_server) as server, server.worker() as kv:
        kv.set(np.arange(KEYS), start).wait()
        expected, expected_loss = train(kv, [np.arange(KEYS)], optimizer)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5)
    assert not np.allclose(values[:, :DIM], start[:, :DIM], atol=0.05)


@pytest.mark.parametrize("num_objects", [-1, 3])
def test_more_objects_than_triples_are_an_error(num_objects):
    with lapse.Server(KEYS, 2 * DIM) as server:
        homes = [server.local_keys()]

        def refuse(kv):
            trainer = FullTrainer(kv, homes[0], rate=0.1, **PARAMETERS)
            with pytest.raises(ValueError, match=f"num_objects is {num_objects}, but there are 2 triples"):
                trainer.train(np.zeros((2, 3), np.int64), num_objects)
            trainer.finish()

        server.run(refuse)
