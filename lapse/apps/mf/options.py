"""The options of ``python -m lapse.apps.mf``, and defaults that depend on other options."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from lapse.apps._shared import columns, options, search
from lapse.apps._shared.options import Group, fraction, natural_float, natural_int, positive_float, positive_int

DESCRIPTION = """\
Factorize a matrix of ratings: by stochastic gradient descent (Koren et al. 2009), alternating least squares
(Zhou et al. 2008; of implicit feedback: Hu et al. 2008), Gibbs sampling (Salakhutdinov & Mnih 2008) or Bayesian
personalized ranking (Rendle et al. 2009).

A rating is predicted as mean + row bias + column bias + <row factor, column factor>. Factors and biases
are stored in a Lapse server that spans all ranks; each worker trains on the ratings of its own rows (and, with
--solver als or gibbs, in turns on those of its own columns).
"""

EXAMPLES = """\
examples:
  python -m lapse.apps.mf                              one process, on a synthetic matrix with known factors
  python -m lapse.apps.mf --ratings stdlib             which identifiers the modules of this Python use
  mpirun -n 4 python -m lapse.apps.mf --ratings ratings.csv.gz --output model
                                                       four ranks, on your own ratings (user,item,rating)
  python -m lapse.apps.mf --ratings ratings.csv.gz --solver gibbs --predictions predictions.tsv
                                                       the most accurate predictions, with their uncertainty
  python -m lapse.apps.mf --ratings plays.csv.gz --implicit
                                                       counts of what users did, to recommend other items
  mpirun -n 4 python -m lapse.apps.mf --ratings plays.csv.gz --solver bpr
                                                       the same, by ranking
  python -m lapse.apps.mf recommend model 196          ask the model; recommend --help explains it

The model folder contains rows.npy and columns.npy (factors), row_biases.npy, column_biases.npy, row_ids.txt,
column_ids.txt (one name per line, in the same order) and model.json (mean and range of the ratings).
The last line of the output is RESULT and a JSON object; its rmse is that of the held-out ratings.
"""

#: For `--ratings`: the identifiers of the standard library.
STDLIB = "stdlib"

#: Defaults for ratings by people, and for the synthetic matrix, whose noise is small. On MovieLens 100k the held-out
#: RMSE still decreases by 0.002 from 40 to 60 epochs.
DEFAULTS: dict[str, dict] = {
    "ratings": dict(rank=40, learning_rate=0.02, decay=0.95, regularization=0.1, bias_regularization=0.02),
    "synthetic": dict(rank=None, learning_rate=0.05, decay=0.97, regularization=0.003, bias_regularization=0.02),
}
#: The same for the other solvers, whose epochs are fewer, but longer. `None`: as for sgd. On MovieLens 100k least
#: squares is best with weaker regularization and shorter factors than gradient descent; a sampler needs neither.
SOLVER_DEFAULTS: dict[str, dict] = {
    "als": dict(epochs=15, rank=40),
    "implicit": dict(epochs=15, rank=32, regularization=1.0),
    "gibbs": dict(epochs=200, rank=10, regularization=0.0, bias_regularization=0.0),
    "bpr": dict(epochs=100, rank=32, learning_rate=0.05, decay=0.98, regularization=0.01),
}
#: Options that only gradient descent has, and those that have ranking, too.
DESCENT_ONLY = ("algorithm", "step")
STEPS_ONLY = ("learning_rate", "decay", "lookahead", "replicate", "sync_ratings")
#: Options that only ranking has.
RANKING_ONLY = ("sampling_scheme", "sampling_reuse", "sampling_postpone")
#: With ``--implicit`` and with the sampler, figures that take longer than the training are computed so rarely.
SELDOM = {"implicit": 5, "gibbs": 10}
#: Options that only the sampler has.
SAMPLED_ONLY = ("burn_in", "kept_draws", "side_information")
#: Options that the sampler has no use for: it draws what they would set.
NOT_SAMPLED = ("regularization", "bias_regularization")
#: AdaGrad divides by the gradients it has seen: it starts with larger steps, and without a decay.
ADAGRAD_RATE = 0.05
#: In DSGD nobody else uses the columns at the same time: a batch only needs to stay in the cache. Otherwise, with many
#: more ratings between a pull and a push, workers would not see each other's updates for long.
BATCH = {"dsgd": 16384, "columnwise": 1024, "plain": 1024}
#: Enough to hide the time a column needs to arrive; with more, others take it away before its turn.
DEFAULT_LOOKAHEAD = 2
#: Between two synchronizations of replicas: batches of each worker, and ratings of the hottest column.
BATCHES_PER_ROUND, HOTTEST_PER_ROUND = 2, 100


#: Columns of the synthetic matrix.
COLUMNS = 500


@dataclass(frozen=True)
class ColumnsOrNumber:
    """A type for ``--columns``: which columns of a file, or the number of those of the synthetic matrix."""

    def __call__(self, text: str) -> str | int:
        """The text of three columns, or the number."""
        return columns.ColumnsType("USER,ITEM,RATING")(text) if "," in text else positive_int(text)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line (None: that of this process), complete."""
    parser = make_parser()
    args = options.parse(parser, argv)
    if isinstance(args.columns, str) and args.ratings is None and not args.resume:
        parser.error(f"argument --columns: {args.columns} names columns of --ratings, which is missing")
    if isinstance(args.columns, int) and args.ratings is not None:
        parser.error(f"argument --columns: {args.columns} does not name three columns of --ratings: USER,ITEM,RATING")
    if unfit := find_unfit(args):
        parser.error(unfit)
    return complete(args)


