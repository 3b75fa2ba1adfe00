"""Combining what ranks changed apart, over MPI: rules, weights, levels and bfloat16."""

import numpy as np
import pytest

import lapse
from groups import HOSTS, several_hosts
from lapse import Replication
from mpi4py import MPI

comm = MPI.COMM_WORLD
NUM_KEYS, LENGTH = 50, 8


def server(**options):
    return lapse.Server(NUM_KEYS, LENGTH, replicated_keys=range(NUM_KEYS), replication=Replication(0, **options))


def all_values(kv):
    kv.barrier()  # so that the contributions of all ranks meet in one round
    kv.wait_replica_sync()
    kv.barrier()
    values = kv.pull(range(NUM_KEYS)).wait()
    kv.barrier()
    return values


def check_equal(values):
    for theirs in comm.allgather(values.tobytes()):
        assert theirs == values.tobytes(), "replicas differ"


@pytest.mark.parametrize("combine", ["sum", "adaptive", "adagrad"])
@pytest.mark.parametrize("wire", ["exact", "bfloat16"])
def test_replicas_are_equal_to_the_last_bit_whatever_the_rule(combine, wire):
    def work(kv):
        random = np.random.default_rng(kv.id)
        for number in range(60):
            keys = random.choice(NUM_KEYS, 10)
            kv.push(keys, random.random((10, LENGTH), "f4"), weights=random.random(10))
            if number % 20 == 7:
                kv.set([number % NUM_KEYS], random.random((1, LENGTH), "f4")).wait()
        return all_values(kv)

    rates = np.geomspace(100, 0.1, NUM_KEYS)
    with lapse.Server(
        NUM_KEYS,
        LENGTH,
        workers=2,
        replicated_keys=range(NUM_KEYS),
        replication=Replication(0, max_pending=40, combine=combine, wire=wire, rates=rates),
    ) as running:
        values = running.run(work)
    assert np.isfinite(values[0]).all()
    check_equal(values[0])


@several_hosts
def test_heavy_changes_are_averaged_and_light_ones_added():
    """The weight decides: it is the rate of the steps that a change is made of."""

    def work(kv):
        kv.set(range(NUM_KEYS), np.ones((NUM_KEYS, LENGTH), "f4")).wait()
        kv.barrier()
        weights = np.where(np.arange(NUM_KEYS) % 2, 1e6, 1e-9)
        kv.push(range(NUM_KEYS), np.full((NUM_KEYS, LENGTH), 0.5, "f4"), weights)
        return all_values(kv)

    with server(combine="adaptive", curvature=1.0) as running:
        values = running.run(work)[0] - 1
    workers = comm.size
    np.testing.assert_allclose(values[::2], 0.5 * workers, rtol=1e-3)
    np.testing.assert_allclose(values[1::2], 0.5 * workers / HOSTS, rtol=0.05)


@several_hosts
def test_rates_belong_to_keys_in_the_order_in_which_they_are_given():
    """The first of the two keys is hot, although its number is larger."""

    def work(kv):
        for _ in range(64):
            kv.push([7, 3], np.ones((2, 1), "f4"))
            kv.barrier()  # nobody gets far ahead, and many rounds come
        return server_.stats(all_ranks=True)["replica_keys_sent"]

    sent = {}
    for rates in ([100.0, 1e-9], [1e-9, 1e-9]):
        replication = Replication(0, max_pending=2, rates=rates, enough=1.0)
        with lapse.Server(10, 1, replicated_keys=[7, 3], replication=replication) as server_:
            sent[rates[0]] = server_.run(work)[0]
    assert sent[100.0] > 10 * max(sent[1e-9], 1)


@several_hosts
def test_a_rank_may_change_its_pace():
    def work(kv):
        kv.push([1], np.ones((1, LENGTH), "f4"))
        kv.barrier()
        before = server_.stats()["replica_syncs"]
        kv.barrier()
        kv.pace_rounds(max_pending=1)
        kv.push([1], np.ones((1, LENGTH), "f4"))
        values = all_values(kv)
        assert (values[1] == 2 * kv.num_workers).all()
        return before

    with server() as server_:
        assert server_.run(work) == [0]


@pytest.mark.parametrize(
    "given, text",
    [
        ({"dtype": "float64", "replication": Replication(combine="adaptive")}, "need float32"),
        ({"dtype": "float64", "replication": Replication(wire="bfloat16")}, "need float32"),
        ({"value_lengths": 2000, "replication": Replication(combine="adaptive")}, "takes at most 1024"),
        ({"value_lengths": 3, "replication": Replication(combine="adagrad")}, "use an even number"),
        ({"replication": Replication(rates=[1.0])}, "1 rates for 2 replicated_keys"),
    ],
)
def test_what_does_not_fit_the_values_is_refused_on_all_ranks(given, text):
    arguments = {"num_keys": 10, "value_lengths": 4, "replicated_keys": [1, 2], **given}
    with pytest.raises(ValueError, match=text):
        lapse.Server(**arguments)


def test_weights_are_checked():
    with server(combine="adaptive") as running, running.worker() as kv:
        for weights, text in (([1.0], "1 elements for 2 keys"), ([1.0, -1.0], "-1.0"), ([1.0, np.nan], "nan")):
            with pytest.raises(ValueError, match=text):
                kv.push([1, 2], np.ones((2, LENGTH), "f4"), weights)
        kv.barrier()
