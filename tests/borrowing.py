"""What tests of borrowed values share."""

import time

import numpy as np
from lapse.testing._borrowed import Borrowed


def add_two(kv, keys, random, chance):
    """Borrow keys and add 2 to each that is lent, in two steps, between which others may come to it by chance.

    Returns what was added to each key: 2, or 0 if it was not lent.
    """
    borrowed = Borrowed(kv, keys.tolist())
    added = np.zeros(len(keys))
    for place, array in enumerate(borrowed.arrays):
        if array is not None:
            added[place] = 2
            array += 1
            if random.random() < chance:
                time.sleep(1e-5)
            array += 1
    borrowed.give_back()
    return added
