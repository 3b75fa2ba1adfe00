"""Floor 7. What a sampler finds in a store, for tests, which have no worker."""

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset

import numpy as np

from lapse._store cimport Store, tally_t
from lapse.base._types cimport key_t
from lapse.sampling._sampler cimport Sampler, batch_t, sample_t


def pull_here(Sampler sampler, Store store, int64_t count):
    """Prepare and take a sample: its keys, and whether each was here. No key moves. All values have one length."""
    cdef batch_t batch
    cdef tally_t tally
    keys, missed = np.empty(count + 1, dtype=np.int64), np.empty(count + 1, dtype=np.uint32)
    cdef key_t[::1] key_view = keys
    cdef uint32_t[::1] missed_view = missed
    cdef char[::1] values = bytearray((count + 1) * store.c.slabs[0].row_bytes)
    cdef sample_t* sample = sampler.find_with(sampler.open(count), count)
    memset(&tally, 0, sizeof(tally_t))
    while sampler.draw_ahead(sample, &batch):
        pass
    sampler.hand_out(sample, &store.c, &key_view[0], count)
    misses = sampler.read_here(&store.c, &key_view[0], count, NULL, &values[0], &missed_view[0], &tally)
    sampler.close(sample)
    found = np.ones(count, dtype=np.bool_)
    found[missed[:misses]] = False
    return keys[:count], found
