"""Ranks of true entities among all entities, for the evaluation of knowledge-graph embeddings."""

from libc.stdint cimport int64_t

import numpy as np

from lapse.apps.kge._scores cimport KGE_CHUNK, KGE_OBJECT, KGE_PANEL, KGE_SUBJECT, model_number, pad

cdef extern from "_ranking.h" nogil:
    void kge_queries(int model, int asked, int64_t n, const float* entities, const float* relations,
                     const int64_t* rows, int64_t relation_length, float* queries, int64_t dim, int64_t padded)
    void kge_pack_entities(int64_t columns, const float* e, int64_t padded, float* panels)
    void kge_score_entities(int model, int norm, int64_t queries, const float* q, int64_t columns, const float* e,
                            const float* panels, int64_t padded, float* scores, int64_t step)
    ctypedef struct kge_place:
        int64_t higher, equal
    void kge_add_place(kge_place* place, float score, float wanted, int64_t times)
    void kge_add_places(kge_place* place, int64_t n, const float* scores, float wanted)

#: Which entity of a triple a query asks for.
SUBJECT, OBJECT = KGE_SUBJECT, KGE_OBJECT


def queries(str model, int asked, const float[:, ::1] entities, const float[:, ::1] relations,
            const int64_t[::1] rows, int64_t dim):
    """The queries of entities that are known and relations.

    Parameters
    ----------
    asked
        `SUBJECT` or `OBJECT`: the entity that is asked for.
    entities : shape (n, padded)
        See `padded`.
    relations : shape (m, relation_length)
    rows : array of int64, shape (n,)
        Which of `relations` each query has.

    Returns
    -------
    array of float32, shape (n, padded)
    """
    result = np.zeros((entities.shape[0], entities.shape[1]), dtype=np.float32)
    cdef float[:, ::1] out = result
    cdef int number = model_number(model)
    cdef int64_t i
    _check(entities.shape[0] == rows.shape[0] and dim <= entities.shape[1], "queries")
    for i in range(rows.shape[0]):
        _check(0 <= rows[i] < relations.shape[0], "queries")
    if entities.shape[0]:
        with nogil:
            kge_queries(number, asked, entities.shape[0], &entities[0, 0], &relations[0, 0], &rows[0],
                        relations.shape[1], &out[0, 0], dim, entities.shape[1])
    return result


def scores(str model, int norm, const float[:, ::1] queries, const float[:, ::1] entities):
    """The scores of entities for queries.

    Parameters
    ----------
    queries : shape (n, padded)
    entities : shape (m, padded)
        m a multiple of 16 (`padded` rows of zeros at the end).

    Returns
    -------
    array of float32, shape (n, m)
    """
    result = np.empty((queries.shape[0], entities.shape[0]), dtype=np.float32)
    cdef float[:, ::1] out = result
    cdef int64_t m = entities.shape[0], p = entities.shape[1]
    cdef float[::1] panels = np.empty(max(m * p, 1), dtype=np.float32)
    cdef int number = model_number(model)
    _check(queries.shape[1] == p and p % KGE_PANEL == 0 and m % KGE_PANEL == 0, "scores")
    if result.size:
        with nogil:
            kge_pack_entities(m, &entities[0, 0], p, &panels[0])
            kge_score_entities(number, norm, queries.shape[0], &queries[0, 0], m, &entities[0, 0], &panels[0], p,
                               &out[0, 0], m)
    return result


def pair_scores(str model, int norm, const float[:, ::1] queries, const float[:, ::1] entities):
    """The score of each query for one entity of its own, to the last bit as in `scores`; shape (n,)."""
    cdef int64_t first, i, n = queries.shape[0], p = queries.shape[1]
    result = np.empty(n, dtype=np.float32)
    cdef float[::1] out = result
    cdef float[:, ::1] some = np.zeros((KGE_PANEL, p), dtype=np.float32)
    cdef float[:, ::1] each
    _check(n == entities.shape[0] and p == entities.shape[1] and p % KGE_PANEL == 0, "pair_scores")
    for first in range(0, n, KGE_PANEL):
        some[: min(KGE_PANEL, n - first)] = entities[first : first + KGE_PANEL]
        each = scores(model, norm, queries[first : first + KGE_PANEL], some)
        for i in range(each.shape[0]):
            out[first + i] = each[i, i]
    return result


cdef enum:
    RANKED_AT_ONCE = 512    # entities: their panels and a chunk's scores stay in the second-level cache


