"""Floor 0. The last thing a process does: finalize MPI, and not wait for ever if it has failed."""


cdef void tell_launcher(int status) noexcept nogil  # MPICH's: it ends all ranks that it can reach, with this status
