"""Every rank runs the stranger's kernel on the same keys; the sums are known."""

import numpy as np

import lapse
import stranger

NUM_KEYS, LENGTH = 50, 4


def work(kv):
    keys = np.arange(NUM_KEYS, dtype=np.int64)
    values = np.empty((NUM_KEYS, LENGTH), np.float32)
    if kv.id == 0:
        stranger.put(kv, keys, np.full((NUM_KEYS, LENGTH), 5, np.float32))
    kv.barrier()
    stranger.push_twice_and_pull(kv, keys, np.ones((NUM_KEYS, LENGTH), np.float32), values)
    assert (values >= 7).all()  # at least what was set and pushed here
    kv.barrier()
    stranger.pull_and_cancel(kv, keys, values, 200)
    assert (values[:, 0] == -1).all()  # a cancelled pull writes no more
    kv.barrier()
    return kv.pull(keys).wait()


with lapse.Server(NUM_KEYS, LENGTH) as server:
    result = server.run(work)[0]
    assert (result == 5 + 2 * server.size).all(), result
    if server.rank == 0:
        print(f"stranger: sums are right on {server.size} ranks")
