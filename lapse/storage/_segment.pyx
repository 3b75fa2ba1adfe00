"""Floor 1. An address range: private to this process, or one that other processes of the host can map."""

from libc.stdint cimport uint64_t

import os
import secrets

from lapse.base._memory cimport map_shared, release, reserve


cdef class Segment:
    """Zero-filled memory, each page of which is allocated when it is first touched.

    Parameters
    ----------
    size : int
        Bytes, including SEGMENT_HEAD for the segment itself.
    shareable : bool
        Whether other processes of this host may map it. It is then backed by a file without a name (`memfd_create`),
        which disappears with the last process that maps it, also after a crash, and does not use /dev/shm. If the
        system refuses that, the memory is private and `reason` says why.

    Raises
    ------
    MemoryError
        If the address range cannot be reserved.
    """

    def __cinit__(self, size_t size=0, bint shareable=False):
        self.descriptor = -1
        if size == 0:
            return  # `open` maps one
        if shareable:
            self._make_file(size)
        if self.address == NULL:
            self.adopt(reserve(size), size)
        if self.address == NULL:
            raise MemoryError(f"cannot reserve {size} bytes of address space (see ulimit -v)")

    def _make_file(self, size):
        try:
            descriptor = os.memfd_create("lapse", os.MFD_CLOEXEC)
        except (AttributeError, OSError) as error:  # not Linux, or not permitted
            self.reason = f"memfd_create failed: {error}"
            return
        try:
            os.ftruncate(descriptor, size)
        except OSError as error:
            self.reason = f"cannot allocate {size} bytes of shareable memory: {error}"
            os.close(descriptor)
            return
        self.descriptor = descriptor
        self.adopt(map_shared(descriptor, size), size)
        if self.address == NULL:
            self.reason = f"cannot map {size} bytes of shareable memory"
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
        """What another process of this host needs to `open` it; None if that is not possible."""
        if self.descriptor < 0:
            return None
        return os.getpid(), self.descriptor, self.size, self.token()[0]

    @staticmethod
    def open(ticket):
        """Map the segment of another process, which must not have called `hide` yet.

        Parameters
        ----------
        ticket : tuple
            The `ticket` of that segment.

        Returns
        -------
        Segment

        Raises
        ------
        OSError
            If it cannot be mapped: the process belongs to another container or user, for example.
        """
        cdef Segment segment = Segment.__new__(Segment)
        process, descriptor, size, token = ticket
        path = f"/proc/{process}/fd/{descriptor}"
        with open(path, "r+b", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != size:
                raise OSError(f"{path} is not the file that the other rank offered: its size differs")
            segment.adopt(map_shared(file.fileno(), size), size)
        if segment.address == NULL:
            raise OSError(f"cannot map {size} bytes of {path}")
        if segment.token()[0] != token:  # the same process id in another container
            raise OSError(f"{path} belongs to another process than the one that offered it (in another container?)")
        return segment

    def hide(self):
        """Close the descriptor: no further process can map the segment."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def __dealloc__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)
        if self.address != NULL:
            release(self.address, self.size)
