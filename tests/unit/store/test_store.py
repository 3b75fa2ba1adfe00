"""Values against numpy, whatever their length; homes; memory."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from lapse.testing._virtual_rank import VirtualRank

import lapse
from lapse._store import Store

LENGTHS = [
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    33,
    64,
    100,
    127,
    255,
    256,
    257,
    500,
    1000,
    1025,
    5000,
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", LENGTHS)
def test_push_set_and_pull_do_what_numpy_does(length, dtype):
    random = np.random.default_rng(length)
    expected = np.zeros((13, length), dtype)
    with lapse.Server(13, length, dtype) as server, server.worker() as kv:
        for _ in range(6):
            keys = random.integers(0, 13, 9)
            values = random.normal(size=(9, length)).astype(dtype)
            kv.push(keys, values)
            np.add.at(expected, keys, values)
            keys = random.permutation(13)[:3]
            kv.set(keys, values[:3])
            expected[keys] = values[:3]
            keys = random.integers(0, 13, 20)
            np.testing.assert_array_equal(kv.pull(keys).wait(), expected[keys])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_of_many_lengths_in_one_call(dtype):
    random = np.random.default_rng(0)
    lengths = random.permutation(np.repeat(LENGTHS, 3))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    expected = np.zeros(starts[-1], dtype)
    with lapse.Server(len(lengths), lengths, dtype) as server, server.worker() as kv:
        for _ in range(10):
            keys = random.integers(0, len(lengths), 15)
            places = [np.arange(starts[key], starts[key + 1]) for key in keys]
            values = random.normal(size=lengths[keys].sum()).astype(dtype)
            kv.push(keys, values)
            np.add.at(expected, np.concatenate(places), values)
            np.testing.assert_array_equal(kv.pull(keys).wait(), expected[np.concatenate(places)])
            kv.set(keys[::-1], values)
            for place, part in zip(places[::-1], np.split(values, np.cumsum(lengths[keys[::-1]]))):
                expected[place] = part
            np.testing.assert_array_equal(kv.pull(range(len(lengths))).wait(), expected)


def test_what_was_never_written_reads_as_zeros():
    with lapse.Server(1000, 3) as server, server.worker() as kv:
        out = np.full((1000, 3), np.nan, "f4")
        assert (kv.pull(range(1000), out=out).wait() == 0).all()
        kv.push(500, [1, 1, 1]).wait()
        assert kv.pull(range(1000)).wait().sum() == 3


def test_special_numbers_pass_unchanged():
    values = np.array([[np.nan, np.inf, -np.inf, -0.0, 5e-324, 1e308]])
    with lapse.Server(2, 6, "float64") as server, server.worker() as kv:
        kv.set([1], values).wait()
        assert kv.pull([1]).wait().tobytes() == values.tobytes()


def move(ranks, key, winner):
    """Let one rank localize a key until it has come (not at once if it is contended), and carry all messages."""
    for _ in range(200):
        call = ranks[winner].begin("localize", [key])
        ranks[winner].step(call)
        carry(ranks)
        assert call.done
        if ranks[winner].state(key) == "owned":
            return
    pytest.fail(f"key {key} does not come to rank {winner}")


def carry(ranks):
    moved = True
    while moved:
        moved = False
        for source in ranks:
            for target in ranks:
                while (packet := source.take(target.rank)) is not None:
                    target.deliver(source.rank, packet)
                    moved = True


def ask(ranks, rank, kind, keys, values=None):
    call = ranks[rank].begin(kind, keys, values)
    while not ranks[rank].step(call):
        pass
    carry(ranks)
    assert call.done
    return call.values


@pytest.mark.parametrize("lengths", [3, [3] * 6 + [2] * 6], ids=["uniform", "two lengths"])
def test_a_place_that_is_used_again_begins_at_zero(lengths):
    """A key that was never written takes the row that a written one has left."""
    lengths = lengths if isinstance(lengths, int) else np.array(lengths)
    ranks = [VirtualRank(rank, 2, 12, lengths) for rank in range(2)]
    random = np.random.default_rng(1)
    expected = {key: np.zeros_like(ask(ranks, 0, "pull", [key])) for key in range(12)}
    for _ in range(300):
        key, rank = int(random.integers(12)), int(random.integers(2))
        kind = str(random.choice(["move", "move", "push", "set", "pull"]))
        values = random.integers(1, 9, expected[key].size).astype(float)
        if kind == "move":
            move(ranks, key, rank)
        elif kind == "pull":
            np.testing.assert_array_equal(ask(ranks, rank, "pull", [key]), expected[key])
        else:
            ask(ranks, rank, kind, [key], values)
            expected[key] = values if kind == "set" else expected[key] + values
    for key in range(12):
        np.testing.assert_array_equal(ask(ranks, 0, "pull", [key]), expected[key])


@pytest.mark.parametrize("length", [1, 7, 300])
def test_threads_that_add_to_the_same_values_lose_nothing(length):
    """Real threads, without the GIL; a value is never seen half written."""

    def work(kv):
        for _ in range(300):
            keys = kv.rng.integers(0, 4, 6)
            kv.push(keys, np.ones((6, length)))
            values = kv.pull(keys).wait()
            assert (values == values[:, :1]).all(), "a torn value"

    with lapse.Server(4, length, "float64", workers=6) as server:
        server.run(work)
        with_all = server.run(lambda kv: kv.pull(range(4)).wait().sum())
        assert with_all == [6 * 300 * 6 * length] * 6


# Homes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_keys", [1, 2, 3, 5, 8, 17, 64, 100, 1000, 4097, 10_000])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8, 16])
def test_every_home_has_its_equal_share_of_the_keys(num_keys, ranks):
    homes = Store(num_keys, 1, "float32", 0, ranks).home(np.arange(num_keys))
    counts = np.bincount(homes, minlength=ranks)
    assert counts.sum() == num_keys and counts.max() - counts.min() <= 1


@pytest.mark.parametrize("stride", [2, 3, 4, 5, 8, 10, 16, 64, 100])
@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8])
def test_keys_with_a_common_stride_do_not_share_a_home(stride, ranks):
    """Of 200 keys each home has its share, up to five standard deviations of a random choice."""
    keys = np.arange(0, 200 * stride, stride)
    counts = np.bincount(Store(200 * 100, 1, "float32", 0, ranks).home(keys), minlength=ranks)
    share = 200 / ranks
    assert np.abs(counts - share).max() <= 5 * np.sqrt(share * (1 - 1 / ranks))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_range_of_keys_spreads_over_all_homes(ranks):
    homes = Store(10_000, 1, "float32", 0, ranks).home(np.arange(10_000))
    for first in range(0, 10_000, 200):
        counts = np.bincount(homes[first : first + 200], minlength=ranks)
        assert np.abs(counts - 200 / ranks).max() <= 5 * np.sqrt(200 / ranks)


def test_all_ranks_agree_on_homes_and_own_what_is_theirs():
    stores = [Store(100, 1, "float32", rank, 3) for rank in range(3)]
    homes = stores[0].home(np.arange(100))
    for rank, store in enumerate(stores):
        assert (store.home(np.arange(100)) == homes).all()
        assert store.local_keys().tolist() == np.flatnonzero(homes == rank).tolist()
        assert (store.is_here(np.arange(100)) == (homes == rank)).all()


# Memory ------------------------------------------------------------------------------------------

MEASURE = """
import os, sys
import numpy as np
import lapse
from mpi4py import MPI

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

