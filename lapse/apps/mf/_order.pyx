"""A random order of items, group by group."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

import numpy as np

from lapse.base._random cimport next_below


def shuffle(const int32_t[::1] groups, int64_t num_groups, uint64_t seed):
    """Put items in order: group by group, at random inside each.

    Parameters
    ----------
    groups : array of int32, shape (n,)
        The group of each item, from 0 to `num_groups` - 1; n is below 2^32.
    num_groups
        How many groups there are.
    seed
        Of the random order.

    Returns
    -------
    order : array of int64, shape (n,)
        Numbers of items.
    ends : array of int64, shape (num_groups,)
        The end of each group in `order`.

    Raises
    ------
    IndexError
        If an item is of a group that does not exist.
    """
    cdef int64_t i, group, n = groups.shape[0]
    for i in range(n):
        if not 0 <= groups[i] < num_groups:
            raise IndexError(f"item {i} is of group {groups[i]}, but there are {num_groups} groups")
    order, ends = np.empty(n, np.int64), np.zeros(num_groups, np.int64)
    cdef int64_t[::1] order_view = order, ends_view = ends
    with nogil:
        sort_by_group(&groups[0], n, num_groups, &order_view[0], &ends_view[0])
        for group in range(num_groups):
            i = ends_view[group - 1] if group else 0
            shuffle_items(&order_view[i], ends_view[group] - i, &seed)
    return order, ends


cdef void sort_by_group(const int32_t* groups, int64_t n, int64_t num_groups, int64_t* order,
                        int64_t* ends) noexcept nogil:
    """Counting sort; `ends` is 0 before."""
    cdef int64_t i, group, begin = 0, size
    for i in range(n):
        ends[groups[i]] += 1
    for group in range(num_groups):
        size, ends[group] = ends[group], begin
        begin += size
    for i in range(n):
        order[ends[groups[i]]] = i
        ends[groups[i]] += 1


cdef void shuffle_items(int64_t* items, int64_t count, uint64_t* state) noexcept nogil:
    """Fisher and Yates."""
    cdef int64_t i, j
    for i in range(count - 1, 0, -1):
        j = next_below(state, <uint32_t>(i + 1))
        items[i], items[j] = items[j], items[i]
