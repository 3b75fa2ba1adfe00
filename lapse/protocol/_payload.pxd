"""Floor 2. What a message or a parked operation carries behind its head to change a value, carried out."""

from libc.stdint cimport uint32_t

from lapse.messaging._messages cimport terms_in
from lapse._store cimport change_value, store_t
from lapse.base._types cimport GRADIENT, key_t, terms_of, terms_t


cdef inline void carry_out(store_t* store, key_t key, uint32_t* slot, int kind, const char* payload) noexcept nogil:
    """Push, set, or take a step with what is carried. Under the key's latch."""
    if kind == GRADIENT:
        change_value(store, key, slot, kind, payload + sizeof(terms_t), terms_in(payload))
    else:
        change_value(store, key, slot, kind, payload, terms_of(1))
