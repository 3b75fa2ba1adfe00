"""Matrix factorization by stochastic gradient descent, with its factors in a Lapse server.

The path of a rating through the modules::

    data ─ a file's share of each rank ─┐
    stdlib_matrix ─ text ─► data        ├─► matrix ─ each worker its rows ─► _kernel ─ pull, push, localize ─► server
    synthetic ─ rows of each rank ──────┘            (schedule: in which order; train drives it, epoch by epoch;
                                                      placement: what is localized or replicated)
                                                     model_io ◄─ factors, biases ─ server

The model is that of Koren, Bell and Volinsky, *Matrix Factorization Techniques for Recommender Systems*, IEEE
Computer 42(8), 2009; the schedule without conflicts that of Gemulla, Nijkamp, Haas and Sismanis, *Large-Scale Matrix
Factorization with Distributed Stochastic Gradient Descent*, KDD 2011; column-wise and plain SGD with keys localized
ahead those of Renz-Wieland et al., *Dynamic Parameter Allocation in Parameter Servers*, PVLDB 13(12), 2020, with hot
columns replicated as in their *NuPS*, SIGMOD 2022.

`Model` is a trained model that answers (`trained`; ``recommend`` asks it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lapse.apps.mf.trained import Model

__all__ = ["Model"]


def __getattr__(name: str) -> Any:
    if name != "Model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lapse.apps.mf.trained import Model  # not before: trainings need no model that answers

    return Model
