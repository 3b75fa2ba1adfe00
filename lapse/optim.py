"""Optimizers that a server applies where a value lies: `lapse.Server(..., optimizer=lapse.optim.Adagrad(lr=0.1))`."""

from lapse.options.optimizers import SGD, Adagrad, Adam, Optimizer, RowWiseAdagrad

__all__ = ["SGD", "Adagrad", "Adam", "Optimizer", "RowWiseAdagrad"]
