"""Command-line options: types of arguments, parsing, and the groups of options that several applications have."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lapse.options.sampling import SCHEMES

Number = TypeVar("Number", int, float)

MANAGEMENT = ("lapse2", "lapse", "classic")

# --- types of arguments ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NumberType(Generic[Number]):
    """A type for `argparse`: what `kind` makes of the text, if `accept` is true of it."""

    kind: Callable[[str], Number]
    accept: Callable[[Number], bool]
    expected: str

    @property
    def metavar(self) -> str:
        """How ``--help`` shows the number."""
        return "N" if self.kind is int else "X"

    def __call__(self, text: str) -> Number:
        try:
            value = self.kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.expected}") from None
        if not self.accept(value):
            raise argparse.ArgumentTypeError(f"{text} is not {self.expected}")
        return value


positive_int = NumberType(int, lambda value: value >= 1, "an integer of at least 1")
natural_int = NumberType(int, lambda value: value >= 0, "an integer of at least 0")
positive_float = NumberType(float, lambda value: 0 < value < math.inf, "a finite number above 0")
natural_float = NumberType(float, lambda value: 0 <= value < math.inf, "a finite number of at least 0")
finite_float = NumberType(float, math.isfinite, "a finite number")
at_least_one = NumberType(float, lambda value: 1 <= value < math.inf, "a finite number of at least 1")
fraction = NumberType(float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


# --- parsing -----------------------------------------------------------------------------------------------------


def new_parser(app: str, description: str | None, examples: str | None = None) -> argparse.ArgumentParser:
    """A parser without options; `description` and `examples` are shown as they are."""
    return argparse.ArgumentParser(
        prog=f"python -m lapse.apps.{app}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse a command line (None: that of this process).

    Options with ``action="append"`` are not supported.

    Returns
    -------
    argparse.Namespace
        Its attribute ``given`` has the names of the options that were on the command line.
    """
    args = parser.parse_args(argv)
    unset = object()  # argparse keeps the values that a namespace already has, except for options on the command line
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    args.given = frozenset(name for name, value in vars(given).items() if value is not unset)
    return args


class Group:
    """Options that belong together.

    Parameters
    ----------
    container
        A parser, or a group of its options.
    """

    def __init__(self, container: argparse._ActionsContainer) -> None:
        self._container = container

    def add(
        self,
        names: str,
        kind: Callable[[str], Any] | tuple,
        text: str,
        default: float | str | None = None,
        **others: Any,
    ) -> None:
        """Add an option.

        Parameters
        ----------
        names
            Its names and, if it is not that of `kind`, the name of its value, separated by spaces.
        kind
            The type of a number, a tuple of the possible values, bool for an option without a value, or another type.
        text
            The help text; a default that it does not describe is appended.
        default
            The value if the option is not given.
        **others
            As for `argparse.ArgumentParser.add_argument`.
        """
        flags = [name for name in names.split() if name.startswith("-")]
        if isinstance(kind, tuple):
            others = {"choices": kind} | others
        elif kind is bool:
            others = {"action": "store_true"} | others
        else:
            shown = names.split()[len(flags) :]
            others = {"type": kind, "metavar": shown[0] if shown else getattr(kind, "metavar", None)} | others
        if default is not None:
            others["default"] = default
            text += "" if "default: " in text else " (default: %(default)s)"
        self._container.add_argument(*flags, help=text, **others)


# --- groups of options -------------------------------------------------------------------------------------------


def add_shared_options(
    parser: argparse.ArgumentParser,
    *,
    epochs: int | None,
    dim: int | None = None,
    dim_names: str = "--dim --vector-size",
    dim_help: str | None = None,
    epochs_help: str | None = None,
) -> tuple[Group, Group]:
    """Add the options that every training application has.

    Parameters
    ----------
    epochs, dim
        Defaults; None: they depend on other options.
    epochs_help
        What they depend on.
    dim_names, dim_help
        How the application's field names the length of a vector (empty: there are none), and the help text.

    Returns
    -------
    system, output
        The groups of options on the parameter server and on output, for the application's own options.
    """
    training = Group(parser.add_argument_group("training"))
    training.add(
        "--epochs",
        positive_int,
        f"number of passes over the data (default: {epochs or epochs_help or 'depends on the model'})",
        default=epochs,
    )
    if dim_names:
        training.add(
            dim_names,
            positive_int,
            dim_help or f"length of each vector (default: {dim or 'depends on the model'})",
            default=dim,
        )
    training.add("--seed", natural_int, "seed of all random number generators", default=1)
    training.add(
        "--max-runtime SECONDS",
        positive_float,
        "stop training at the next block once the process has run for this long; the model is saved as usual",
    )
    system = Group(parser.add_argument_group("parameter server"))
    system.add("--workers", positive_int, "number of worker threads per rank", default=1)
    system.add(
        "--management",
        MANAGEMENT,
        "how parameters are placed. classic: each parameter stays on its home rank; lapse: parameters are relocated to "
        "the rank that is about to use them; lapse2: like lapse, but parameters that all ranks use frequently are "
        "replicated, and negative samples are drawn from local parameters",
        default="lapse2",
    )
    system.add(
        "--slow-down",
        at_least_one,
        "for experiments with emulated hosts: workers sleep so that computing takes X times its CPU time; messages and "
        "waiting are not stretched",
        default=1.0,
    )
    output = Group(parser.add_argument_group("output"))
    output.add("--output DIR", Path, "folder for the model and for checkpoints; created if it does not exist")
    add_checkpoint_options(output)
    add_report_options(output)
    return system, output


