"""Floor 4. The counters of a rank, from wherever they are kept.

Each worker slot has counters of its own, which a reset clears. Those of messages, relocations and replicas belong to
whoever drives the communication and only grow; a reset notes where they are.
"""

from libc.stdint cimport int32_t, int64_t

import collections

import numpy as np

from lapse.protocol._rank cimport rank_t
from lapse.base._counting cimport clear_counters, copy_counters
from lapse.base._types cimport counters_t

_RUNNING = ("messages_sent", "bytes_sent", "messages_received", "bytes_received", "relocations_in", "relocations_out",
            "relocations_passed_on", "replica_syncs", "replica_keys_sent")
_WAITED = ("values", "rounds", "meetings")  # times, which are kept with the counters: "values_nanoseconds" ...


cdef class Counters:
    """What `Server.stats` reports of one rank.

    Parameters
    ----------
    comm : Comm
    protocol : Protocol
    """

    def __cinit__(self, Comm comm, Protocol protocol):
        self.comm = comm
        self.protocol = protocol
        self.zero = (0,) * len(_RUNNING)
        self.zero_bytes = 0

    def read(self):
        """The counters since the last reset: a dict of str to int."""
        counters = sum_of_workers(&self.protocol.c.rank)
        for reason in _WAITED:
            del counters[reason + "_nanoseconds"]
        counters.update(zip(_RUNNING, np.subtract(self.running(), self.zero).tolist()))
        return counters

    def waiting_times(self):
        """The seconds that workers have spent waiting since the last reset, added up, by what they waited for."""
        counters = sum_of_workers(&self.protocol.c.rank)
        return {reason: counters[reason + "_nanoseconds"] / 1e9 for reason in _WAITED}

    def bytes_sent_to(self):
        """The bytes sent to each rank since the last reset: an int64 array."""
        return np.subtract(self.comm.bytes_sent_to(), self.zero_bytes)

    def reset(self):
        """Let all counters start at zero."""
        cdef rank_t* state = &self.protocol.c.rank
        cdef int32_t i
        for i in range(state.num_worker_slots):
            clear_counters(<int64_t*>&state.worker_slots[i].counters, sizeof(counters_t))
        self.zero = self.running()
        self.zero_bytes = self.comm.bytes_sent_to()

    def running(self):
        """The counters that only grow, in the order of `_RUNNING`."""
        relocations = self.protocol.relocations
        return (*self.comm.traffic_counters(), relocations["arrived"], relocations["given_away"],
                relocations["passed_on"], *self.protocol.replica_counters)


cdef dict sum_of_workers(const rank_t* state):
    """The counters of this rank's workers, added up by name. The server's own calls do not count."""
    cdef int32_t i
    cdef counters_t copy
    total = collections.Counter()
    for i in range(state.num_worker_slots - 1):
        copy_counters(<int64_t*>&copy, <const int64_t*>&state.worker_slots[i].counters, sizeof(counters_t))
        total.update(<dict>copy)
    return dict(total)
