"""Floor 2. The scheme "naive": keys are drawn when they are pulled, wherever they may be."""

cimport cython

from lapse.sampling._sampler cimport Sampler


@cython.final
cdef class NaiveSampler(Sampler):
    """Independent draws at pull time. All of it is the behaviour of the base class."""