def add_checkpoint_options(group: Group) -> None:
    """Add the options on interrupting and resuming a run."""
    group.add(
        "--checkpoint-every",
        positive_int,
        "save a checkpoint under --output every N epochs and at the end (default: only when a signal or "
        "--max-runtime stops the training early)",
    )
    group.add(
        "--resume",
        bool,
        "continue from the newest complete checkpoint under --output, with the options of that run; start from scratch "
        "if there is none",
    )


def add_report_options(group: Group) -> None:
    """Add the options on reports."""
    group.add("--metrics FILE", Path, "write one JSON object per epoch: loss, time and the counters of the server")
    group.add("--plot FILE", Path, "plot loss, quality and locality over the epochs (requires matplotlib)")
    group.add(
        "--report FILE",
        Path,
        "write a page (HTML, in one file) about the training: loss and quality, where accesses were answered, bytes "
        "between ranks, the time of each rank, where hot keys were",
    )
    group.add("--no-progress", bool, "do not show progress")


def pace_options(args: argparse.Namespace) -> dict:
    """The parameters of `Pipeline.set_pace`: computing is timed for ``--metrics`` and ``--report``."""
    return {"slow_down": args.slow_down, "is_timed": args.metrics is not None or args.report is not None}


def add_lookahead_option(system: Group, default: int, units: str) -> None:
    """Add ``--lookahead``, which is counted in `units`."""
    system.add(
        "--lookahead", natural_int, f"how many {units} before their use parameters are localized", default=default
    )


def add_replication_options(
    parser: argparse.ArgumentParser,
    *,
    keys: str,
    default: str,
    items: str,
    sync_default: int | None,
    sync_help: str = "%(default)s",
) -> Group:
    """Add ``--replicate`` and ``--sync-<items>``; returns their group.

    Parameters
    ----------
    keys, default
        What is replicated, and which of it by default.
    items
        What the training counts: words, triples or ratings.
    sync_default, sync_help
        The default of ``--sync-<items>``, and its description.
    """
    group = Group(parser.add_argument_group("replication and sampling"))
    group.add(
        "--replicate",
        natural_int,
        f"lapse2: replicate the N {keys} that are used most often; 0: none (default: {default})",
    )
    group.add(
        f"--sync-{items}",
        positive_int,
        f"lapse2: maximum number of {items} that all ranks together train between two "
        f"synchronizations of replicas (default: {sync_help})",
        default=sync_default,
    )
    return group


#: For `add_replication_options`: what is replicated unless the application knows better.
CHEAPER = "those that are cheaper to replicate than to relocate"


def add_combining_options(group: Group, *, combine: str, wire: str) -> None:
    """Add ``--combine``, ``--wire`` and ``--replica-memory``, for applications that may replicate everything."""
    group.add(
        "--combine",
        ("sum", combine),
        f"lapse2: what changes that several ranks have made at the same time come to. {combine}: what they would have "
        "come to one after the other, as far as can be told, so that synchronizations may be rare; sum: their sum",
        default=combine,
    )
    group.add(
        "--wire",
        ("exact", "bfloat16"),
        "lapse2: how changes of replicas travel. bfloat16 takes half of the bytes; what rounding keeps back is sent "
        "later",
        default=wire,
    )
    group.add(
        "--replica-memory MB",
        positive_int,
        "lapse2: replicate no more than fits into this memory on each host (ranks that share no memory count as hosts)",
        default=512,
    )


def add_sampling_options(group: Group, keys: str) -> None:
    """Add the options on negative samples, which are `keys`."""
    group.add(
        "--sampling-scheme",
        tuple(SCHEMES),
        "how negative samples are drawn. naive: when they are needed; preloc: ahead of time, and "
        "localized; pool: ahead of time, each used several times; local: only from the "
        f"{keys} on this rank (default: naive with classic, preloc with lapse, local with lapse2, "
        f"but preloc if there are few {keys})",
    )
    group.add("--sampling-reuse", positive_int, "pool: how often each drawn sample is used", default=16)
    group.add("--sampling-postpone", bool, "pool: postpone the use of samples that are not local")
