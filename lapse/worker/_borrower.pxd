"""Floor 4. Values that a worker changes where they are: they stay on this rank, in place, until it returns them.
"""

from lapse.worker._caller cimport Caller
from lapse.base._types cimport key_t


cdef class Borrower(Caller):
    # `borrow_keys` gives the address of each value that is here and not lent, or NULL, and returns how many are NULL.
    # It never waits, but for a round, if replicas are lent and this rank runs ahead of the others. Until `return_keys`
    # nobody else changes the value: pushes and sets wait for the return, and pulls see the value as it is. With
    # `shared`, several workers of the rank may have it together: of what they change at the same time a part may then
    # get lost, as in any memory that threads share. Addresses of values of one length are multiples of their size
    # apart. A worker that has borrowed values may not wait for anything: others may wait for them. `return_keys` takes
    # back what has an address, and sets it to NULL. The weights of changes to replicas are those of
    # `push_weighted_keys`, and 0 says that a replica was not changed.
    cdef Py_ssize_t borrow_keys(self, const key_t* keys, Py_ssize_t count, bint shared, void** values) except -1 nogil
    cdef int return_keys(self, const key_t* keys, Py_ssize_t count, void** values) except -1 nogil
    cdef int return_weighted_keys(self, const key_t* keys, Py_ssize_t count, const float* weights,
                                  void** values) except -1 nogil
