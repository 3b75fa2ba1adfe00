"""Floor 1. One function for each message that a rank sends of its own accord: nobody else fills in headers and records.

All inline; `outbox` is that of the receiver. NO_MEMORY means that nothing was queued. Answers that are written in place
(PULL_REPLY of many keys) use `open_frame`.
"""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

from lapse.messaging._messages cimport (ACK, APPLIED, BYE, CONTENDED, DELTA, FAILURE, GRADIENT_DELTA, HAND_OVER,
                                        LEAVING, LOCATE_REPLY, MAIL, PULL_REPLY, REPLACE, ROUND_END, ROUND_NEWS, SUM,
                                        SUMS_END, TRANSFER, TRANSFER_ZERO, header_t, make_header, record_t, sum_head_t,
                                        with_kind)
from lapse.messaging._outbox cimport append_count, append_in_two, append_last, append_record, outbox_t
from lapse.base._types cimport GRADIENT, LOCALIZE, LOCATE, PULL, key_t, operation_t, terms_t


# Requests and answers: the header names the operation that waits at the origin -----------------------------

cdef inline int send_request(outbox_t* outbox, header_t request, key_t key, uint32_t position, const char* value,
                             int64_t size) noexcept nogil:
    """PULL, PUSH, SET or GRADIENT of one key; a pull carries no value, that of a gradient has its terms in front."""
    return append_record(outbox, request, <uint32_t>key, position, value, 0 if request.kind == PULL else size)


cdef inline int send_own(outbox_t* outbox, header_t request, const operation_t* operation, key_t key, uint32_t position,
                         const char* value, int64_t size) noexcept nogil:
    """The same of one of this rank's operations, sent for the first time."""
    if operation.kind == GRADIENT:
        return append_in_two(outbox, request, <uint32_t>key, position, <const char*>&operation.terms, sizeof(terms_t),
                             value, size)
    return send_request(outbox, request, key, position, value, size)


cdef inline int send_pull_reply(outbox_t* outbox, header_t request, key_t key, uint32_t position, const char* value,
                                int64_t size) noexcept nogil:
    """`value` is NULL if it was never written."""
    return append_record(outbox, with_kind(request, PULL_REPLY), <uint32_t>key, position, value, size)


cdef inline int send_ack(outbox_t* outbox, header_t request, int64_t positions, int64_t credits) noexcept nogil:
    return append_count(outbox, with_kind(request, ACK), <uint32_t>positions, <uint64_t>credits)


cdef inline int send_contended(outbox_t* outbox, int32_t origin, uint64_t operation, key_t key) noexcept nogil:
    return append_record(outbox, make_header(CONTENDED, <uint16_t>origin, 0, operation), <uint32_t>key, 0, NULL, 0)


cdef inline int send_locate(outbox_t* outbox, int32_t origin, uint64_t operation, key_t key,
                            uint32_t position) noexcept nogil:
    return append_record(outbox, make_header(LOCATE, <uint16_t>origin, 0, operation), <uint32_t>key, position, NULL, 0)


cdef inline int send_locate_reply(outbox_t* outbox, header_t request, const record_t* asked,
                                  int32_t owner) noexcept nogil:
    return append_record(outbox, with_kind(request, LOCATE_REPLY), asked.key, asked.position, <char*>&owner,
                         sizeof(owner))


# Relocation: no operation, no position ---------------------------------------------------------------------

cdef inline int send_localize(outbox_t* outbox, int32_t requester, key_t key) noexcept nogil:
    return append_record(outbox, make_header(LOCALIZE, <uint16_t>requester, 0, 0), <uint32_t>key, 0, NULL, 0)


cdef inline int send_hand_over(outbox_t* outbox, int32_t requester, key_t key) noexcept nogil:
    return append_record(outbox, make_header(HAND_OVER, <uint16_t>requester, 0, 0), <uint32_t>key, 0, NULL, 0)


