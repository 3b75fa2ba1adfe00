"""``python -m lapse.apps.mf``: the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lapse.apps import _base

DESCRIPTION = """\
Factorize a matrix of ratings by stochastic gradient descent (Koren et al. 2009).

A rating is predicted as mean + row bias + column bias + <row factor, column factor>. Factors and biases
live in a Lapse server that spans all ranks; each worker trains on the ratings of its own rows.
"""

EXAMPLES = """\
examples:
  python -m lapse.apps.mf                              one process, a synthetic matrix with known factors
  python -m lapse.apps.mf --ratings stdlib             which identifiers the modules of this Python use
  mpirun -n 4 python -m lapse.apps.mf --ratings ratings.csv.gz --output model
                                                       four ranks, ratings of yours (user,item,rating)

The model folder holds rows.npy and columns.npy (factors), row_biases.npy, column_biases.npy, row_ids.txt,
column_ids.txt (a name a line, in the same order) and model.json (the mean and the range of ratings).
The last line of the output is RESULT and a JSON object; its rmse is that of the held-out ratings.
"""

STDLIB = "stdlib"

#: What suits ratings of people, and what suits the synthetic matrix, whose noise is small. On MovieLens 100k the held-
#: out RMSE still falls by 0.002 from 40 to 60 epochs.
DEFAULTS = {
    "ratings": dict(rank=40, learning_rate=0.02, decay=0.95, regularization=0.1),
    "synthetic": dict(rank=None, learning_rate=0.05, decay=0.97, regularization=0.003),
}
#: AdaGrad divides by what it has seen: it begins with larger steps, and without a decay.
ADAGRAD_RATE = 0.05
#: In DSGD nobody else uses the columns meanwhile: a batch only needs to stay in the cache. Elsewhere, with many more
#: ratings between a pull and a push, workers would not see each other's updates for long.
BATCH = {"dsgd": 16384, "columnwise": 1024, "plain": 1024}
#: Enough to hide the time a column needs to arrive; with more, others take it away before its turn.
DEFAULT_LOOKAHEAD = 2
#: Between two rounds in which replicas are synchronised: batches of each worker, and ratings of the hottest column.
BATCHES_PER_ROUND, HOTTEST_PER_ROUND = 2, 100


def make_parser() -> argparse.ArgumentParser:
    """All options of the application."""
    parser = argparse.ArgumentParser(
        prog="python -m lapse.apps.mf", description=DESCRIPTION, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_data_options(parser)
    add_model_options(parser)
    system, _ = _base.add_shared_options(
        parser, epochs=40, dim=None, dim_names=("--rank",),
        dim_help="length of each factor (default: 40; synthetic matrix: the planted rank)")
    add_schedule_options(system)
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add what concerns ratings."""
    data = parser.add_argument_group("ratings")
    data.add_argument("--ratings", metavar="FILE",
                      help="lines 'user item rating', separated by tab, ::, comma, semicolon or white space, or "
                           "MatrixMarket; also .gz. stdlib: how often the modules of this Python's library use which "
                           "identifiers, in logarithms (default: a synthetic matrix)")
    data.add_argument("--test", type=Path, metavar="FILE", help="held-out ratings (default: some of --ratings)")
    data.add_argument("--test-fraction", type=fraction, default=0.1, metavar="X",
                      help="without --test: hold out this share, chosen by the seed, the same for any number of "
                           "ranks; 0: none (default: %(default)s)")
    made = parser.add_argument_group("synthetic matrix", "planted factors plus noise; rows and columns by Zipf's law")
    made.add_argument("--rows", type=_base.positive_int, default=1000, metavar="N", help="default: %(default)s")
    made.add_argument("--columns", type=_base.positive_int, default=500, metavar="N", help="default: %(default)s")
    made.add_argument("--entries", type=_base.positive_int, metavar="N",
                      help="different cells with a rating (default: a tenth of all)")
    made.add_argument("--planted-rank", type=_base.positive_int, default=5, metavar="N",
                      help="length of the planted factors (default: %(default)s)")
    made.add_argument("--noise", type=natural_float, default=0.1, metavar="X",
                      help="standard deviation of the noise; entries have about 1 (default: %(default)s)")
    made.add_argument("--exponent", type=natural_float, default=1.1, metavar="X",
                      help="of Zipf's law (default: %(default)s)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what concerns the model and the steps."""
    model = parser.add_argument_group("model")
    model.add_argument("--no-biases", action="store_true", help="predict <row factor, column factor> alone")
    model.add_argument("--init-std", type=_base.positive_float, default=0.1, metavar="X",
                       help="factors begin normally distributed with this standard deviation, biases at 0 "
                            "(default: %(default)s)")
    model.add_argument("--step", choices=("sgd", "adagrad", "bold-driver"), default="sgd",
                       help="sgd: the learning rate decays with the epochs; adagrad: each element has its own; "
                            "bold-driver: 5%% more after an epoch in which the training loss fell, half after one "
                            "in which it rose (default: %(default)s)")
    model.add_argument("--learning-rate", "--lr", type=_base.positive_float, metavar="X",
                       help="at the start (default: 0.02; synthetic matrix and adagrad: 0.05)")
    model.add_argument("--decay", type=_base.positive_float, metavar="X",
                       help="sgd: what the learning rate is multiplied by after each epoch (default: 0.95; synthetic "
                            "matrix: 0.97)")
    model.add_argument("--regularization", type=natural_float, metavar="X",
                       help="of factors, for each rating (default: 0.1; synthetic matrix: 0.003)")
    model.add_argument("--bias-regularization", type=natural_float, default=0.02, metavar="X",
                       help="of biases (default: %(default)s)")


def add_schedule_options(system) -> None:
    """Add what concerns the order of training and the placement of parameters."""
    system.add_argument("--algorithm", choices=("dsgd", "columnwise", "plain"), default="dsgd",
                        help="dsgd: in turns, each worker has a block of columns for itself; columnwise: the ratings "
                             "of a column one after the other, columns in random order; plain: all ratings in random "
                             "order (default: %(default)s)")
    system.add_argument("--batch", type=_base.positive_int, metavar="N",
                        help="ratings between a pull of their parameters and a push of the changes; in dsgd, those of a "
                             "random group of rows, where a block has more (default: dsgd: "
                             f"{BATCH['dsgd']}, otherwise {BATCH['plain']})")
    system.add_argument("--lookahead", type=_base.natural_int, default=DEFAULT_LOOKAHEAD, metavar="N",
                        help="columnwise, plain: how many batches ahead columns are localized (default: %(default)s)")
    system.add_argument("--replicate", type=_base.natural_int, metavar="N",
                        help="lapse2, columnwise and plain: replicate the N columns that are used most; 0: none "
                             "(default: those for which it costs less than to move them)")
    system.add_argument("--sync-ratings", type=_base.positive_int, metavar="N",
                        help="lapse2: ratings that all ranks together train at most between two rounds in which "
                             f"replicas are synchronised (default: {BATCHES_PER_ROUND} batches of each worker, and {HOTTEST_PER_ROUND} "
                             "ratings of the hottest column)")


def natural_float(text: str) -> float:
    """For `argparse`: a finite number from 0 on."""
    return _number(text, float("inf"), "a finite number from 0 on")


def fraction(text: str) -> float:
    """For `argparse`: a number from 0 to below 1."""
    return _number(text, 1.0, "a number from 0 to below 1")


def _number(text: str, end: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < end:
        raise argparse.ArgumentTypeError(f"{text} is not {expected}")
    return value


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults that depend on other options."""
    defaults = dict(DEFAULTS["synthetic" if args.ratings is None else "ratings"])
    if args.ratings is None:
        defaults["rank"] = args.planted_rank
    if args.step == "adagrad":
        defaults["learning_rate"] = ADAGRAD_RATE
    defaults["batch"] = BATCH[args.algorithm]
    defaults["entries"] = max(args.rows * args.columns // 10, args.rows)
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the application with the given arguments (default: those of the command line)."""
    args = complete(_base.parse(make_parser(), argv))
    from mpi4py import MPI  # not before: `--help` must not start MPI

    with _base.job(MPI.COMM_WORLD):
        from lapse.apps.mf import train

        train.run(args, MPI.COMM_WORLD)


if __name__ == "__main__":
    sys.exit(main())