KEYS, LENGTH = 4_000_000, 16
lapse.Server(100, 1).close()
before = resident()
lengths = np.full(KEYS, LENGTH) if sys.argv[1] == "variable" else LENGTH
if sys.argv[1] == "variable":
    lengths[0] = 1
    before = resident()
server = lapse.Server(KEYS, lengths)
print((resident() - before) / KEYS)
with server.worker() as kv:
    values = np.ones(16 * 100_000, "f4")
    before = resident()
    for first in range(100_000, KEYS, 100_000):
        kv.push(np.arange(first, first + 100_000), values).wait()
    print((resident() - before) / KEYS)
    before = resident()
    for first in range(100_000, KEYS, 100_000):
        kv.push(np.arange(first, first + 100_000), values).wait()
    print((resident() - before) / KEYS)
server.close()
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("lengths, most", [("uniform", 10), ("variable", 14)])
def test_bytes_per_key(lengths, most):
    """8 for the directory and what is small; 4 more with lengths of their own; the values once."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, lengths],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=os.path.dirname(os.path.dirname(lapse.__file__)),
    )
    assert run.returncode == 0, run.stderr
    empty, filled, again = map(float, run.stdout.split())
    assert 8 <= empty <= most
    assert filled <= 64 * 1.1
    assert again <= 2


def test_a_server_gives_its_memory_back():
    def create():
        with lapse.Server(200_000, 50) as server, server.worker() as kv:
            kv.push(range(200_000), np.ones((200_000, 50), "f4")).wait()

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    create()
    before = resident()
    for _ in range(4):
        create()
        gc.collect()
    assert resident() - before < 100 << 20  # four of them would hold 160 MB


def test_operations_leave_no_memory_behind():
    """Dropped, waited for and local ones, of all kinds, from several threads."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def work(kv):
        for _ in range(3000):
            kv.push([1, 2], np.ones((2, 100), "f4"))
            kv.pull([1, 2, 3]).wait()
            kv.localize([4, 5])
            kv.set([1, 1], np.ones((2, 100), "f4"))

    with lapse.Server(10, 100, workers=2) as server:
        server.run(work)
        before = resident()
        server.run(work)
        server.run(work)
        assert resident() - before < 8 << 20


def test_the_memory_of_a_shareable_store_may_be_in_huge_pages():
    """For that it begins at a multiple of their size; all of the directory is written, in pages of either size."""
    keys, huge_page = 1_000_000, 2 << 20
    store = Store(keys, 2, "f4", rank=0, size=2, shareable=True)
    if store.ticket is None:
        pytest.skip(f"no shareable memory: {store.reason}")
    with open("/proc/self/maps") as file:
        starts = [int(line.split("-")[0], 16) for line in file if "memfd:lapse" in line]
    assert starts and all(start % huge_page == 0 for start in starts)
    assert np.array_equal(store.local_keys(), np.flatnonzero(store.home(np.arange(keys)) == 0))
