"""Floor 1. What ranks tell each other: kinds of messages and their bytes.

A *packet* (one MPI message) holds whole frames one after another, or, for a frame above the packet
size, a part of one; the parts follow each other on the channel. A *frame* is a header and its
records. Requests name the operation that waits at the origin and each key's position in it, and
answers repeat both: they are matched by position, never by key, so that repeated keys are safe.

Everything lies at multiples of 4 bytes. All ranks are of one byte order.

The table of kinds below is the only one: numbers, flags and names are made from it, `_kinds` shows it to Python, and a
test compares the tables of `docs/protocol.md` and `docs/replication.md` with it. A new kind is a row there, a name in
the enum behind it, and a step in the module that handles it; `_senders` is the place for a function that sends it.
"""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from lapse.base._types cimport terms_t


cdef extern from *:
    r"""
    #ifndef LAPSE_MESSAGES
    #define LAPSE_MESSAGES
    #include <stdint.h>

    /* Flags: which module handles a kind, then how it travels. */
    enum {
        LAPSE_RELOCATION = 1,
        LAPSE_REPLICATION = 2,
        LAPSE_COMMUNICATION = 4,
        LAPSE_IN_PARTS = 8,     /* asks for values: answered part by part, while the first one is on its way */
        LAPSE_IN_BULK = 16      /* nobody waits for it: goes in as few packets as possible */
    };

    /* KIND(name, number, flags, from -> to, meaning). Numbers are below 64; the first six are also those of the
       operations in base/_types. */
    #define LAPSE_MESSAGE_KINDS(KIND) \
        KIND(PULL, 1, LAPSE_RELOCATION | LAPSE_IN_PARTS, "any -> home -> owner", \
             "send these values to the origin") \
        KIND(PUSH, 2, LAPSE_RELOCATION, "any -> home -> owner", \
             "add these values") \
        KIND(SET, 3, LAPSE_RELOCATION, "any -> home -> owner", \
             "replace the values by these; the home of a replicated key orders its sets") \
        KIND(LOCALIZE, 4, LAPSE_RELOCATION | LAPSE_IN_PARTS, "requester -> home", \
             "the origin wants to own these keys") \
        KIND(LOCATE, 5, LAPSE_RELOCATION, "any -> home", \
             "which ranks own these keys?") \
        KIND(GRADIENT, 7, LAPSE_RELOCATION, "any -> home -> owner", \
             "take a step of the optimizer with these gradients") \
        KIND(PULL_REPLY, 8, LAPSE_RELOCATION, "owner -> origin", \
             "the values") \
        KIND(ACK, 9, LAPSE_RELOCATION, "owner or home -> origin", \
             "this many pushes, sets, gradients or marks took effect") \
        KIND(HAND_OVER, 10, LAPSE_RELOCATION | LAPSE_IN_PARTS, "home -> last requester", \
             "give these keys to the origin once you have had them") \
        KIND(TRANSFER, 11, LAPSE_RELOCATION, "last owner -> requester", \
             "you own these keys now; here are the values") \
        KIND(TRANSFER_ZERO, 12, LAPSE_RELOCATION, "last owner -> requester", \
             "you own these keys now; they were never written") \
        KIND(LOCATE_REPLY, 13, LAPSE_RELOCATION, "home -> origin", \
             "the recorded owners") \
        KIND(CONTENDED, 14, LAPSE_RELOCATION, "any -> home", \
             "let these keys come to you, and ACK when they are there: ranks ask for them in vain") \
        KIND(MAIL, 16, LAPSE_COMMUNICATION, "any -> any", \
             "bytes of a collective call") \
        KIND(FAILURE, 17, LAPSE_COMMUNICATION, "any -> any", \
             "an error terminates the server; the last frame on its channel") \
        KIND(BYE, 18, LAPSE_COMMUNICATION, "any -> any", \
             "the server is closed; the last frame on its channel") \
        KIND(LEAVING, 19, LAPSE_COMMUNICATION, "any -> any", \
             "the interpreter of this rank exits and the server is open") \
        KIND(HEARTBEAT, 24, LAPSE_COMMUNICATION, "any -> any", \
             "this rank lives; sent to some ranks of other hosts to whom nothing was sent lately") \
        KIND(DELTA, 20, LAPSE_REPLICATION | LAPSE_IN_BULK, "any -> home", \
             "this rank's contribution to a replicated value") \
        KIND(SUM, 21, LAPSE_REPLICATION | LAPSE_IN_BULK, "home -> all", \
             "what the contributions of all ranks come to") \
        KIND(REPLACE, 22, LAPSE_REPLICATION | LAPSE_IN_BULK, "home -> all", \
             "a replicated value was set; answer with APPLIED") \
        KIND(SUMS_END, 23, LAPSE_REPLICATION | LAPSE_IN_BULK, "home -> all", \
             "these were all sums of this home's round") \
        KIND(APPLIED, 25, LAPSE_REPLICATION, "any -> home", \
             "this many REPLACE records were carried out") \
        KIND(ROUND_END, 26, LAPSE_REPLICATION | LAPSE_IN_BULK, "any -> all", \
             "these were all contributions of this rank's round") \
        KIND(ROUND_NEWS, 27, LAPSE_REPLICATION, "between ranks that share memory", \
             "to the leader: a round is due; from it: wake those who wait for rounds") \
        KIND(GRADIENT_DELTA, 28, LAPSE_REPLICATION | LAPSE_IN_BULK, "any -> home", \
             "the sum of this rank's gradients of a replicated value")

    #define LAPSE_KIND_NUMBER(name, number, flags, route, meaning) LAPSE_##name = number,
    enum { LAPSE_MESSAGE_KINDS(LAPSE_KIND_NUMBER) LAPSE_NO_KIND };

    #define LAPSE_KIND_NAME(name, number, flags, route, meaning) case number: return #name;
    static inline const char* lapse_name_of_kind(uint32_t kind) {
        switch (kind) { LAPSE_MESSAGE_KINDS(LAPSE_KIND_NAME) default: return "unknown"; }
    }

    #define LAPSE_KIND_BIT(flag, number, flags) | ((flags) & (flag) ? UINT64_C(1) << (number) : 0)
    #define LAPSE_REPLICATION_BIT(name, number, flags, route, meaning) LAPSE_KIND_BIT(LAPSE_REPLICATION, number, flags)
    #define LAPSE_IN_PARTS_BIT(name, number, flags, route, meaning) LAPSE_KIND_BIT(LAPSE_IN_PARTS, number, flags)
    #define LAPSE_IN_BULK_BIT(name, number, flags, route, meaning) LAPSE_KIND_BIT(LAPSE_IN_BULK, number, flags)
    #define LAPSE_HAS_BIT(bits, kind) ((kind) < 64 && (((bits) >> (kind)) & 1))
    static inline int lapse_is_of_replication(uint32_t kind) {
        return LAPSE_HAS_BIT((UINT64_C(0) LAPSE_MESSAGE_KINDS(LAPSE_REPLICATION_BIT)), kind);
    }
    static inline int lapse_is_answered_in_parts(uint32_t kind) {
        return LAPSE_HAS_BIT((UINT64_C(0) LAPSE_MESSAGE_KINDS(LAPSE_IN_PARTS_BIT)), kind);
    }
    static inline int lapse_goes_in_bulk(uint32_t kind) {
        return LAPSE_HAS_BIT((UINT64_C(0) LAPSE_MESSAGE_KINDS(LAPSE_IN_BULK_BIT)), kind);
    }

    typedef uint64_t lapse_u64 __attribute__((aligned(4), may_alias));
    #define LAPSE_HEADER_FIELDS \
        union { \
            struct { uint16_t origin; uint16_t credited_to; uint32_t kind; }; \
            lapse_u64 word; \
        }; \
        lapse_u64 operation;
    typedef struct __attribute__((packed, aligned(4))) { LAPSE_HEADER_FIELDS } lapse_header;
    typedef struct __attribute__((packed, aligned(4))) {
        uint32_t bytes;
        uint32_t count;
        union {
            struct __attribute__((packed, aligned(4))) { LAPSE_HEADER_FIELDS };
            lapse_header header;
        };
    } lapse_frame;
    _Static_assert(sizeof(lapse_header) == 16 && sizeof(lapse_frame) == 24, "headers have no padding");

    /* Made, compared and copied by words. To read as a whole what was just written in parts makes the processor wait
       for its store buffer, which costs a sixth of the home's time for a localize. */
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define LAPSE_HEADER_WORD(kind, origin, credited_to) \
        ((uint64_t)(kind) << 32 | (uint64_t)(credited_to) << 16 | (uint64_t)(origin))
    #define LAPSE_KIND_MASK UINT64_C(0xFFFFFFFF00000000)
    #else
    #define LAPSE_HEADER_WORD(kind, origin, credited_to) \
        ((uint64_t)(origin) << 48 | (uint64_t)(credited_to) << 32 | (uint64_t)(kind))
    #define LAPSE_KIND_MASK UINT64_C(0xFFFFFFFF)
    #endif
    static inline lapse_header lapse_make_header(uint32_t kind, uint16_t origin, uint16_t credited_to,
                                                 uint64_t operation) {
        lapse_header header;
        header.word = LAPSE_HEADER_WORD(kind, origin, credited_to);
        header.operation = operation;
        return header;
    }
    static inline lapse_header lapse_with_kind(lapse_header header, uint32_t kind) {
        header.word = (header.word & ~LAPSE_KIND_MASK) | LAPSE_HEADER_WORD(kind, 0, 0);
        return header;
    }
    static inline void lapse_set_header(lapse_frame* frame, lapse_header header) {
        frame->word = header.word;
        __asm__ volatile("" ::: "memory");  /* no load of both words at once */
        frame->operation = header.operation;
    }
    typedef struct __attribute__((packed, aligned(4))) { uint32_t key; uint32_t position; } lapse_record;

    /* An address as messages name it: with a check in the 16 bits that addresses of programs do not use. */
    #define LAPSE_ADDRESS_MASK UINT64_C(0xFFFFFFFFFFFF)
    static inline uint64_t lapse_check_of_address(uint64_t address) {
        return (address * UINT64_C(0x9E3779B97F4A7C15) >> 48) << 48;
    }
    static inline uint64_t lapse_name_of_address(const void* address) {
        return (uint64_t)(uintptr_t)address | lapse_check_of_address((uint64_t)(uintptr_t)address);
    }
    static inline void* lapse_address_in(uint64_t name) {
        return (void*)(uintptr_t)(name & LAPSE_ADDRESS_MASK);
    }
    static inline int lapse_is_name_of_address(uint64_t name) {
        uint64_t address = name & LAPSE_ADDRESS_MASK;
        return address && !(address & 7) && (name & ~LAPSE_ADDRESS_MASK) == lapse_check_of_address(address);
    }
    #endif
    """
    enum message_kind:
        # PULL, PUSH, SET, LOCALIZE, LOCATE, GRADIENT: the operations in base/_types
        PULL_REPLY "LAPSE_PULL_REPLY"
        ACK "LAPSE_ACK"
        HAND_OVER "LAPSE_HAND_OVER"
        TRANSFER "LAPSE_TRANSFER"
        TRANSFER_ZERO "LAPSE_TRANSFER_ZERO"
        LOCATE_REPLY "LAPSE_LOCATE_REPLY"
        CONTENDED "LAPSE_CONTENDED"
        MAIL "LAPSE_MAIL"
        FAILURE "LAPSE_FAILURE"
        BYE "LAPSE_BYE"
        LEAVING "LAPSE_LEAVING"
        HEARTBEAT "LAPSE_HEARTBEAT"
        DELTA "LAPSE_DELTA"
        SUM "LAPSE_SUM"
        REPLACE "LAPSE_REPLACE"
        SUMS_END "LAPSE_SUMS_END"
        APPLIED "LAPSE_APPLIED"
        ROUND_END "LAPSE_ROUND_END"
        ROUND_NEWS "LAPSE_ROUND_NEWS"
        GRADIENT_DELTA "LAPSE_GRADIENT_DELTA"

    bint is_of_replication "lapse_is_of_replication"(uint32_t kind) noexcept nogil
    bint is_answered_in_parts "lapse_is_answered_in_parts"(uint32_t kind) noexcept nogil
    bint goes_in_bulk "lapse_goes_in_bulk"(uint32_t kind) noexcept nogil
    const char* name_of_kind "lapse_name_of_kind"(uint32_t kind) noexcept nogil

    # What waits for an answer is named by its address: a frame that is damaged names none, but once in 65,536 times.
    uint64_t name_of_address "lapse_name_of_address"(const void* address) noexcept nogil
    void* address_in "lapse_address_in"(uint64_t name) noexcept nogil
    bint is_name_of_address "lapse_is_name_of_address"(uint64_t name) noexcept nogil

    ctypedef uint64_t loose_u64 "lapse_u64"
    ctypedef struct header_t "lapse_header":
        uint16_t origin         # the rank that asked first
        uint16_t credited_to    # the destination whose share of the origin's bytes in flight this counts to
        uint32_t kind
        uint64_t operation      # name of the origin's, or of a home's pending acknowledgements; 0 in relocations
        uint64_t word           # the three fields above, to compare them
    ctypedef struct frame_t "lapse_frame":
        uint32_t bytes          # with this header
        uint32_t count          # records; see also `positions_of`
        header_t header         # its fields are also the frame's own:
        uint16_t origin
        uint16_t credited_to
        uint32_t kind
        uint64_t word
        uint64_t operation
    ctypedef struct record_t "lapse_record":
        uint32_t key            # see also `size_of_text`
        uint32_t position       # in the operation; see also `epoch_of`, `is_of_full_round`

    header_t make_header "lapse_make_header"(uint32_t kind, uint16_t origin, uint16_t credited_to,
                                             uint64_t operation) noexcept nogil
    header_t with_kind "lapse_with_kind"(header_t header, uint32_t kind) noexcept nogil
    void set_header "lapse_set_header"(frame_t* frame, header_t header) noexcept nogil


