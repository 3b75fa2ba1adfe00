"""The models: what their parameters look like, and the settings that suit them.

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

import argparse
from dataclasses import dataclass

from lapse.apps._base import AppError

#: Values of options that the user leaves open, by model. Found on FB15k-237 (valid).
DEFAULTS = {
    "complex": dict(dim=200, epochs=25, reciprocal_relations=True, entity_n3=0.08, relation_n3=0.08),
    "distmult": dict(dim=200, epochs=25, reciprocal_relations=True, entity_n3=0.08, relation_n3=0.08),
    "rescal": dict(dim=100, epochs=20, entity_n3=0.15, relation_l2=0.005),
    "transe": dict(dim=128, epochs=25),
}
#: What is the same for all models.
COMMON = dict(loss="softmax", batch_size=512, num_negs_per_pos=256, lr=0.1, lr_final=0.1, init_std=0.05,
              reciprocal_relations=False, entity_n3=0.0, relation_n3=0.0, entity_l2=0.0, relation_l2=0.0,
              entity_dropout=0.0, relation_dropout=0.0)
#: `--preset lapse`: Renz-Wieland et al., *Dynamic Parameter Allocation in Parameter Servers*, VLDB 2020, and
#: *NuPS*, SIGMOD 2022: binary cross-entropy with 10 negatives per side, AdaGrad 0.1, a start near 0. (They train
#: triple by triple; here a small block shares its negatives.)
LAPSE = dict(loss="bce", num_negs_per_pos=10, batch_size=32, lr=0.1, lr_final=1.0, init_std=0.01,
             entity_l2=5e-4, relation_l2=5e-4)
PRESETS = {"lapse": LAPSE}


@dataclass(frozen=True)
class Model:
    """A model and the sizes of its parameters.

    Attributes
    ----------
    name
        One of `DEFAULTS`.
    dim
        Length of an entity's vector (complex numbers: both halves).
    norm
        TransE: 1 or 2.
    reciprocal
        Whether subjects are asked for by relations of their own.
    num_entities, num_relations
        How many there are (relations without their inverses).
    """

    name: str
    dim: int
    norm: int
    reciprocal: bool
    num_entities: int
    num_relations: int

    def __post_init__(self) -> None:
        if self.name == "complex" and self.dim % 2:
            raise AppError(f"--dim is {self.dim}, but complex vectors have a real and an imaginary half: "
                           f"give an even number, such as {self.dim + 1}")

    @property
    def relation_length(self) -> int:
        """Length of a relation's vector (RESCAL: a matrix, row by row)."""
        return self.dim**2 if self.name == "rescal" else self.dim

    @property
    def relation_keys(self) -> int:
        """Relations, with the inverse ones."""
        return self.num_relations * (2 if self.reciprocal else 1)

    @property
    def num_keys(self) -> int:
        """Entities first (their ids), then relations, then inverse ones."""
        return self.num_entities + self.relation_keys


def complete(args: argparse.Namespace) -> None:
    """Fill in what the user left open: by the preset, the model, what is common, in this order."""
    layers = [COMMON, DEFAULTS[args.model], PRESETS.get(args.preset, {})]
    if args.preset:  # a preset replaces the penalties and the reciprocal relations of the model's defaults too
        layers[1] = {name: DEFAULTS[args.model][name] for name in ("dim", "epochs")}
    defaults = {name: value for layer in layers for name, value in layer.items()}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def describe_defaults() -> str:
    """A table for ``--help``."""
    names = sorted({name for values in DEFAULTS.values() for name in values})
    rows = [["", *DEFAULTS]]
    rows += [["--" + name.replace("_", "-"), *(_show({**COMMON, **DEFAULTS[model]}[name]) for model in DEFAULTS)]
             for name in names]
    return "\n".join("  " + row[0].ljust(24) + "".join(cell.rjust(10) for cell in row[1:]) for row in rows)


def _show(value) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:g}"
