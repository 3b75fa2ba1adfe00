"""The models, and the sizes of their parameters.

========  ======================  ==================================================================
name      score of (s, r, o)      source
========  ======================  ==================================================================
complex   Re <s, r, conj(o)>      Trouillon et al., *Complex Embeddings for Simple Link Prediction*,
                                  ICML 2016
distmult  sum of s r o            Yang et al., *Embedding Entities and Relations for Learning and
                                  Inference in Knowledge Bases*, ICLR 2015
rescal    s^T R o                 Nickel, Tresp, Kriegel, *A Three-Way Model for Collective Learning
                                  on Multi-Relational Data*, ICML 2011
transe    -|s + r - o|            Bordes et al., *Translating Embeddings for Modeling
                                  Multi-relational Data*, NIPS 2013
========  ======================  ==================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from lapse.apps._shared.job import AppError


@dataclass(frozen=True)
class Model:
    """A model and the sizes of its parameters.

    Attributes
    ----------
    name
        One of the table above.
    dim
        Length of an entity's vector (complex numbers: both halves).
    norm
        TransE: 1 or 2.
    reciprocal
        Whether subjects are predicted by separate, inverse relations.
    num_entities, num_relations
        The numbers of entities, and of relations without their inverses.
    """

    name: str
    dim: int
    norm: int
    reciprocal: bool
    num_entities: int
    num_relations: int

    def __post_init__(self) -> None:
        if self.name == "complex" and self.dim % 2:
            raise AppError(
                f"--dim is {self.dim}, but complex vectors have a real and an imaginary half: "
                f"choose an even number, such as {self.dim + 1}"
            )

    @property
    def relation_length(self) -> int:
        """Length of a relation's vector (RESCAL: a matrix, row by row)."""
        return self.dim**2 if self.name == "rescal" else self.dim

    def vector_length(self, key: int) -> int:
        """The length of the vector of a key."""
        return self.dim if key < self.num_entities else self.relation_length

    @property
    def relation_keys(self) -> int:
        """The number of relations, including inverse ones."""
        return self.num_relations * (2 if self.reciprocal else 1)

    @property
    def num_keys(self) -> int:
        """Entities first (their ids), then relations, then inverse ones."""
        return self.num_entities + self.relation_keys
