"""Floor 1. What ranks tell each other: kinds of messages and their bytes.

A *packet* (one MPI message) holds whole frames one after another, or, for a frame above the packet
size, a part of one; the parts follow each other on the channel. A *frame* is a header and its
records. Requests name the operation that waits at the origin and each key's position in it, and
answers repeat both: they are matched by position, never by key, so that repeated keys are safe.

Everything lies at multiples of 4 bytes. All ranks are of one byte order.

==============  =========================  ======================================================
kind            sender -> receiver         meaning
==============  =========================  ======================================================
PULL            any -> home -> owner       send these values to `origin`
PUSH, SET       any -> home -> owner       add, or replace; each record carries the value
PULL_REPLY      owner -> origin            the values
ACK             owner -> origin            `count` pushes or sets took effect
LOCALIZE        requester -> home          `origin` wants to own these keys
HAND_OVER       home -> last requester     give the keys to `origin` when you have had them
TRANSFER        last owner -> requester    you own the key now; here is the value
TRANSFER_ZERO   last owner -> requester    the same for a key that was never written
LOCATE           any -> home                who owns these keys?
LOCATE_REPLY     home -> origin             the ranks, as int32
DELTA           any -> home                this rank's contribution to a replicated value
SUM             home -> all                the sum of contributions; `position`: yours is in it
ROUND_END       any -> all homes           these were all contributions of this rank's round
REPLACE         home -> all                a replicated value was set; answer with APPLIED
MARK            any -> home                send the sums you have, tell me when all ranks have them
FENCE           home -> all                answer with APPLIED: all that I sent before is in place
APPLIED         any -> home                `count` times REPLACE or FENCE was carried out
MAIL            any -> any                 bytes for collective calls; not of the key protocol
LEAVING         any -> all                 this rank's interpreter ends and the server is open
FAILURE         any -> any                 an error ends the server; the last frame on its channel
BYE             any -> any                 an orderly end; the last frame on its channel
==============  =========================  ======================================================
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef enum message_kind:
    # PULL = 1, PUSH = 2, SET = 3, LOCALIZE = 4, LOCATE = 5: as the operations in _types
    PULL_REPLY = 8
    ACK = 9
    HAND_OVER = 10
    TRANSFER = 11
    TRANSFER_ZERO = 12
    LOCATE_REPLY = 13
    MAIL = 16
    FAILURE = 17
    BYE = 18
    LEAVING = 19
    DELTA = 20          # this and what follows: _replication
    SUM = 21
    REPLACE = 22
    MARK = 23
    FENCE = 24
    APPLIED = 25
    ROUND_END = 26


cdef extern from *:
    r"""
    #ifndef LAPSE_MESSAGES
    #define LAPSE_MESSAGES
    #include <stdint.h>
    typedef uint64_t lapse_u64 __attribute__((aligned(4), may_alias));
    typedef struct __attribute__((packed, aligned(4))) {
        uint32_t bytes;
        uint32_t count;
        uint16_t origin;
        uint16_t credited_to;
        uint32_t kind;
        lapse_u64 operation;
    } lapse_frame;
    typedef struct __attribute__((packed, aligned(4))) { uint32_t key; uint32_t position; } lapse_record;
    #endif
    """
    ctypedef uint64_t loose_u64 "lapse_u64"
    ctypedef struct frame_t "lapse_frame":
        uint32_t bytes      # with this header
        uint32_t count      # records; for ACK and APPLIED: key positions
        uint16_t origin     # the rank that asked first
        uint16_t credited_to    # whose share of the origin's bytes in flight this counts to
        uint32_t kind
        uint64_t operation  # the origin's, or a home's pending_acks; 0 in relocations
    ctypedef struct record_t "lapse_record":
        uint32_t key
        uint32_t position   # in the operation; of a replica its epoch, or whether the sum contains your contribution
