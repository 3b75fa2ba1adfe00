"""Every rank runs the stranger's kernel on the same keys; the sums are known."""

import numpy as np
import stranger

import lapse

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


def sample(kv):
    keys, values = np.empty(10, np.int64), np.empty((10, LENGTH), np.float32)
    if kv.id == 0:
        every = np.arange(NUM_KEYS, dtype=np.int64)
        start = np.repeat(every, LENGTH).reshape(NUM_KEYS, LENGTH)
        stranger.put(kv, every, start.astype(np.float32))
    kv.barrier()
    stranger.sample(kv, keys, values, 30)
    assert (keys >= 20).all() and (values == keys[:, None]).all(), (keys, values)
    for refused in (lambda: stranger.pull_too_many(kv, keys, values), lambda: stranger.use_finished(kv)):
        try:
            refused()
        except ValueError as error:
            assert "9 left of 9" in str(error) or "finished" in str(error), error
        else:
            raise AssertionError("a sample was pulled that has no keys left")
    kv.barrier()


with lapse.Server(NUM_KEYS, LENGTH) as server:
    result = server.run(work)[0]
    assert (result == 5 + 2 * server.size).all(), result
    for scheme in ("naive", "preloc", "pool", "local"):
        sampling = lapse.Sampling(
            scheme, lapse.Uniform(20, NUM_KEYS), **(dict(reuse=2, group_size=15) if scheme == "pool" else {})
        )
        with lapse.Server(NUM_KEYS, LENGTH, sampling=sampling) as other:
            other.run(sample)
    if server.rank == 0:
        print(f"stranger: sums are right on {server.size} ranks")
