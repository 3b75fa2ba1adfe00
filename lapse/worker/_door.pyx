"""Floor 4. The C-level door: the calls of a worker as kernels make them, without the GIL."""

from lapse.base.checks import check_int

from libc.float cimport DBL_MAX
from libc.stdint cimport INT64_MAX, uint32_t

from lapse.base._types cimport PUSH, SET, TIMED_OUT, terms_of, terms_t
from lapse.worker._slot_operations cimport give_back, is_finished, let_go
from lapse.worker._waiter cimport check_caller, may_call, was_forked

cdef int64_t MAX_PREPARED = <int64_t>1 << 40    # keys of one sample


cdef class Door(Borrower):
    """The part of a worker that kernels use. Nothing of it is for users of Python."""

    cdef int pull_keys(self, const key_t* keys, Py_ssize_t count, void* out,
                       operation_t** operation) except -1 nogil:
        check_caller(self)
        self.first_bad_key(keys, count)
        return self.check(self.start_pull(keys, count, <char*>out, operation))

    cdef int push_keys(self, const key_t* keys, Py_ssize_t count, const void* updates,
                       operation_t** operation) except -1 nogil:
        check_caller(self)
        self.first_bad_key(keys, count)
        return self.check(self.start_change(PUSH, keys, count, <const char*>updates, NULL, operation))

    cdef int push_weighted_keys(self, const key_t* keys, Py_ssize_t count, const void* updates, const float* weights,
                                operation_t** operation) except -1 nogil:
        check_caller(self)
        self.first_bad_key(keys, count)
        return self.check(self.start_change(PUSH, keys, count, <const char*>updates, weights, operation))

    cdef int set_keys(self, const key_t* keys, Py_ssize_t count, const void* values,
                      operation_t** operation) except -1 nogil:
        check_caller(self)
        self.first_bad_key(keys, count)
        return self.check(self.start_change(SET, keys, count, <const char*>values, NULL, operation))

    cdef int apply_gradients_to(self, const key_t* keys, Py_ssize_t count, const void* gradients, double rate,
                                operation_t** operation) except -1 nogil:
        return self.apply_gradients_of_step(keys, count, gradients, rate, 0, operation)

    cdef int apply_gradients_of_step(self, const key_t* keys, Py_ssize_t count, const void* gradients, double rate,
                                     uint32_t step, operation_t** operation) except -1 nogil:
        cdef terms_t terms = terms_of(rate)
        terms.step = step
        check_caller(self)
        self.first_bad_key(keys, count)
        self.first_without_optimizer(keys, count)
        if rate < 0 or rate > DBL_MAX:
            with gil:
                raise ValueError(f"rate is {rate}, but must be from 0 to {DBL_MAX}, or NaN for the optimizer's own")
        return self.check(self.start_gradients(keys, count, <const char*>gradients, terms, False, operation))

    cdef int localize_keys(self, const key_t* keys, Py_ssize_t count, operation_t** operation) except -1 nogil:
        check_caller(self)
        self.first_bad_key(keys, count)
        return self.check(self.start_localize(keys, count, operation))

    cdef int wait_for(self, operation_t* operation) except -1 nogil:
        if operation == NULL:
            return 0
        check_caller(self)
        self.block_on_operation(operation, INT64_MAX)
        give_back(operation)
        return 0

    cdef bint test_for(self, operation_t* operation) noexcept nogil:
        # The handle stays the caller's: wait_for gives it back, or raises that this caller may not wait.
        if operation == NULL or not may_call(self):
            return True
        return self.comm.wait(self.worker_slot, is_finished, operation, 0) != TIMED_OUT

    cdef int sync_replicas(self) except -1 nogil:
        check_caller(self)
        return self.sync_all_replicas()

    cdef int wait_everything(self) except -1 nogil:
        check_caller(self)
        return self.block_on_own_operations()

    cdef void cancel(self, operation_t* operation) noexcept nogil:
        # Nobody waits for it any more, and nothing is written to its buffer from now on.
        if operation == NULL or was_forked():  # a child has buffers of its own
            return
        self.comm.cancel(operation)
        if may_call(self):
            let_go(operation, NULL)

    cdef void hold_messages(self) noexcept nogil:
        if may_call(self):
            self.holds_messages = True

    cdef void release_messages(self) noexcept nogil:
        if not may_call(self):
            return
        self.holds_messages = False
        self.comm.nudge(self.worker_slot, 0, True)

    cdef int64_t prepare_sample_of(self, Py_ssize_t count) except -1 nogil:
        check_caller(self)
        self.check_sampling()
        if count < 0 or count > MAX_PREPARED:
            with gil:
                self.check_sample_size(count, "count")
        return self.open_sample(count)

    cdef int pull_sample_of(self, int64_t sample, Py_ssize_t count, key_t* keys, void* out,
                            operation_t** operation) except -1 nogil:
        check_caller(self)
        self.check_sampling()
        return self.check(self.start_sampled_pull(self.sampler.find_with(sample, count), keys, count, <char*>out,
                                                  operation))

    cdef int choose_sample_of(self, int64_t sample, Py_ssize_t count, key_t* keys) except -1 nogil:
        check_caller(self)
        self.check_sampling()
        self.choose_keys(self.sampler.find_with(sample, count), keys, count)
        return 0

    cdef int finish_sample_of(self, int64_t sample) except -1 nogil:
        check_caller(self)
        self.check_sampling()
        self.sampler.close(self.sampler.find_with(sample, 0))
        return 0

    cdef int check_sampling(self) except -1 nogil:
        if self.sampler is None:
            with gil:
                raise RuntimeError("sampling is not enabled: create the server with "
                                   "Server(..., sampling=lapse.Sampling(scheme, distribution))")
        return 0

    cdef Py_ssize_t check_sample_size(self, object size, str name) except -1:
        return check_int(size, name, 0, MAX_PREPARED)
