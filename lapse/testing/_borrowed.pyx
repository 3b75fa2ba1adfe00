"""Floor 7. Borrowed values from Python, for tests: kernels borrow on the C level."""

from libc.stdlib cimport free, malloc
from libc.string cimport memset

import numpy as np

from lapse cimport Worker, key_t


cdef class Borrowed:
    """What a worker borrows of some keys, until `give_back`.

    Parameters
    ----------
    kv : Worker
    keys : sequence of int
    shared : bool
        Whether other workers of the rank may borrow the same values meanwhile.

    Attributes
    ----------
    arrays : list
        Per key, its value where it is, as an array; None if it was not lent.
    """

    cdef Worker kv
    cdef key_t* keys
    cdef void** addresses
    cdef Py_ssize_t count
    cdef readonly list arrays

    def __init__(self, Worker kv not None, keys, bint shared=False):
        cdef Py_ssize_t i
        cdef char[::1] memory
        self.kv, self.count = kv, len(keys)
        self.keys = <key_t*>malloc(max(self.count, 1) * sizeof(key_t))
        self.addresses = <void**>malloc(max(self.count, 1) * sizeof(void*))
        if self.keys == NULL or self.addresses == NULL:
            raise MemoryError(f"no memory for {self.count} keys")
        memset(self.addresses, 0, self.count * sizeof(void*))
        for i in range(self.count):
            self.keys[i] = keys[i]
        sizes = kv.store_object.value_length(np.asarray(keys, dtype=np.int64)) * kv.store_object.dtype.itemsize
        with nogil:
            kv.borrow_keys(self.keys, self.count, shared, self.addresses)
        self.arrays = []
        for i in range(self.count):
            if self.addresses[i] == NULL:
                self.arrays.append(None)
                continue
            memory = <char[:sizes[i]]><char*>self.addresses[i]
            self.arrays.append(np.asarray(memory).view(kv.store_object.dtype))

    def give_back(self):
        """Return what was lent; a second time does nothing."""
        self.arrays = []
        with nogil:
            self.kv.return_keys(self.keys, self.count, self.addresses)

    def give_back_again(self):
        """An error of the caller: return the first key though it was returned."""
        self.addresses[0] = <void*>1
        with nogil:
            self.kv.return_keys(self.keys, 1, self.addresses)

    def __dealloc__(self):
        free(self.keys)
        free(self.addresses)
