"""Floor 2. What a rank remembers of a key that it asked for in vain, and for how long it does not ask again.

A relocation is wasted if the key was taken away before a worker of this host used it, and a worker of this rank then
has to read or write it remotely; or if an operation of this rank had to wait for the key, and then it was passed on.
After two wasted relocations of a key in a row, the next localize of the key is declined; after three the next 3, then
7, 15, ... The first of them lets the key come to its home, where nobody is more than one message away from it. A
relocation that was of use begins this anew.

All of it is kept where there is room. While the key is here and unused, its state is UNUSED + 2 * (wasted relocations
before). While it is absent, its slot is a *memory*: of the wasted relocations, of whether the last one left unused
(then the next access shows that it was wasted), and of how many localizes are still to be declined.
"""

from libc.stdint cimport uint8_t, uint32_t

from lapse._store cimport UNUSED
from lapse.base._sync cimport put32
from lapse.storage._slabs cimport NO_SLOT

cdef enum:
    WASTED_MASK = 0xF
    LEFT_UNUSED = 0x10
    BRINGS_HOME = 0x20          # the next localize does
    ONE_TO_DECLINE = 0x40       # the count of localizes to decline begins with this bit
    MAX_WASTED = 8              # in a row, as far as they are counted: 127 localizes are declined then


cdef inline uint8_t state_on_arrival(uint8_t wasted) noexcept nogil:
    return <uint8_t>(UNUSED + 2 * wasted)


cdef inline uint8_t wasted_before(uint32_t memory) noexcept nogil:
    """The wasted relocations in a row that the slot of an absent key remembers."""
    return 0 if memory == NO_SLOT else <uint8_t>(memory & WASTED_MASK)


cdef inline uint32_t memory_of(uint8_t wasted, bint left_unused) noexcept nogil:
    """The slot of a key that leaves."""
    if left_unused:
        return wasted | LEFT_UNUSED
    return wasted if wasted else <uint32_t>NO_SLOT


cdef inline uint32_t memory_on_departure(uint8_t state) noexcept nogil:
    """The same, for a key that was owned here."""
    return memory_of(<uint8_t>((state - UNUSED) // 2), True) if state >= UNUSED else <uint32_t>NO_SLOT


cdef inline void note_remote_use(uint32_t* memory) noexcept nogil:
    """A worker needs a key that is absent: if it left unused, its relocation was wasted."""
    cdef uint32_t wasted, declined
    if memory[0] == NO_SLOT or not memory[0] & LEFT_UNUSED:
        return
    wasted = min((memory[0] & WASTED_MASK) + 1, <uint32_t>MAX_WASTED)
    declined = (<uint32_t>1 << (wasted - 1)) - 1
    put32(memory, wasted | (declined * ONE_TO_DECLINE | BRINGS_HOME if declined else 0))


cdef inline bint is_contended(uint32_t memory) noexcept nogil:
    """Whether the next localize is to be declined."""
    return memory != NO_SLOT and memory >= ONE_TO_DECLINE


cdef inline bint decline(uint32_t* memory) noexcept nogil:
    """Count a declined localize of a contended key; False if it is the first one, which brings the key home."""
    cdef bint brings_home = memory[0] & BRINGS_HOME != 0
    put32(memory, (memory[0] - ONE_TO_DECLINE) & ~<uint32_t>BRINGS_HOME)
    return not brings_home
