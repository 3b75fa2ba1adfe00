"""Floor 1. The table of message kinds, for Python: tools that show messages, and tests."""

from collections import namedtuple

from lapse.messaging._messages cimport frame_t, record_t

cdef extern from *:
    r"""
    #define LAPSE_KIND_ROW(name, number, flags, route, meaning) {number, flags, #name, route, meaning},
    static const struct lapse_kind_row { int number, flags; const char *name, *route, *meaning; } lapse_kind_rows[] = {
        LAPSE_MESSAGE_KINDS(LAPSE_KIND_ROW)
    };
    #define LAPSE_NUM_KINDS ((int)(sizeof(lapse_kind_rows) / sizeof(lapse_kind_rows[0])))
    """
    ctypedef struct kind_row_t "struct lapse_kind_row":
        int number
        int flags
        const char* name
        const char* route
        const char* meaning
    const kind_row_t kind_rows "lapse_kind_rows"[]
    int NUM_KINDS "LAPSE_NUM_KINDS"
    int RELOCATION "LAPSE_RELOCATION"
    int REPLICATION "LAPSE_REPLICATION"

MessageKind = namedtuple("MessageKind", ["name", "route", "meaning", "handled_by"])
"""A kind of message; `handled_by` is "relocation", "replication" or "communication"."""

FRAME_BYTES = sizeof(frame_t)
"""Bytes of a frame's header."""

RECORD_BYTES = sizeof(record_t)
"""Bytes of a record, without its value."""


def _handler_of(int flags):
    if flags & RELOCATION:
        return "relocation"
    return "replication" if flags & REPLICATION else "communication"


MESSAGE_KINDS = {
    kind_rows[i].number: MessageKind(
        kind_rows[i].name.decode(),
        kind_rows[i].route.decode(),
        kind_rows[i].meaning.decode(),
        _handler_of(kind_rows[i].flags),
    )
    for i in range(NUM_KINDS)
}
"""By number."""
