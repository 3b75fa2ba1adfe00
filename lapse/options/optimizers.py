"""Floor 1. Optimizers that a server applies where a value lies: what a user chooses, as `lapse.optim`.

The arithmetic is in `lapse/base/_optimizers.h`. An optimizer of your own: see docs/extending.md.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, ClassVar

from lapse.base.checks import brief, check_float


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What `Worker.apply_gradients` does with a gradient.

    Each value has a state of its own, which lies behind it on its owner, moves with it, and is saved with it. It begins
    when the first gradient comes; `Server.initialize` and `Server.load` begin it anew, and `Worker.set` does not.

    Parameters
    ----------
    lr : float
        The learning rate of calls that give none.
    weight_decay : float
        The gradient is taken of the loss plus half of this times the square of the value. Values to which no
        gradient comes do not decay.
    """

    KIND: ClassVar[int] = 0  # the number in LAPSE_OPTIMIZERS

    lr: float = 0.01
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if type(self) is Optimizer:
            raise TypeError("Optimizer is none by itself: use lapse.optim.SGD, Adagrad, RowWiseAdagrad or Adam")
        for field in dataclasses.fields(self):
            if field.name != "betas":
                number = check_float(getattr(self, field.name), field.name, 0.0, sys.float_info.max)
                object.__setattr__(self, field.name, number)

    def parameters(self) -> dict[str, Any]:
        """All that the arithmetic needs, by the names of `lapse._store`."""
        return {
            "kind": self.KIND,
            "rate": self.lr,
            "weight_decay": self.weight_decay,
            "epsilon": getattr(self, "eps", 0.0),
            "initial": getattr(self, "initial_accumulator_value", 0.0),
            "betas": getattr(self, "betas", (0.0, 0.0)),
        }

    def describe(self) -> dict[str, Any]:
        """What a checkpoint notes: name and parameters, but for the learning rate, which may change at any time."""
        described = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        del described["lr"]
        return {"name": type(self).__name__, **described}


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, as `torch.optim.SGD` without momentum: ``value -= lr * gradient``.

    Parameters
    ----------
    lr, weight_decay : float
        See `Optimizer`.

    Notes
    -----
    There is no state, and no momentum, which torch does not offer for sparse gradients either: use `Adam`.
    """

    KIND: ClassVar[int] = 1

    lr: float = 0.001


@dataclasses.dataclass(frozen=True)
class Adagrad(Optimizer):
    """AdaGrad of Duchi, Hazan and Singer (JMLR 12, 2011), as `torch.optim.Adagrad`.

    The state of a value are the sums of the squares of each element's gradients: as much memory as the value.

    Parameters
    ----------
    lr, weight_decay : float
        See `Optimizer`. Torch's `lr_decay` counts the steps of a whole table: pass ``lr=`` to `apply_gradients`.
    initial_accumulator_value : float
        What every sum begins with.
    eps : float
        Added to its root.
    """

    KIND: ClassVar[int] = 2

    initial_accumulator_value: float = 0.0
    eps: float = 1e-10


@dataclasses.dataclass(frozen=True)
class RowWiseAdagrad(Optimizer):
    """AdaGrad with one accumulator for a whole value, as in FBGEMM and in `torchrec.optim.RowWiseAdagrad`.

    The accumulator sums the mean of the squares of each gradient: one element of state for each value. (Mudigere
    et al., *Software-Hardware Co-design for Fast and Scalable Training of Deep Learning Recommendation Models*, ISCA
    2022.)

    Parameters
    ----------
    lr, weight_decay, initial_accumulator_value, eps : float
        See `Adagrad`.
    """

    KIND: ClassVar[int] = 3

    initial_accumulator_value: float = 0.0
    eps: float = 1e-10


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Adam of Kingma and Ba (ICLR 2015), value by value: what gets no gradient does not change, nor do its moments.

    As `torch.optim.SparseAdam` if calls say which step they are: ``kv.apply_gradients(keys, gradients, step=t)``, as
    the modules of `lapse.torch` do. SparseAdam corrects the bias by the number of steps of the table, so that a value
    that gets its first gradient late begins with a step of up to ``(1 - beta1) / sqrt(1 - beta2)`` times `lr`, 3.2
    times with the default betas: the correction is over by then. Without `step`, each value counts its own steps: it
    begins with a step of `lr`, whenever that is. If every value gets a gradient in every step, both are the same.

    Gradients of several workers for one value with the same `step` are parts of one step: so a batch that is divided
    among workers makes one step of `lr`, as in one process. (But for the second moment, which takes the parts for
    independent: it adds their squares, not the square of their sum.)

    The state of a value are two moments and the count: twice the memory of the value, and one element.

    Parameters
    ----------
    lr, weight_decay : float
        See `Optimizer`; `weight_decay` as in `torch.optim.Adam`.
    betas : (float, float)
        How much of the moments a step keeps.
    eps : float
        Added to the root of the second one.
    """

    KIND: ClassVar[int] = 4

    lr: float = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            first, second = self.betas
        except (TypeError, ValueError):
            raise TypeError(f"betas must be two numbers, not {brief(self.betas)}") from None
        betas = tuple(check_float(beta, f"betas[{i}]", 0.0, 1.0) for i, beta in enumerate((first, second)))
        if 1.0 in betas:
            raise ValueError(f"betas are {betas}, but must be below 1: a step would change nothing")
        object.__setattr__(self, "betas", betas)


def check_optimizer(given: Any, name: str = "optimizer") -> Optimizer | None:
    """The optimizer that was given for the argument `name`, or None.

    Raises
    ------
    TypeError
        When it is something else.
    """
    if given is None or isinstance(given, Optimizer):
        return given
    if isinstance(given, type) and issubclass(given, Optimizer):
        raise TypeError(f"{name} is the class {given.__name__}: give an instance, as in lapse.optim.{given.__name__}()")
    raise TypeError(f"{name} must be an optimizer of lapse.optim, such as lapse.optim.Adagrad(), not {brief(given)}")
