"""Floor 1. An address range: of this process alone, or one that other processes of the host can map too."""

from libc.stdint cimport uint64_t

import os
import secrets

from lapse.base._memory cimport map_shared, release, reserve


cdef class Segment:
    """Zeros, of which each page takes memory when it is first touched.

    Parameters
    ----------
    size : int
        Bytes, including SEGMENT_HEAD for the segment itself.
    shareable : bool
        Whether other processes of this host may want to map it. It then lies in a file that has no
        name and goes with the last process that maps it, so that no crash leaves anything behind, and
        that /dev/shm has nothing to do with. Where the system refuses that, the memory is private
        and `reason` says why.

    Raises
    ------
    MemoryError
        Where the address range cannot be had.
    """

    def __cinit__(self, size_t size=0, bint shareable=False):
        self.descriptor = -1
        if size == 0:
            return  # `open` makes one
        if shareable:
            self._make_file(size)
        if self.address == NULL:
            self.adopt(reserve(size), size)
        if self.address == NULL:
            raise MemoryError(f"cannot reserve {size} bytes of addresses")

    def _make_file(self, size):
        try:
            descriptor = os.memfd_create("lapse", os.MFD_CLOEXEC)
        except (AttributeError, OSError) as error:  # not Linux; no such right
            self.reason = f"no memory that has a descriptor: {error}"
            return
        try:
            os.ftruncate(descriptor, size)
        except OSError as error:
            self.reason = f"no shareable memory of {size} bytes: {error}"
            os.close(descriptor)
            return
        self.descriptor = descriptor
        self.adopt(map_shared(descriptor, size), size)
        if self.address == NULL:
            self.reason = f"{size} bytes of shareable memory cannot be mapped"
            self.hide()
        else:
            self.token()[0] = secrets.randbits(64)

    cdef void adopt(self, void* address, size_t size) noexcept:
        self.address = <char*>address
        self.size = size

    cdef uint64_t* token(self) noexcept:
        return <uint64_t*>self.address

    @property
    def ticket(self):
        """What another process of this host needs to `open` it; None where that is not possible."""
        if self.descriptor < 0:
            return None
        return os.getpid(), self.descriptor, self.size, self.token()[0]

    @staticmethod
    def open(ticket):
        """Map the segment of another process that has not hidden it yet.

        Parameters
        ----------
        ticket : tuple
            That segment's `ticket`.

        Returns
        -------
        Segment

        Raises
        ------
        OSError
            Where it cannot be had: processes that do not see each other (other containers, other users).
        """
        cdef Segment segment = Segment.__new__(Segment)
        process, descriptor, size, token = ticket
        path = f"/proc/{process}/fd/{descriptor}"
        with open(path, "r+b", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != size:
                raise OSError(f"{path} is another file than the one that was offered")
            segment.adopt(map_shared(file.fileno(), size), size)
        if segment.address == NULL:
            raise OSError(f"{size} bytes of {path} cannot be mapped")
        if segment.token()[0] != token:  # the same numbers in another container
            raise OSError(f"{path} is of another process than the one that offered it")
        return segment

    def hide(self):
        """Nobody else can map it from now on."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def __dealloc__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)
        if self.address != NULL:
            release(self.address, self.size)