cdef inline bint is_whole(const char* data, int64_t size) noexcept nogil:
    """Whether these bytes begin with a whole frame."""
    return size >= <int64_t>sizeof(frame_t) and <int64_t>sizeof(frame_t) <= (<const frame_t*>data).bytes <= size


# Fields that mean something else in some kinds -------------------------------------------------------------

cdef inline uint32_t epoch_of(const record_t* record) noexcept nogil:
    """DELTA, GRADIENT_DELTA, REPLACE: how often the key had been set."""
    return record.position


cdef inline bint is_of_full_round(const record_t* record) noexcept nogil:
    """ROUND_END: whether the round leaves no change behind, whatever its size and the key's level."""
    return record.position


cdef inline int64_t size_of_text(const record_t* record) noexcept nogil:
    """MAIL, FAILURE, BYE: the bytes behind the record, without what pads them."""
    return record.key


cdef struct sum_head_t:
    # GRADIENT_DELTA: in front of the value.
    double rates            # the learning rates of all calls, added up
    double calls
    uint64_t step           # the largest of all calls


cdef inline terms_t terms_in(const char* payload) noexcept nogil:
    """GRADIENT: what is in front of the value."""
    cdef terms_t terms
    memcpy(&terms, payload, sizeof(terms))
    return terms


cdef inline char* value_behind(record_t* record) noexcept nogil:
    return <char*>(record + 1)


cdef inline int64_t positions_of(const frame_t* frame) noexcept nogil:
    """ACK, APPLIED: how many key positions took effect; there are no records."""
    return frame.count


cdef inline int64_t credits_of(frame_t* frame) noexcept nogil:
    """ACK: the bytes that are not in flight any more."""
    return <int64_t>(<loose_u64*>(frame + 1))[0]