cdef class Ranks:
    """Ranks of the true entities of queries, from scores of entities that arrive in blocks, in ascending order.

    Parameters
    ----------
    targets : array of int64, shape (n,)
        The true entity of each query.
    target_scores : array of float32, shape (n,)
        Its score, as `pair_scores` has it.
    rows, entities : arrays of int64, shape (m,)
        Entity ``entities[i]`` is left out of the filtered rank of query ``rows[i]``; in ascending order.

    Attributes
    ----------
    raw, filtered : arrays of float64, shape (n,)
        From 1 on; entities with an equal score count half, so that it is the mean of the next two (Berrendorf et al.
        call it the realistic rank: *On the Ambiguity of Rank-Based Evaluation of Entity Alignment or Link Prediction
        Methods*, 2020).
    optimistic, pessimistic : arrays of float64, shape (n,)
        The filtered ranks if entities with an equal score do not count, and if they count as higher.

    Notes
    -----
    A score that is not a number counts as higher than all, that of a true entity as lower than all: a model that
    has diverged must not look good.
    """

    cdef const int64_t[::1] targets
    cdef const int64_t[::1] entities
    cdef float[::1] wanted
    cdef int64_t[::1] next              # per query: the first of `entities` that has not arrived
    cdef const int64_t[::1] ends
    cdef int64_t[:, ::1] places         # per query: a `kge_place` of all entities,
    cdef int64_t[:, ::1] left_out       # and of those that the filter leaves out

    def __init__(self, targets, target_scores, rows, entities):
        bounds = np.searchsorted(rows, np.arange(len(targets) + 1))
        _check(len(targets) == len(target_scores) and len(entities) == len(rows), "Ranks")
        self.targets, self.entities = (np.ascontiguousarray(array, np.int64) for array in (targets, entities))
        self.wanted = np.nan_to_num(target_scores, nan=np.finfo(np.float32).min, posinf=np.inf,
                                    neginf=-np.inf).astype(np.float32)
        self.next, self.ends = bounds[:-1].copy(), bounds[1:]
        self.places, self.left_out = np.zeros((2, len(targets), 2), np.int64)

    @property
    def raw(self):
        return 1 + np.asarray(self.places) @ [1, 0.5]

    @property
    def filtered(self):
        return self._filtered(0.5)

    @property
    def optimistic(self):
        return self._filtered(0.0)

    @property
    def pessimistic(self):
        return self._filtered(1.0)

    def _filtered(self, double equal):
        """With such a weight of equal scores."""
        return 1 + (np.asarray(self.places) - np.asarray(self.left_out)) @ [1, equal]

    def count(self, int64_t first, const float[:, :] scores):
        """Take the scores (n, m) of entities `first` .. `first` + m - 1; a row's lie side by side."""
        cdef int64_t i
        _check(scores.shape[0] == self.targets.shape[0] and scores.strides[1] == sizeof(float), "Ranks.count")
        with nogil:
            for i in range(scores.shape[0]):
                self._take(i, first, scores.shape[1], &scores[i, 0])

    def score(self, str model, int norm, const float[:, ::1] queries, int64_t first, int64_t count,
              const float[:, ::1] entities):
        """Take `count` entities from `first` on, whose vectors are in the first rows of `entities`.

        Shapes as in `scores`.
        """
        cdef int64_t m = entities.shape[0], p = entities.shape[1], begin = 0, size
        cdef float[::1] room = np.empty(RANKED_AT_ONCE * p + KGE_CHUNK * RANKED_AT_ONCE, dtype=np.float32)
        cdef int number = model_number(model)
        _check(queries.shape[0] == self.targets.shape[0] and queries.shape[1] == p and p % KGE_PANEL == 0
               and m % KGE_PANEL == 0 and count <= m, "Ranks.score")
        with nogil:
            while begin < count:
                size = min(<int64_t>RANKED_AT_ONCE, m - begin)
                kge_pack_entities(size, &entities[begin, 0], p, &room[0])
                self._score(number, norm, queries, first + begin, min(size, count - begin), size, &entities[begin, 0],
                            &room[0], &room[RANKED_AT_ONCE * p])
                begin += size

    cdef void _score(self, int model, int norm, const float[:, ::1] queries, int64_t first, int64_t count,
                     int64_t size, const float* entities, const float* panels, float* scores) noexcept nogil:
        cdef int64_t begin = 0, i, some, p = queries.shape[1]
        while begin < queries.shape[0]:
            some = min(<int64_t>KGE_CHUNK, queries.shape[0] - begin)
            kge_score_entities(model, norm, some, &queries[begin, 0], size, entities, panels, p, scores, size)
            for i in range(some):
                self._take(begin + i, first, count, scores + i * size)
            begin += some

    cdef void _take(self, int64_t query, int64_t first, int64_t count, const float* scores) noexcept nogil:
        cdef float wanted = self.wanted[query]
        cdef kge_place* place = <kge_place*>&self.places[query, 0]
        cdef kge_place* left_out = <kge_place*>&self.left_out[query, 0]
        cdef int64_t target = self.targets[query] - first, end = first + count, at = self.next[query]
        kge_add_places(place, count, scores, wanted)
        if 0 <= target < count:
            kge_add_place(place, scores[target], wanted, -1)  # not ranked against itself
        while at < self.ends[query] and self.entities[at] < end:
            kge_add_place(left_out, scores[self.entities[at] - first], wanted, 1)
            at += 1
        self.next[query] = at


cdef int _check(bint good, str name) except -1:
    if not good:
        raise ValueError(f"{name}: the shapes do not match, or rows are not padded to a multiple of {KGE_PANEL}")
    return 0


def padded(int64_t n):
    """`n`, rounded up to what rows and numbers of rows are padded to."""
    return pad(n)
