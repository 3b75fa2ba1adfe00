"""Knowledge-graph embeddings, with their parameters in a Lapse server.

A knowledge graph is a set of triples (subject, relation, object). A model scores triples by vectors of their
entities and relations, which are trained so that true triples score higher than others; then it answers
questions such as (json, imports, ?).

The path of a triple through the modules::

    data ─ ids ─► train ─ blocks ─► _kernel ─ pull, push, localize, samples ─► server
    (or stdlib_graph)               (_gradients: losses and gradients)             │
                                    evaluate (_ranking): valid and test ◄─ pull ───┤
                                    model_io: embeddings as .npy ◄──────── pull ───┘

With all entities as negatives `full` takes the place of the training by blocks, with `_full_kernel` and `_full`.

`options` has the defaults of each model, `placement` decides which technique manages which parameter.

`Model` is a trained model that answers (`trained`; ``predict`` asks it): unlike `models.Model`, with its vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lapse.apps.kge.trained import Model

__all__ = ["Model"]


def __getattr__(name: str) -> Any:
    if name != "Model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lapse.apps.kge.trained import Model  # not before: trainings need no model that answers

    return Model
