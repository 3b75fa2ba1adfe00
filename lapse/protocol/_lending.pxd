"""Floor 2. Values that workers of this rank change where they are, between `lend_keys` and `take_keys_back`.

Of keys that are lent, and of what others do with them meanwhile, `_relocation` takes care.
"""

from libc.stdint cimport int64_t

from lapse.protocol._relocation cimport relocation_t
from lapse.base._types cimport key_t


cdef int64_t lend_keys(relocation_t* relocation, bint shared, const key_t* keys, int64_t count,
                       void** values) noexcept nogil
cdef int take_keys_back(relocation_t* relocation, const key_t* keys, int64_t count, void** values, int64_t* done,
                        int64_t* awaited) noexcept nogil