cdef inline int send_transfer(outbox_t* outbox, int32_t requester, key_t key, const char* value,
                              int64_t size) noexcept nogil:
    return append_record(outbox, make_header(TRANSFER, <uint16_t>requester, 0, 0), <uint32_t>key, 0, value, size)


cdef inline int send_transfer_zero(outbox_t* outbox, int32_t requester, key_t key) noexcept nogil:
    return append_record(outbox, make_header(TRANSFER_ZERO, <uint16_t>requester, 0, 0), <uint32_t>key, 0, NULL, 0)


# Replication -------------------------------------------------------------------------------------------------

cdef inline int send_delta(outbox_t* outbox, int32_t origin, key_t key, uint32_t epoch, const char* delta,
                           int64_t size) noexcept nogil:
    return append_record(outbox, make_header(DELTA, <uint16_t>origin, 0, 0), <uint32_t>key, epoch, delta, size)


cdef inline int send_gradient_delta(outbox_t* outbox, int32_t origin, key_t key, uint32_t epoch, sum_head_t head,
                                    const char* gradient, int64_t size) noexcept nogil:
    return append_in_two(outbox, make_header(GRADIENT_DELTA, <uint16_t>origin, 0, 0), <uint32_t>key, epoch,
                         <const char*>&head, sizeof(head), gradient, size)


cdef inline int send_round_end(outbox_t* outbox, int32_t origin, bint is_full) noexcept nogil:
    return append_record(outbox, make_header(ROUND_END, <uint16_t>origin, 0, 0), 0, is_full, NULL, 0)


cdef inline int send_round_news(outbox_t* outbox, int32_t origin) noexcept nogil:
    return append_record(outbox, make_header(ROUND_NEWS, <uint16_t>origin, 0, 0), 0, 0, NULL, 0)


cdef inline int send_sum(outbox_t* outbox, int32_t home, key_t key, const char* total, int64_t size) noexcept nogil:
    return append_record(outbox, make_header(SUM, <uint16_t>home, 0, 0), <uint32_t>key, 0, total, size)


cdef inline int send_sums_end(outbox_t* outbox, int32_t home) noexcept nogil:
    return append_record(outbox, make_header(SUMS_END, <uint16_t>home, 0, 0), 0, 0, NULL, 0)


cdef inline int send_replace(outbox_t* outbox, int32_t home, uint64_t pending_acks, key_t key, uint32_t epoch,
                             const char* value, int64_t size) noexcept nogil:
    return append_record(outbox, make_header(REPLACE, <uint16_t>home, 0, pending_acks), <uint32_t>key, epoch, value,
                         size)


cdef inline int send_applied(outbox_t* outbox, int32_t home, uint64_t pending_acks, uint32_t count) noexcept nogil:
    return append_count(outbox, make_header(APPLIED, <uint16_t>home, 0, pending_acks), count, 0)


# Between communication threads ---------------------------------------------------------------------------------

cdef inline int send_mail(outbox_t* outbox, int32_t origin, uint64_t number, const char* data,
                          int64_t size) noexcept nogil:
    """`number` differs from one to the next, so that two never share a frame."""
    return append_record(outbox, make_header(MAIL, <uint16_t>origin, 0, number), <uint32_t>size, 0, data, size)


cdef inline int send_leaving(outbox_t* outbox, int32_t origin) noexcept nogil:
    return append_record(outbox, make_header(LEAVING, <uint16_t>origin, 0, 0), 0, 0, NULL, 0)


cdef inline int send_failure(outbox_t* outbox, int32_t origin, const char* text, int64_t size) noexcept nogil:
    return append_last(outbox, make_header(FAILURE, <uint16_t>origin, 0, 0), text, size)


cdef inline int send_bye(outbox_t* outbox, int32_t origin) noexcept nogil:
    return append_last(outbox, make_header(BYE, <uint16_t>origin, 0, 0), NULL, 0)
