"""Floor 4. `access_batch` for a large batch, whose keys are shared by the threads of a call."""

from libc.stdint cimport int64_t, uint32_t

from lapse._store cimport store_t, tally_t
from lapse.base._types cimport key_t, terms_t
from lapse.worker._call_threads cimport CallThreads

cdef int64_t access_shared(CallThreads threads, store_t* store, int kind, const key_t* keys, int64_t count,
                           const int64_t* offsets, char* values, const float* weights, terms_t terms,
                           uint32_t* missed, tally_t* tally) noexcept nogil
