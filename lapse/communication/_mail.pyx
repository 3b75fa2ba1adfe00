"""Floor 3. Mail: bytes from rank to rank, in order, for collective calls of Python. Not of the key protocol."""

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from lapse.base._sync cimport drop_latch, take_latch
from lapse.base._types cimport NO_MEMORY, OK
from lapse.messaging._messages cimport record_t, size_of_text
from lapse.messaging._senders cimport send_mail


#: Of a message that is posted: a frame counts its bytes in 32 bits.
MAX_LETTER_BYTES = 2**31


cdef class Mail:
    """What other ranks posted to this one.

    Parameters
    ----------
    protocol : Protocol
        The rank's outboxes.
    """

    def __cinit__(self, Protocol protocol):
        self.protocol = protocol
        self.state = &protocol.c.rank
        self.size = protocol.c.rank.size
        self.boxes = <mailbox_t*>calloc(self.size, sizeof(mailbox_t))
        if self.boxes == NULL:
            raise MemoryError(f"no memory for the mail of {self.size} ranks")

    def __dealloc__(self):
        cdef int32_t i
        cdef letter_t* letter
        for i in range(self.size if self.boxes != NULL else 0):
            while self.boxes[i].first != NULL:
                letter = self.boxes[i].first
                self.boxes[i].first = letter.next
                free(letter)
        free(self.boxes)

    cdef int deliver(self, int32_t source, frame_t* frame) noexcept nogil:
        """Keep what a frame brings until it is taken."""
        cdef mailbox_t* box = &self.boxes[source]
        cdef int64_t size = size_of_text(<record_t*>(frame + 1))
        cdef letter_t* letter = <letter_t*>malloc(sizeof(letter_t) + size)
        if letter == NULL:
            return NO_MEMORY
        letter.next = NULL
        letter.size = size
        memcpy(letter + 1, <char*>(frame + 1) + sizeof(record_t), size)
        take_latch(&self.latch)
        if box.first == NULL:
            box.first = letter
        else:
            box.last.next = letter
        box.last = letter
        drop_latch(&self.latch)
        return OK

    cdef bint has_mail(self, int32_t source) noexcept nogil:
        """Whether `take` would return bytes."""
        cdef bint found
        take_latch(&self.latch)
        found = self.boxes[source].first != NULL
        drop_latch(&self.latch)
        return found

    def post(self, int32_t destination, bytes data):
        """Queue bytes for another rank.

        Raises
        ------
        ValueError
            If these are more than `MAX_LETTER_BYTES`.
        MemoryError
            If there is no memory to queue them.
        """
        if len(data) > MAX_LETTER_BYTES:
            raise ValueError(f"a collective call exchanges {len(data)} bytes, but at most {MAX_LETTER_BYTES} are "
                             "possible: divide the array into several calls")
        cdef const char* pointer = PyBytes_AsString(data)
        self.posted += 1  # as the frame's operation: two of them never share a frame
        if send_mail(&self.state.outboxes[destination], self.state.rank, self.posted, pointer, len(data)) != OK:
            raise MemoryError(f"no memory for a message of {len(data)} bytes")

    def take(self, int32_t source):
        """The next bytes from a rank, or None if there are none yet."""
        cdef mailbox_t* box = &self.boxes[source]
        cdef letter_t* letter
        take_latch(&self.latch)
        letter = box.first
        if letter != NULL:
            box.first = letter.next
        drop_latch(&self.latch)
        if letter == NULL:
            return None
        data = PyBytes_FromStringAndSize(<char*>(letter + 1), letter.size)
        free(letter)
        return data
