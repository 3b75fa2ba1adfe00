"""A latch names its holder from the moment it is taken until it is dropped: who waits for a dead one reads that."""

import threading

from lapse.testing._faults import Contention


def test_a_latch_that_many_want_names_its_holder():
    contention, overwritten = Contention(), []
    threads = [
        threading.Thread(
            target=lambda holder=holder: overwritten.append(contention.count_overwritten(holder, 1_000_000))
        )
        for holder in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overwritten == [0, 0, 0]
