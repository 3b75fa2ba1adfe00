"""Floor 2. Values that workers of this rank change where they are, between `lend_keys` and `take_keys_back`.

Of owned keys that are lent, and of what others do with them meanwhile, `_relocation` takes care; of replicas
`lapse/storage/_replicas.pyx`.
"""

from libc.stdint cimport int64_t

from lapse.protocol._relocation cimport relocation_t
from lapse.base._types cimport key_t


cdef struct returned_t:
    int64_t awaited         # owned keys for whose return somebody waited
    int64_t replicated      # replicas that were changed, which counts as a push


cdef int64_t lend_keys(relocation_t* relocation, bint shared, const key_t* keys, int64_t count,
                       void** values) noexcept nogil
cdef int take_keys_back(relocation_t* relocation, const key_t* keys, int64_t count, const float* weights,
                        void** values, int64_t* done, returned_t* returned) noexcept nogil
