"""Floor 7. What a kernel may do wrong, and threads that want one latch at once, for tests."""

from libc.stdint cimport int64_t, uint8_t

from lapse cimport Worker, key_t, operation_t
from lapse.base._sync cimport drop_latch, peek8, try_latch_as

CALLS = ("pull_keys", "push_keys", "push_weighted_keys", "set_keys", "localize_keys", "borrow_keys", "return_keys",
         "wait_for", "sync_replicas", "wait_everything", "prepare_sample_of", "pull_sample_of", "choose_sample_of",
         "finish_sample_of")


def call_door(Worker kv, name):
    """Make one of the `CALLS` for key 0, with values of up to 64 elements."""
    cdef key_t keys[1]
    cdef float values[64]
    cdef float weights[1]
    cdef void* addresses[1]
    cdef operation_t never
    keys[0] = 0
    weights[0] = 1
    values[0] = 0
    addresses[0] = NULL
    if name == "pull_keys":
        kv.pull_keys(keys, 1, values, NULL)
    elif name == "push_keys":
        kv.push_keys(keys, 1, values, NULL)
    elif name == "push_weighted_keys":
        kv.push_weighted_keys(keys, 1, values, weights, NULL)
    elif name == "set_keys":
        kv.set_keys(keys, 1, values, NULL)
    elif name == "localize_keys":
        kv.localize_keys(keys, 1, NULL)
    elif name == "borrow_keys":
        kv.borrow_keys(keys, 1, True, addresses)
    elif name == "return_keys":
        kv.return_keys(keys, 1, addresses)
    elif name == "wait_for":
        kv.wait_for(&never)
    elif name == "sync_replicas":
        kv.sync_replicas()
    elif name == "wait_everything":
        kv.wait_everything()
    elif name == "prepare_sample_of":
        kv.prepare_sample_of(1)
    elif name == "pull_sample_of":
        kv.pull_sample_of(0, 1, keys, values, NULL)
    elif name == "choose_sample_of":
        kv.choose_sample_of(0, 1, keys)
    elif name == "finish_sample_of":
        kv.finish_sample_of(0)
    else:
        raise ValueError(name)


cdef class Contention:
    """A latch that several threads want."""

    cdef uint8_t latch

    def count_overwritten(self, uint8_t holder, int64_t times):
        """Take the latch so often; how often it named another holder meanwhile. For several threads at once."""
        cdef int64_t taken = 0, overwritten = 0
        cdef int _i
        with nogil:
            while taken < times:
                if not try_latch_as(&self.latch, holder):
                    continue
                taken += 1
                for _i in range(50):
                    if peek8(&self.latch) != holder:
                        overwritten += 1
                        break
                drop_latch(&self.latch)
        return overwritten
