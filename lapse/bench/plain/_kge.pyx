"""Knowledge-graph embeddings on arrays in memory."""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free

from lapse cimport key_t
from lapse.apps._shared._memory cimport allocate
from lapse.apps.kge._gradients cimport Gradients
from lapse.base._random cimport mix, next_u64


cdef class PlainTrainer:
    """The training of `lapse.apps.kge` without a server.

    Several threads may train the same arrays, each with a trainer of its own, as if nobody else did (Niu, Recht, Re,
    Wright: *Hogwild!*, NIPS 2011).

    Parameters
    ----------
    entities, relations : arrays of float32, shape (n, 2 * length)
        Vectors and sums of squares, as in a server's values; changed.
    rate
        Learning rate.
    **parameters
        Those of `Gradients`; `seed` is that of the negatives too.

    Attributes
    ----------
    triples, loss
        Triples so far, and the sum of the losses of both sides.
    """

    cdef Gradients gradients
    cdef float[:, ::1] entities
    cdef float[:, ::1] relations
    cdef float rate
    cdef uint64_t draws
    cdef int64_t num_negatives
    cdef key_t* sampled

    cdef readonly int64_t triples
    cdef readonly double loss

    def __init__(self, float[:, ::1] entities, float[:, ::1] relations, *, double rate, **parameters):
        cdef Gradients gradients = Gradients(**parameters)
        self.gradients, self.entities, self.relations, self.rate = gradients, entities, relations, rate
        if (entities.shape[0], entities.shape[1]) != (gradients.num_entities, 2 * gradients.c.dim) or (
                relations.shape[0] + gradients.num_entities != gradients.num_keys()
                or relations.shape[1] != 2 * gradients.c.relation_length):
            raise ValueError(f"the arrays have the shapes ({entities.shape[0]}, {entities.shape[1]}) and "
                             f"({relations.shape[0]}, {relations.shape[1]}), but must have "
                             f"({gradients.num_entities}, {2 * gradients.c.dim}) and "
                             f"({gradients.num_keys() - gradients.num_entities}, {2 * gradients.c.relation_length})")
        self.draws = mix(gradients.state)
        self.num_negatives = 2 * gradients.c.negatives
        self.sampled = <key_t*>allocate(self.num_negatives, sizeof(key_t))

    def __dealloc__(self):
        free(self.sampled)

    def train(self, const int64_t[:, ::1] triples):
        """Train a block of triples (shape (n, 3))."""
        self.gradients.check_triples(triples)
        if triples.shape[0]:
            with nogil:
                self._train(self.gradients, &triples[0, 0], triples.shape[0])

    cdef void _train(self, Gradients gradients, const int64_t* triples, int64_t n) noexcept nogil:
        cdef int64_t i
        for i in range(self.num_negatives):
            self.sampled[i] = <key_t>((next_u64(&self.draws) >> 33) * <uint64_t>gradients.num_entities >> 31)
        gradients.add_triples(triples, n)
        gradients.add_negatives(self.sampled)
        for i in range(gradients.count):
            if gradients.keys[i] < gradients.num_entities:
                gradients.vectors[i] = &self.entities[gradients.keys[i], 0]
            else:
                gradients.vectors[i] = &self.relations[gradients.keys[i] - gradients.num_entities, 0]
        self.loss += gradients.step(n, self.rate, True)
        self.triples += n
        gradients.forget_rows()
