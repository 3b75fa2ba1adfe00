"""Floor 4. What users pass as keys and values, as arrays that C code can use."""

cimport numpy as cnp
from libc.stdint cimport int64_t

cdef cnp.ndarray as_keys(keys, int64_t num_keys)
