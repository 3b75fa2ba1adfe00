"""Word vectors: skip-gram with negative sampling [1]_, with its parameters in a Lapse server.

The path of a word through the modules::

    corpus ─ sentences of words ─► vocabulary ─ indexes ─► _kernel ─ pull, push, localize ─► server
    (or stdlib_corpus)                                     (train drives it, block by block)
                                                           model_io ◄─ vectors ─ server

`Model` is a trained model that answers (`trained`; ``query`` asks it); `evaluation` tests it.

.. [1] Mikolov, Sutskever, Chen, Corrado, Dean: Distributed Representations of Words and Phrases
   and their Compositionality. NIPS 2013.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lapse.apps.word2vec.trained import Model

__all__ = ["Model"]


def __getattr__(name: str) -> Any:
    if name != "Model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lapse.apps.word2vec.trained import Model  # not before: trainings need no model that answers

    return Model
