"""Floor 4. Values that a worker changes where they are."""

from libc.stdint cimport int64_t
from libc.string cimport memset

from lapse.protocol._lending cimport lend_keys, returned_t, take_keys_back
from lapse.protocol._rounds cimport note_pushes, runs_ahead
from lapse.worker._waiter cimport check_caller
from lapse.base._counting cimport add_to
from lapse.base._types cimport FAILED, OK


cdef class Borrower(Caller):
    """One thread that borrows values. A borrowed value counts as pulled, a returned one as pushed."""

    cdef Py_ssize_t borrow_keys(self, const key_t* keys, Py_ssize_t count, bint shared, void** values) except -1 nogil:
        cdef int64_t lent
        memset(values, 0, count * sizeof(void*))
        check_caller(self)
        self.first_bad_key(keys, count)
        self.check(self.may_start(NULL))
        if self.store.replicas.can_lend and not self.num_borrowed and runs_ahead(&self.protocol.replication.rounds):
            self.check(self.wait_for_round())
        lent = count - lend_keys(&self.protocol.relocation, shared, keys, count, values)
        self.num_borrowed += lent
        add_to(&self.worker_slot.counters.pulled_keys, lent)
        add_to(&self.worker_slot.counters.pulled_local, lent)
        return count - lent

    cdef int return_keys(self, const key_t* keys, Py_ssize_t count, void** values) except -1 nogil:
        return self.return_weighted_keys(keys, count, NULL, values)

    cdef int return_weighted_keys(self, const key_t* keys, Py_ssize_t count, const float* weights,
                                  void** values) except -1 nogil:
        cdef returned_t returned
        cdef int64_t i, done, number = 0
        cdef int status
        check_caller(self)
        for i in range(count):
            if values[i] != NULL:
                self.first_bad_key(keys + i, 1)
                number += 1
        if number > self.num_borrowed:
            with gil:
                raise ValueError(f"{number} values are returned, but worker {self.id} has borrowed "
                                 f"{self.num_borrowed}: return each once")
        status = take_keys_back(&self.protocol.relocation, keys, count, weights, values, &done, &returned)
        for i in range(done, count):
            number -= values[i] != NULL
        self.num_borrowed -= number
        add_to(&self.worker_slot.counters.pushed_keys, number)
        add_to(&self.worker_slot.counters.pushed_local, number)
        if returned.replicated and status == OK:
            status = note_pushes(&self.protocol.replication.rounds, returned.replicated)
        if returned.awaited or returned.replicated:
            self.nudge(returned.awaited + returned.replicated)
        if status == FAILED:
            with gil:
                raise ValueError(f"key {keys[done]} is not lent: return what borrow_keys gave an address for, once")
        return self.check(status)
