"""Command-line options: types of arguments, parsing, and the groups of options that several applications have."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lapse.options.sampling import SCHEMES

Number = TypeVar("Number", int, float)

MANAGEMENT = ("lapse2", "lapse", "classic")

# --- types of arguments ------------------------------------------------------------------------------------------


def number(kind: Callable[[str], Number], accept: Callable[[Number], bool], expected: str) -> Callable[[str], Number]:
    """A type for `argparse`: what `kind` makes of the text, if `accept` is true of it."""

    def convert(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None
        if not accept(value):
            raise argparse.ArgumentTypeError(f"{text} is not {expected}")
        return value

    return convert


positive_int = number(int, lambda value: value >= 1, "an integer of at least 1")
natural_int = number(int, lambda value: value >= 0, "an integer of at least 0")
positive_float = number(float, lambda value: 0 < value < math.inf, "a finite number above 0")
natural_float = number(float, lambda value: 0 <= value < math.inf, "a finite number of at least 0")
fraction = number(float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


# --- parsing -----------------------------------------------------------------------------------------------------


def new_parser(app: str, description: str | None, examples: str) -> argparse.ArgumentParser:
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


# --- groups of options -------------------------------------------------------------------------------------------


def add_shared_options(
    parser: argparse.ArgumentParser,
    *,
    epochs: int | None,
    dim: int | None,
    dim_names: tuple[str, ...] = ("--dim", "--vector-size"),
    dim_help: str | None = None,
) -> tuple[argparse._ArgumentGroup, argparse._ArgumentGroup]:
    """Add the options that every training application has.

    Parameters
    ----------
    epochs, dim
        Defaults; None: they depend on other options.
    dim_names, dim_help
        How the application's field names the length of a vector, and the help text.

    Returns
    -------
    system, output
        The groups of options on the parameter server and on output, for the application's own options.
    """
    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs",
        type=positive_int,
        default=epochs,
        metavar="N",
        help=f"number of passes over the data (default: {epochs or 'depends on the model'})",
    )
    training.add_argument(
        *dim_names,
        type=positive_int,
        default=dim,
        metavar="N",
        help=dim_help or f"length of each vector (default: {dim or 'depends on the model'})",
    )
    training.add_argument(
        "--seed",
        type=natural_int,
        default=1,
        metavar="N",
        help="seed of all random number generators (default: %(default)s)",
    )
    training.add_argument(
        "--max-runtime",
        type=positive_float,
        metavar="SECONDS",
        help="stop training at the next block once the process has run for this long; the model is saved as usual",
    )
    system = parser.add_argument_group("parameter server")
    system.add_argument(
        "--workers",
        type=positive_int,
        default=1,
        metavar="N",
        help="number of worker threads per rank (default: %(default)s)",
    )
    system.add_argument(
        "--management",
        choices=MANAGEMENT,
        default="lapse2",
        help="how parameters are placed. classic: each parameter stays on its home rank; lapse: "
        "parameters are relocated to the rank that is about to use them; lapse2: like lapse, but "
        "parameters that all ranks use frequently are replicated, and negative samples are drawn "
        "from local parameters (default: %(default)s)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the model and for checkpoints; created if it does not exist",
    )
    add_checkpoint_options(output)
    add_report_options(output)
    return system, output


def add_checkpoint_options(group: argparse._ActionsContainer) -> None:
    """Add the options on interrupting and resuming a run."""
    group.add_argument(
        "--checkpoint-every",
        type=positive_int,
        metavar="N",
        help="save a checkpoint under --output every N epochs and at the end (default: only when "
        "SIGINT, SIGTERM or --max-runtime stops the training early)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue from the newest complete checkpoint under --output, with the options of that "
        "run; start from scratch if there is none",
    )


def add_report_options(group: argparse._ActionsContainer) -> None:
    """Add the options on reports."""
    group.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="write one JSON object per epoch: loss, time and the counters of the server",
    )
    group.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="plot loss, quality and locality over the epochs (requires matplotlib)",
    )
    group.add_argument("--no-progress", action="store_true", help="do not show progress")


def add_lookahead_option(system: argparse._ActionsContainer, default: int, units: str) -> None:
    """Add ``--lookahead``, which is counted in `units`."""
    system.add_argument(
        "--lookahead",
        type=natural_int,
        default=default,
        metavar="N",
        help=f"how many {units} before their use parameters are localized (default: %(default)s)",
    )


def add_replication_options(
    parser: argparse.ArgumentParser,
    *,
    keys: str,
    limit: str,
    items: str,
    sync_default: int | None,
    sync_help: str = "%(default)s",
) -> argparse._ArgumentGroup:
    """Add ``--replicate`` and ``--sync-<items>``; returns their group.

    Parameters
    ----------
    keys, limit
        What is replicated, and how much of it by default.
    items
        What the training counts: words, triples or ratings.
    sync_default, sync_help
        The default of ``--sync-<items>``, and its description.
    """
    group = parser.add_argument_group("replication and sampling")
    group.add_argument(
        "--replicate",
        type=natural_int,
        metavar="N",
        help=f"lapse2: replicate the N {keys} that are used most often; 0: none (default: those that "
        f"are cheaper to replicate than to relocate{limit})",
    )
    group.add_argument(
        f"--sync-{items}",
        type=positive_int,
        default=sync_default,
        metavar="N",
        help=f"lapse2: maximum number of {items} that all ranks together train between two "
        f"synchronizations of replicas (default: {sync_help})",
    )
    return group


def add_sampling_options(group: argparse._ActionsContainer, keys: str) -> None:
    """Add the options on negative samples, which are `keys`."""
    group.add_argument(
        "--sampling-scheme",
        choices=tuple(SCHEMES),
        help="how negative samples are drawn. naive: when they are needed; preloc: ahead of time, and "
        "localized; pool: ahead of time, each used several times; local: only from the "
        f"{keys} on this rank (default: naive with classic, preloc with lapse, local with lapse2, "
        f"but preloc if there are few {keys})",
    )
    group.add_argument(
        "--sampling-reuse",
        type=positive_int,
        default=16,
        metavar="N",
        help="pool: how often each drawn sample is used (default: %(default)s)",
    )
    group.add_argument(
        "--sampling-postpone", action="store_true", help="pool: postpone the use of samples that are not local"
    )
