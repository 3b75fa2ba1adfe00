"""The order of training: Latin squares, even cuts, every rating once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.apps._shared import streams
from lapse.apps.mf import _order, schedule
from lapse.apps.mf.schedule import LatinSquare

WORKERS = [1, 2, 3, 4, 7, 16, 30]


def counts(columns=20, seed=0):
    return np.random.default_rng(seed).zipf(1.5, columns).clip(max=1000)


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("workers", WORKERS)
def test_every_worker_has_every_block_once_and_no_two_the_same_at_a_time(workers, epoch):
    square = LatinSquare(counts(), workers, seed=1, epoch=epoch)
    table = np.array([[square.block(w, s) for s in range(workers)] for w in range(workers)])
    for line in (*table, *table.T):
        assert sorted(line) == list(range(workers))


@pytest.mark.parametrize("workers", WORKERS)
def test_no_two_workers_train_a_column_in_the_same_sub_epoch(workers):
    rng = np.random.default_rng(0)
    shares = [rng.integers(0, 20, 50).astype(np.int32) for _ in range(workers)]
    orders = []
    for worker, columns in enumerate(shares):
        square = LatinSquare(counts(), workers, 1, 5)
        orders.append(square.orders(worker, rng.integers(0, 9, 50).astype(np.int32), columns, 1000, rng))
        assert sorted(np.concatenate(orders[-1])) == list(range(50))
    for sub_epoch in range(workers):
        used = [set(columns[order[sub_epoch]]) for columns, order in zip(shares, orders)]
        assert sum(map(len, used)) == len(set().union(*used))


def test_rows_of_a_large_block_come_in_groups():
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 100, 4000).astype(np.int32), rng.integers(0, 20, 4000).astype(np.int32)
    square = LatinSquare(np.bincount(columns), 2, 1, 0)
    for order in square.orders(0, rows, columns, 500, rng):
        used = [set(rows[order[i : i + 500]]) for i in range(0, len(order), 500)]
        assert len(used) >= 3 and all(len(some) <= 75 for some in used)  # a fourth, or two groups at a border
        assert not used[0] & used[-1]


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(0, 2**64 - 1))
def test_shuffled_items_stay_in_their_groups(groups, seed):
    groups = np.array(groups, np.int32)
    order, ends = _order.shuffle(groups, 5, seed)
    assert sorted(order) == list(range(len(groups)))
    assert (np.diff(groups[order]) >= 0).all()
    assert ends.tolist() == np.cumsum(np.bincount(groups, minlength=5)).tolist()


def test_shuffled_items_are_anywhere_in_their_group():
    places = [_order.shuffle(np.zeros(4, np.int32), 1, seed)[0].tolist() for seed in range(4000)]
    counts = np.array([np.bincount(column, minlength=4) for column in zip(*places, strict=True)])
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)
    with pytest.raises(IndexError):
        _order.shuffle(np.array([1], np.int32), 1, 0)


def test_blocks_differ_from_epoch_to_epoch_and_agree_between_workers():
    blocks = [LatinSquare(counts(), 4, 1, epoch).block_of for epoch in (0, 0, 1)]
    assert np.array_equal(blocks[0], blocks[1])
    assert not np.array_equal(blocks[0], blocks[2])


@given(st.lists(st.integers(0, 100), min_size=1, max_size=60), st.integers(1, 70))
def test_parts_are_about_even(sizes, parts):
    sizes = np.array(sizes)
    part_of = schedule.cut_evenly(sizes, parts)
    assert part_of.dtype == np.int32
    assert (np.diff(part_of) >= 0).all() and part_of.min() >= 0 and part_of.max() < parts
    loads = np.bincount(part_of, sizes, parts)
    assert loads.max() <= sizes.sum() / parts + sizes.max() + 1


def test_items_without_ratings_are_shared_out_too():
    assert np.bincount(schedule.cut_evenly(np.zeros(9, np.int64), 3)).tolist() == [3, 3, 3]


def test_columnwise_takes_each_column_at_once():
    columns = np.random.default_rng(0).integers(0, 12, 300).astype(np.int32)
    order = schedule.columnwise_order(columns, 12, streams.generator(1, 0, 0, schedule.ORDER))
    assert sorted(order) == list(range(300))
    assert (np.diff(columns[order]) != 0).sum() == len(set(columns)) - 1
    assert (np.diff(order) < 0).any()


def test_plain_takes_all_in_an_order_of_its_own_for_each_worker_and_epoch():
    orders = [
        schedule.plain_order(50, streams.generator(1, epoch, worker, schedule.ORDER)).tolist()
        for epoch, worker in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(50))
