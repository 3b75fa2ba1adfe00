"""Floor 2. Whether a message is what it says, looked at before anything in it is used.

What ranks send each other is right, but for a defect: of a memory, a network, a program that writes where it must not.
Then the job ends by an error that names the message and its sender, not by a crash or a value in the wrong place. One
look along the records of a frame costs a fraction of a nanosecond for each, and brings them into the cache.

Who enters: the thread that drives the communication.
"""

from libc.stdint cimport int32_t

from lapse.messaging._messages cimport frame_t
from lapse.protocol._protocol cimport protocol_t

cdef int check_frame(protocol_t* protocol, int32_t source, const frame_t* frame) noexcept nogil
