"""The models in C (`_scores.h`): what training and ranking share."""

from libc.stdint cimport int64_t

cdef extern from "lapse/apps/kge/_product.h":
    pass

cdef extern from "lapse/apps/kge/_scores.h":
    enum:
        KGE_PANEL, KGE_CHUNK, KGE_COMPLEX, KGE_DISTMULT, KGE_RESCAL, KGE_TRANSE, KGE_SUBJECT, KGE_OBJECT


cdef inline int model_number(str name) except -1:
    return {"complex": KGE_COMPLEX, "distmult": KGE_DISTMULT, "rescal": KGE_RESCAL, "transe": KGE_TRANSE}[name]


cdef inline int64_t pad(int64_t n) noexcept nogil:
    """`n`, rounded up to what rows and numbers of rows are padded to."""
    return (n + KGE_PANEL - 1) // KGE_PANEL * KGE_PANEL
