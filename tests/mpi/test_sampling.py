"""Samples: values, frequencies, handles and counters in every scheme, while keys move."""

import gc

import numpy as np
import pytest

import lapse
from frequencies import assert_conform
from lapse.sampling._draws import Generator, Table
from lapse.sampling._sampler import DRAWS
from mpi4py.MPI import COMM_SELF
from mpi4py.MPI import COMM_WORLD as comm

NUM_KEYS = 60
KEYS = np.arange(NUM_KEYS)
FIRST = 5  # the first key that is sampled
WEIGHTS = np.array([4, 1, 0, 2.5, 0.5, 0, 7, 1, 1, 3])
LENGTHS = KEYS % 5 + 1
STEP = 1024.0  # pushes add multiples of it, so that a value tells its key whatever was pushed

SCHEMES = {
    "naive": dict(scheme="naive"),
    "preloc": dict(scheme="preloc"),
    "pool": dict(scheme="pool", reuse=16, group_size=20),
    "postpone": dict(scheme="pool", reuse=16, group_size=20, postpone=True),
    "local": dict(scheme="local", group_size=20),
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def open_server(scheme, lengths=2, dtype="float32", workers=1, weights=WEIGHTS, **options):
    distribution = lapse.Weighted(weights, FIRST)
    sampling = lapse.Sampling(**{**SCHEMES[scheme], "distribution": distribution})
    return lapse.Server(NUM_KEYS, lengths, dtype, workers, sampling=sampling, seed=3, **options)


def set_values(kv, server):
    """Give every element of a value its key's number. Collective."""
    if kv.id == 0:
        lengths = server.value_length(KEYS)
        kv.set(KEYS, np.repeat(KEYS, lengths).astype(server.dtype)).wait()
    kv.barrier()


def check_values(server, keys, values):
    """They are those of the keys, which are keys that can come."""
    expected = np.repeat(keys, server.value_length(keys))
    np.testing.assert_array_equal(np.asarray(values).ravel() % STEP, expected)
    assert (WEIGHTS[keys - FIRST] > 0).all()


def drawn(kv, count):
    """What this worker's generator gives."""
    table = Table(FIRST, FIRST + len(WEIGHTS), WEIGHTS)
    return table.draw(Generator(3, kv.id, DRAWS), count)


def pull_all(kv, count, piece=7, prepared=50):
    """Many samples, prepared and pulled in pieces: all their keys."""
    parts = []
    for first in range(0, count, prepared):
        total = min(prepared, count - first)
        handle = kv.prepare_sample(total)
        for begin in range(0, total, piece):
            keys, values = kv.pull_sample(handle, min(piece, total - begin)).wait()
            parts.append(keys)
            np.testing.assert_array_equal(values[:, 0] % STEP, keys)
        kv.finish_sample(handle)
    return np.concatenate(parts)


def occurrences(keys):
    return np.bincount(keys - FIRST, minlength=len(WEIGHTS))


# Values ---------------------------------------------------------------------------------------------


@every_scheme
@pytest.mark.parametrize(
    "lengths, dtype",
    [(3, "float32"), (3, "float64"), (LENGTHS, "float32"), (LENGTHS, "float64")],
)
def test_values_are_those_of_the_keys_while_all_workers_move_and_change_them(scheme, lengths, dtype):
    rounds = 30

    def work(kv, server):
        set_values(kv, server)
        for turn in range(rounds):
            handle = kv.prepare_sample(20)
            kv.localize(kv.rng.choice(KEYS, 5))
            some = kv.rng.choice(KEYS, 8)
            elements = int(server.value_length(some).sum())
            kv.push(some, np.full(elements, STEP, server.dtype))
            pulls = [kv.pull_sample(handle, count) for count in (1, 0, 6, turn % 13)]
            for pull, count in zip(pulls, (1, 0, 6, turn % 13)):
                keys, values = pull.wait()
                assert keys.shape == (count,) and keys.dtype == np.int64
                assert values.dtype == server.dtype
                check_values(server, keys, values)
            if turn % 2:
                kv.finish_sample(handle)
        kv.wait_all()
        kv.barrier()
        total = kv.pull(KEYS).wait().astype(float).sum()
        mine = kv.id == 0 and np.repeat(KEYS, server.value_length(KEYS)).sum()
        return total, mine

    with open_server(scheme, lengths, dtype, workers=2) as server:
        totals = server.run(work, server)
        pushed = server.run(lambda kv: replay_pushes(kv, server, rounds))
        expected = comm.allreduce(sum(mine for _, mine in totals) + sum(pushed))
        assert all(total == expected for total, _ in totals)


def replay_pushes(kv, server, rounds):
    """What the worker of the same number has pushed in all, by a generator of the same seed as its own."""
    total, rng = 0, np.random.default_rng([server.seed, kv.id])
    for _ in range(rounds):
        rng.choice(KEYS, 5)
        total += server.value_length(rng.choice(KEYS, 8)).sum() * STEP
    return total


@every_scheme
def test_shapes_and_buffers(scheme):
    with open_server(scheme, 2) as server, server.worker() as kv:
        set_values(kv, server)
        handle = kv.prepare_sample(100)
        keys, values = kv.pull_sample(handle, 4).wait()
        assert keys.shape == (4,) and values.shape == (4, 2)
        keys, values = kv.pull_sample(handle, 0).wait()
        assert keys.shape == (0,) and values.shape == (0, 2)
        mine, out = np.full(4, -1), np.full((4, 2), np.nan, "f4")
        operation = kv.pull_sample(handle, 4, keys=mine, out=out)
        assert (WEIGHTS[mine - FIRST] > 0).all()  # before the wait
        keys, values = operation.wait()
        assert keys is mine and values is out and operation.wait()[1] is out
        check_values(server, mine, out)
        flat = np.empty(6, "f4")
        assert kv.pull_sample(handle, np.int32(3), out=flat).wait()[1] is flat
        assert handle.left == 89
        kv.barrier()


@every_scheme
def test_buffers_when_lengths_vary(scheme):
    with open_server(scheme, LENGTHS) as server, server.worker() as kv:
        set_values(kv, server)
        handle = kv.prepare_sample(100)
        keys, values = kv.pull_sample(handle, 4).wait()
        assert values.shape == (LENGTHS[keys].sum(),)
        check_values(server, keys, values)
        out = np.full(23, -1, "f4")
        keys, values = kv.pull_sample(handle, 4, out=out).wait()
        assert np.shares_memory(values, out) and values.shape == (LENGTHS[keys].sum(),)
        check_values(server, keys, out[: values.size])
        assert (out[values.size :] == -1).sum() >= 3
        with pytest.raises(ValueError, match="19 elements.* room for 20"):
            kv.pull_sample(handle, 4, out=np.empty(19, "f4"))
        assert handle.left == 92
        kv.barrier()


@every_scheme
@pytest.mark.parametrize("lengths", [3000, 1000 * LENGTHS])
def test_pulls_of_megabytes_go_in_parts(scheme, lengths):
    """More than a part of a call, and more than may be in flight; for all ranks but one from elsewhere."""
    with open_server(scheme, lengths, "float64", max_in_flight=100_000) as server:
        with server.worker() as kv:
            set_values(kv, server)
            handle = kv.prepare_sample(150)
            kv.wait_all()
            kv.barrier()
            if kv.rank == 0:
                kv.localize(KEYS).wait()
            kv.barrier()
            operations = [kv.pull_sample(handle, count) for count in (100, 1, 49)]
            for operation in operations:
                check_values(server, *operation.wait())
            kv.barrier()


# What each scheme promises ------------------------------------------------------------------------------


def test_naive_draws_when_it_pulls_and_preloc_when_it_prepares():
    def work(kv):
        first, second = kv.prepare_sample(10), kv.prepare_sample(10)
        handles = [second, first, first, second]
        parts = [kv.pull_sample(handle, 5).wait()[0] for handle in handles]
        kv.barrier()
        return np.array(parts), drawn(kv, 20).reshape(4, 5)

    with open_server("naive", workers=2) as server:
        for keys, expected in server.run(work):
            np.testing.assert_array_equal(keys, expected)
    with open_server("preloc", workers=2) as server:
        for keys, expected in server.run(work):
            np.testing.assert_array_equal(keys, expected[[2, 0, 1, 3]])


@pytest.mark.parametrize("scheme", ["naive", "preloc"])
def test_independent_draws_conform(scheme):
    def work(kv):
        set_values(kv, server)
        keys = pull_all(kv, 2000)
        kv.barrier()
        return keys

    with open_server(scheme, workers=2) as server:
        for keys in server.run(work):
            assert_conform(occurrences(keys), WEIGHTS)
            assert len(np.unique(keys[:-1] * 100 + keys[1:])) > 20  # not in any order


def test_preloc_brings_the_keys_near():
    with open_server("preloc") as server, server.worker() as kv:
        set_values(kv, server)
        if kv.rank == comm.size - 1:
            handle = kv.prepare_sample(30)
            kv.wait_all()
            kv.pull_sample(handle, 30).wait()
            stats = server.stats()
            assert stats["sampled_keys"] == stats["sampled_local"] == 30
            assert stats["localize_keys"] == stats["pulled_keys"] == 0
        kv.barrier()


@pytest.mark.parametrize("scheme", ["pool", "postpone"])
def test_each_draw_of_a_pool_is_used_as_often_as_was_asked_for(scheme):
    groups, size, reuse = 30, 20, 16

    def work(kv):
        set_values(kv, server)
        parts, left = [], groups * size * reuse
        while left:  # samples that cross passes and groups
            count = min(left, int(kv.rng.integers(1, 500)))
            handle = kv.prepare_sample(count)
            kv.localize(kv.rng.choice(KEYS, 3))  # so that keys are away when their turn comes
            keys, values = kv.pull_sample(handle, count).wait()
            np.testing.assert_array_equal(values[:, 0], keys)
            parts.append(keys)
            left -= count
        kv.barrier()
        return np.concatenate(parts), drawn(kv, groups * size)

    with open_server(scheme, workers=2) as server:
        for keys, expected in server.run(work):
            counts = occurrences(keys)
            assert not (counts % reuse).any()
            np.testing.assert_array_equal(counts, occurrences(expected) * reuse)
            assert_conform(counts // reuse, WEIGHTS)
            if scheme == "pool":  # no pass is in the order of another
                first, second = keys[:size], keys[size : 2 * size]
                assert (np.sort(first) == np.sort(second)).all() and (first != second).any()


def test_a_pool_draws_one_group_ahead_and_localizes_it():
    with open_server("pool") as server, server.worker() as kv:
        set_values(kv, server)
        if kv.rank == comm.size - 1:
            kv.finish_sample(kv.prepare_sample(1))
            kv.wait_all()
            assert kv.is_local(np.unique(drawn(kv, 40))).all()
        kv.barrier()


def test_postponed_keys_come_last_and_once():
    """Keys that are not here when their turn comes give way to those that are."""
    with open_server("postpone", weights=np.ones(40), shared_memory=False) as server, server.worker() as kv:
        if kv.rank == 0:
            kv.localize(KEYS).wait()
        kv.barrier()
        if kv.rank == comm.size - 1 and comm.size > 1:
            handle = kv.prepare_sample(200)
            kv.wait_all()
        kv.barrier()
        if kv.rank == 0:  # takes half of them away again
            kv.localize(KEYS[:25]).wait()
        kv.barrier()
        if kv.rank == comm.size - 1 and comm.size > 1:
            keys = kv.pull_sample(handle, 200).wait()[0]
            is_away = keys < 25
            assert is_away.any() and not is_away.all()
            assert (np.diff(is_away.astype(int)) >= 0).all()
            assert handle.left == 0
        kv.barrier()


def test_local_gives_what_is_here_in_the_right_proportions():
    def work(kv):
        set_values(kv, server)
        here = kv.is_local(np.arange(FIRST, FIRST + len(WEIGHTS)))
        kv.barrier()
        keys = pull_all(kv, 1500) if (here * WEIGHTS).any() else np.empty(0, int)
        kv.barrier()
        return keys, here

    with open_server("local", workers=2) as server:
        for keys, here in server.run(work):
            if len(keys):
                assert here[keys - FIRST].all()
                if ((here * WEIGHTS) > 0).sum() > 1:
                    assert_conform(occurrences(keys), WEIGHTS * here)


def test_local_pulls_from_other_ranks_if_nothing_is_here():
    with open_server("local", shared_memory=False) as server, server.worker() as kv:
        set_values(kv, server)
        if kv.rank == 0:
            kv.localize(KEYS).wait()
        kv.barrier()
        server.reset_stats()
        keys = pull_all(kv, 600)
        stats = server.stats()
        assert stats["sampled_keys"] == 600
        assert stats["sampled_local"] == (600 if kv.rank == 0 else 0)
        assert_conform(occurrences(keys), WEIGHTS)  # the last of many draws is as good as the first
        kv.barrier()


@every_scheme
def test_replicated_keys_are_sampled_like_others(scheme):
    """Some keys, the most frequent one among them, are replicated; frequencies are those of the whole distribution."""
    replicated = np.array([FIRST, FIRST + 6, FIRST + 8])

    def work(kv):
        set_values(kv, server)
        kv.wait_replica_sync()
        kv.barrier()
        here = kv.is_local(np.arange(FIRST, FIRST + len(WEIGHTS)))
        kv.barrier()
        keys = pull_all(kv, 600 * 16 if "reuse" in SCHEMES[scheme] else 1500, piece=50)
        kv.barrier()
        return keys, here

    with open_server(scheme, workers=2, replicated_keys=replicated) as server:
        for keys, here in server.run(work):
            counts = occurrences(keys)
            expected = WEIGHTS.copy()
            if scheme == "local" and comm.size > 1:
                relocated = ~np.isin(np.arange(FIRST, FIRST + len(WEIGHTS)), replicated)
                if not (expected * here)[relocated].any():
                    continue  # none of the others is here: they come from elsewhere
                share = expected[relocated].sum() / (expected * here)[relocated].sum()
                expected *= np.where(relocated, here * share, 1)
            assert_conform(counts // SCHEMES[scheme].get("reuse", 1), expected)


# The same draws for the same seed ----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["naive", "preloc", "pool"])
def test_draws_depend_on_seed_and_worker_alone_and_go_on_from_run_to_run(scheme):
    def work(kv, count):
        set_values(kv, server)
        keys = pull_all(kv, count)
        kv.barrier()
        return keys

    with open_server(scheme, workers=2) as server:
        in_one_run = server.run(work, 700)
        first = server.stats()["sampled_keys"]
        assert first == 1400
    with open_server(scheme, workers=2) as server:
        parts = [server.run(work, count) for count in (300, 400)]
    for worker_slot in range(2):
        np.testing.assert_array_equal(np.concatenate([part[worker_slot] for part in parts]), in_one_run[worker_slot])
    assert (in_one_run[0] != in_one_run[1]).any()
    with open_server(scheme, workers=2 * comm.size, comm=COMM_SELF) as server:
        alone = server.run(work, 700)
    for worker_slot in range(2):
        np.testing.assert_array_equal(alone[2 * comm.rank + worker_slot], in_one_run[worker_slot])


# Handles ----------------------------------------------------------------------------------------------


@every_scheme
def test_more_than_was_prepared_is_refused(scheme):
    with open_server(scheme) as server, server.worker() as kv:
        set_values(kv, server)
        handle = kv.prepare_sample(20)
        assert repr(handle) == "<lapse.Sample: 20 left of 20>" and handle.left == 20
        kv.pull_sample(handle, 15).wait()
        with pytest.raises(ValueError, match="6 keys .* 5 left of 20"):
            kv.pull_sample(handle, 6)
        with pytest.raises(ValueError, match=f"{10**12} keys .* 5 left of 20"):
            kv.pull_sample(handle, 10**12)
        kv.pull_sample(handle, 5).wait()
        with pytest.raises(ValueError, match="1 keys .* 0 left of 20"):
            kv.pull_sample(handle, 1)
        kv.pull_sample(handle, 0).wait()
        kv.finish_sample(handle)
        assert repr(handle) == "<lapse.Sample: finished>" and handle.left == 0
        for call in [lambda: kv.pull_sample(handle, 0), lambda: kv.finish_sample(handle)]:
            with pytest.raises(ValueError, match="finished"):
                call()
        empty = kv.prepare_sample(0)
        assert kv.pull_sample(empty, 0).wait()[0].shape == (0,)
        with pytest.raises(ValueError, match="1 keys .* 0 left of 0"):
            kv.pull_sample(empty, 1)
        kv.barrier()


@every_scheme
def test_handles_of_others_and_what_is_none(scheme):
    handles = {}

    def work(kv, server):
        handles[server, kv.id % 2] = kv.prepare_sample(5)
        kv.barrier()
        other = handles[server, 1 - kv.id % 2]
        foreign = next((handle for (owner, _), handle in handles.items() if owner is not server), other)
        for bad in [other, foreign]:
            with pytest.raises(ValueError, match="another worker or server"):
                kv.pull_sample(bad, 1)
            with pytest.raises(ValueError, match="another worker or server"):
                kv.finish_sample(bad)
        for bogus in [None, 3, "x", kv, 10**30]:
            with pytest.raises(ValueError, match="not a sample"):
                kv.pull_sample(bogus, 1)
            with pytest.raises(ValueError, match="not a sample"):
                kv.finish_sample(bogus)
        kv.barrier()

    with open_server(scheme, workers=2) as first, open_server(scheme, workers=2) as second:
        first.run(work, first)
        second.run(work, second)
    with pytest.raises(TypeError):
        lapse.Sample()


@every_scheme
def test_handles_end_with_their_worker_or_with_their_last_holder(scheme):
    kept = []

    def prepare(kv):
        for _ in range(20):
            kv.prepare_sample(3)
        gc.collect()
        kept.append(kv.prepare_sample(3))
        assert server._workers.samplers[0].num_open == 1
        kept.append(kv.prepare_sample(3))

    def use(kv):
        for handle in kept:
            assert handle.left == 0
            with pytest.raises(ValueError, match="finished"):
                kv.pull_sample(handle, 1)

    with open_server(scheme) as server:
        server.run(prepare)
        assert server._workers.samplers[0].num_open == 0
        server.run(use)


def test_stale_handles_are_told_from_those_that_take_their_place():
    with open_server("preloc") as server, server.worker() as kv:
        handles = [kv.prepare_sample(3) for _ in range(50)]
        for handle in handles[::2]:
            kv.finish_sample(handle)
        newer = [kv.prepare_sample(4) for _ in range(25)]
        assert [handle.left for handle in handles] == [0, 3] * 25
        assert [handle.left for handle in newer] == [4] * 25
        assert len({handle.number for handle in handles + newer}) == 75
        kv.barrier()


@pytest.mark.parametrize(
    "count, error",
    [
        (-1, ValueError),
        (2**62, ValueError),
        (1.0, TypeError),
        (True, TypeError),
        ("1", TypeError),
        (None, TypeError),
    ],
)
def test_counts_that_are_none(count, error):
    with open_server("pool") as server, server.worker() as kv:
        with pytest.raises(error, match="count"):
            kv.prepare_sample(count)
        handle = kv.prepare_sample(5)
        with pytest.raises(error):
            kv.pull_sample(handle, count)
        assert handle.left == 5
        kv.barrier()


def test_buffers_that_do_not_fit():
    with open_server("naive", 2) as server, server.worker() as kv:
        handle = kv.prepare_sample(5)
        read_only = np.empty(3, np.int64)
        read_only.flags.writeable = False
        for buffers, error, words in [
            (dict(keys=np.empty(3, np.int32)), TypeError, "int32.*int64"),
            (dict(keys=[0, 0, 0]), TypeError, "list"),
            (dict(keys=np.empty(4, np.int64)), ValueError, "4 elements.* 3 keys"),
            (dict(keys=np.empty(6, np.int64)[::2]), ValueError, "contiguous"),
            (dict(keys=read_only), ValueError, "read-only"),
            (dict(out=np.empty((3, 2))), TypeError, "float64.*float32"),
            (dict(out=np.empty((3, 3), "f4")), ValueError, r"\(3, 2\)"),
        ]:
            with pytest.raises(error, match=words):
                kv.pull_sample(handle, 3, **buffers)
        assert handle.left == 5
        kv.barrier()


# Servers ----------------------------------------------------------------------------------------------


def test_without_sampling_the_calls_say_what_is_missing():
    with lapse.Server(3, 1) as server, server.worker() as kv:
        assert server.sampling is None
        for call in [
            lambda: kv.prepare_sample(1),
            lambda: kv.pull_sample(0, 1),
            lambda: kv.finish_sample(0),
        ]:
            with pytest.raises(RuntimeError, match="sampling=lapse.Sampling"):
                call()
        kv.barrier()


def test_bad_sampling_is_an_error_on_every_rank():
    with pytest.raises(TypeError, match="lapse.Sampling"):
        lapse.Server(3, 1, sampling="pool")
    with pytest.raises(ValueError, match=r"0 \.\. 3, .* 0 \.\. 2"):
        lapse.Server(3, 1, sampling=lapse.Sampling("naive", lapse.Uniform(0, 4)))
    with pytest.raises(ValueError, match=r"1 \.\. 3"):
        lapse.Server(3, 1, sampling=lapse.Sampling("naive", lapse.Weighted([1, 1, 1], 1)))


@pytest.mark.parametrize("what", ["weights", "scheme", "none"])
def test_sampling_that_differs_between_ranks_is_an_error_on_all(what):
    if comm.size == 1:
        return
    weights = np.ones(1000)
    scheme = "pool"
    if comm.rank == comm.size - 1:
        weights[500] += what == "weights"
        scheme = "naive" if what == "scheme" else scheme
    sampling = lapse.Sampling(scheme, lapse.Weighted(weights))
    if comm.rank == 0 and what == "none":
        sampling = None
    with pytest.raises(ValueError, match="sampling differs between ranks"):
        lapse.Server(1000, 1, sampling=sampling)


@every_scheme
def test_counters(scheme):
    with open_server(scheme, workers=2) as server:
        server.run(lambda kv: (set_values(kv, server), pull_all(kv, 100), kv.barrier()))
        stats = server.stats(all_ranks=True)
        assert stats["sampled_keys"] == 200 * comm.size
        assert 0 < stats["sampled_local"] <= stats["sampled_keys"]
        for name in (
            "pulled_keys",
            "pulled_local",
            "pulled_in_transit",
            "localize_keys",
            "localize_local",
        ):
            assert stats[name] == 0
        if comm.size == 1:
            assert stats["sampled_local"] == stats["sampled_keys"]
        server.reset_stats()
        assert server.stats()["sampled_keys"] == server.stats()["sampled_local"] == 0