def find_unfit(args: argparse.Namespace) -> str | None:
    """The first given option that another one leaves without effect, in words; None if there is none."""
    solver = solver_of(args)
    others = (*DESCENT_ONLY, *STEPS_ONLY, *RANKING_ONLY)
    useless = list({"sgd": RANKING_ONLY, "bpr": DESCENT_ONLY}.get(solver, others))
    if solver == "gibbs":
        useless += NOT_SAMPLED
        if args.burn_in >= (args.epochs or SOLVER_DEFAULTS["gibbs"]["epochs"]):
            return f"argument --burn-in: {args.burn_in} of {args.epochs or SOLVER_DEFAULTS['gibbs']['epochs']} --epochs"
    else:
        useless += SAMPLED_ONLY
    if args.implicit or solver == "bpr":
        if solver not in ("als", "bpr"):
            return f"argument --implicit: only --solver als and bpr are for counts, not {solver}"
        useless += ["no_biases", "bias_regularization", *(["alpha"] if solver == "bpr" else [])]
    else:
        useless += ["alpha", "top"]
    for name in useless:
        if name in args.given:
            shown = "--implicit" if args.implicit and solver == "als" else f"--solver {solver}"
            return f"argument --{name.replace('_', '-')}: has no effect with {shown}"
    return None


