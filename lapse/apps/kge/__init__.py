"""Knowledge-graph embeddings, with their parameters in a Lapse server.

A knowledge graph is a set of triples (subject, relation, object). A model scores triples by vectors of their
entities and relations, which are trained so that true triples score higher than others; then it answers
questions such as (json, imports, ?).

The path of a triple through the modules::

    data ─ ids ─► train ─ blocks ─► _kernel ─ pull, push, localize, samples ─► server
    (or stdlib_graph)               (_gradients: losses and gradients)             │
                                    evaluate (_ranking): valid and test ◄─ pull ───┤
                                    model_io: embeddings as .npy ◄──────── pull ───┘

`options` has the defaults of each model, `placement` decides which technique manages which parameter.
"""