def solver_of(args: argparse.Namespace) -> str:
    """The value of ``--solver``, or what follows from other options."""
    return args.solver or ("als" if args.implicit else "sgd")


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults that depend on other options."""
    args.num_columns = COLUMNS
    if isinstance(args.columns, int):
        args.num_columns, args.columns = args.columns, None
        args.given = args.given - {"columns"} | {"num_columns"}
    args.solver = solver_of(args)
    args.implicit = args.implicit or args.solver == "bpr"
    defaults = {"epochs": 40, **DEFAULTS["synthetic" if args.ratings is None else "ratings"]}
    if args.solver != "sgd":
        defaults |= SOLVER_DEFAULTS["implicit" if args.implicit and args.solver == "als" else args.solver]
    if args.ratings is None:
        defaults["rank"] = args.planted_rank
    if args.step == "adagrad":
        defaults["learning_rate"] = ADAGRAD_RATE
    defaults["batch"] = BATCH[{"sgd": args.algorithm, "bpr": "plain"}.get(args.solver, "dsgd")]
    defaults["evaluate_every"] = SELDOM.get("implicit" if args.implicit else args.solver, 1)
    defaults["entries"] = max(args.rows * args.num_columns // 10, args.rows)
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def make_parser() -> argparse.ArgumentParser:
    """All options of the application; `complete` replaces the default None."""
    parser = options.new_parser("mf", DESCRIPTION, EXAMPLES)
    add_data_options(parser)
    add_model_options(parser)
    system, output = options.add_shared_options(
        parser,
        epochs=None,
        epochs_help="40; als: 15; gibbs: 200; bpr: 100",
        dim=None,
        dim_names="--rank",
        dim_help="length of each factor (default: 40; implicit, bpr: 32; gibbs: 10; synthetic matrix: that planted)",
    )
    output.add(
        "--predictions FILE",
        Path,
        "write a line for each held-out rating: row, column, rating and prediction, with gibbs also the standard "
        "deviation of the prediction, separated by tabs",
    )
    output.add(
        "--evaluate-every",
        positive_int,
        "epochs between two evaluations of what takes long: with --implicit and bpr, how held-out items are ranked; "
        "with gibbs, the error on the training ratings. The last epoch is evaluated in any case (default: implicit and "
        f"bpr: {SELDOM['implicit']}; gibbs: {SELDOM['gibbs']}; otherwise 1)",
    )
    system.add(
        "--algorithm",
        tuple(BATCH),
        "of sgd. dsgd: in turns, each worker has a block of columns for itself; columnwise: the ratings of one column "
        "after the other, columns in random order; plain: all ratings in random order",
        default="dsgd",
    )
    system.add(
        "--batch",
        positive_int,
        "number of ratings between a pull of their parameters and a push of the changes; if a "
        "block of dsgd has more, a batch has the ratings of a random group of rows "
        f"(default: {BATCH['plain']}; dsgd: {BATCH['dsgd']})",
    )
    options.add_lookahead_option(system, DEFAULT_LOOKAHEAD, "batches (not in dsgd)")
    group = options.add_replication_options(
        parser,
        keys="columns (not in dsgd)",
        default=options.CHEAPER,
        items="ratings",
        sync_default=None,
        sync_help=f"{BATCHES_PER_ROUND} batches of each worker, and {HOTTEST_PER_ROUND} ratings of the hottest column",
    )
    options.add_sampling_options(group, "columns")
    search.add_options(
        parser,
        "the strength of regularization and, by solver, the rank and the learning rate, or alpha",
        "RMSE (implicit and bpr: NDCG) on a tenth of the training ratings",
    )
    return parser


def searched(args: argparse.Namespace) -> tuple[dict[str, search.Range], search.Goal]:
    """What ``--search`` varies, and what it looks for."""
    ranges = {"regularization": search.Range(0.02, 0.3), "rank": search.Range(8, 80, is_integer=True)}
    if args.ratings is None:  # there is little noise
        ranges = {"regularization": search.Range(0.0005, 0.05)}
    if args.solver == "sgd":
        ranges |= {"learning_rate": search.Range(0.005, 0.05), "decay": search.Range(0.9, 0.99)}
    elif args.solver == "bpr":
        ranges |= {
            "regularization": search.Range(0.001, 0.1),
            "learning_rate": search.Range(0.01, 0.2),
            "decay": search.Range(0.95, 1.0),
        }
    elif args.implicit:
        ranges |= {"regularization": search.Range(0.1, 30.0), "alpha": search.Range(0.05, 20.0)}
    elif args.solver == "gibbs":
        ranges = {"rank": search.Range(4, 40, is_integer=True)}
    return ranges, search.Goal("ndcg", False) if args.implicit else search.Goal("rmse", True)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on ratings."""
    data = Group(parser.add_argument_group("ratings"))
    data.add(
        "--ratings FILE",
        str,
        "lines 'user item rating', separated by tab, ::, comma, semicolon, | or white space, with or without a header, "
        "or MatrixMarket; plain, gzip, bzip2, xz, or zip with one file. stdlib: how often the modules of this Python's "
        "library use which identifiers, in logarithms (default: a synthetic matrix)",
    )
    data.add(
        "--columns A,B,C",
        ColumnsOrNumber(),
        "which columns of --ratings and --test are user, item and rating, each by its name in the header or its number "
        "from 1, such as userId,movieId,rating or 2,3,4 (default: as the header says, otherwise 1,2,3). Without "
        "--ratings: N, the number of columns of the synthetic matrix (default: 500)",
    )
    data.add("--test FILE", Path, "held-out ratings (default: some of --ratings)")
    data.add(
        "--test-fraction",
        fraction,
        "without --test: hold out this share, determined by the seed, the same for any number of ranks; 0: none",
        default=0.1,
    )
    made = Group(
        parser.add_argument_group(
            "synthetic matrix", "planted factors plus noise; rows and columns by Zipf's law; see --columns, too"
        )
    )
    made.add("--rows", positive_int, "default: %(default)s", default=1000)
    made.add("--entries", positive_int, "number of distinct cells with a rating (default: a tenth of all)")
    made.add("--planted-rank", positive_int, "length of the planted factors", default=5)
    made.add("--noise", natural_float, "standard deviation of the noise; that of entries is about 1", default=0.1)
    made.add("--exponent", natural_float, "exponent of Zipf's law", default=1.1)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on the model and the optimizer."""
    model = Group(parser.add_argument_group("model"))
    model.add(
        "--solver",
        ("sgd", "als", "gibbs", "bpr"),
        "sgd: stochastic gradient descent; als: alternating least squares; gibbs: draw factors from their distribution "
        "given the ratings, and predict by the mean over the draws; bpr: of implicit feedback, rank what a user has "
        "above a random item that the user has not, whatever the ratings are (default: sgd; with --implicit als)",
    )
    model.add(
        "--implicit",
        bool,
        "ratings are counts of what users did: predict 1 where there are any and 0 elsewhere, with the more confidence "
        "the larger they are; no biases. Quality is measured by how held-out items are ranked among all that are new "
        "to the user",
    )
    model.add("--alpha", natural_float, "implicit, als: a rating r has the confidence 1 + X r", default=0.5)
    model.add("--top K", positive_int, "implicit: evaluate the first K items of each row", default=10)
    model.add("--burn-in", natural_int, "gibbs: predict by the draws after so many epochs", default=20)
    model.add(
        "--kept-draws",
        positive_int,
        "gibbs: the model in --output predicts the mean of so many draws, and has as many times --rank factors",
        default=20,
    )
    model.add(
        "--side-information",
        ("none", "rows", "columns", "both"),
        "gibbs: what is expected of the values of these lines depends on which others they have ratings with, whatever "
        "the ratings are. Of columns, for instance: who rates an item says something about it",
        default="columns",
    )
    model.add("--no-biases", bool, "predict <row factor, column factor> alone")
    model.add("--init-std", positive_float, "standard deviation of the initial factors; biases start at 0", default=0.1)
    model.add(
        "--step",
        ("sgd", "adagrad", "bold-driver"),
        "sgd: the learning rate decays with the epochs; adagrad: each element has its own rate; bold-driver: the rate "
        "increases by 5%% after an epoch in which the training loss decreased, and is halved after one in which it "
        "increased",
        default="sgd",
    )
    model.add(
        "--learning-rate --lr",
        positive_float,
        "initial learning rate (default: 0.02; synthetic matrix, adagrad and bpr: 0.05)",
    )
    model.add(
        "--decay",
        positive_float,
        "sgd, bpr: factor of the learning rate after each epoch (default: 0.95; synthetic matrix: 0.97; bpr: 0.98)",
    )
    model.add(
        "--regularization",
        natural_float,
        "L2 regularization of factors, per rating (default: 0.1; synthetic matrix: 0.003; bpr: 0.01); "
        "implicit: once (default: 1)",
    )
    model.add("--bias-regularization", natural_float, "L2 regularization of biases, per rating (default: 0.02)")
