"""The options of ``python -m lapse.apps.kge``, and the settings that suit each model."""

from __future__ import annotations

import argparse
from pathlib import Path

from lapse.apps._shared import options, search
from lapse.apps._shared.columns import ColumnsType
from lapse.apps._shared.options import Group, NumberType, natural_int, positive_float, positive_int
from lapse.apps.kge.placement import FIRST_EPOCHS, ROUNDS_AT_FIRST, ROUNDS_LATER, TRIPLES_OF_SUMS

DESCRIPTION = """\
Train knowledge-graph embeddings, and measure how well they complete triples.

The parameters, a vector for each entity and each relation with its AdaGrad state, are stored in a Lapse
server that spans all ranks; each worker trains on its own share of the triples.
"""

EXAMPLES = """\
defaults by model (found on FB15k-237):
{defaults}

what --preset takes instead; other options override it:
{presets}

examples:
  python -m lapse.apps.kge                           one process, on the graph of the standard library
  mpirun -n 2 python -m lapse.apps.kge --dataset fb15k-237 --output model
                                                     two ranks, ComplEx, on your own data set
  mpirun -n 2 python -m lapse.apps.kge --dataset fb15k-237 --model rescal --eval-every 10 --patience 3
  python -m lapse.apps.kge --dataset fb15k-237 --preset quality --workers 2
  python -m lapse.apps.kge predict model json imports '?'
                                                     ask the model; predict --help explains it

The output folder contains entities.npy, relations.npy (for numpy.load), entities.tsv, relations.tsv
(ids and names) and model.json. The last line of the output is RESULT and a JSON object: mrr, hits1,
hits3 and hits10 are filtered, on the test triples, over both sides.
"""

#: The value of ``--num-negs-per-pos all``.
ALL = 0
#: Values of options that are not given, by model. Found on FB15k-237 (valid).
DEFAULTS: dict[str, dict] = {
    "complex": dict(dim=200, epochs=25, reciprocal_relations=True, entity_n3=0.08, relation_n3=0.08),
    "distmult": dict(dim=200, epochs=25, reciprocal_relations=True, entity_n3=0.08, relation_n3=0.08),
    "rescal": dict(dim=100, epochs=20, entity_n3=0.15, relation_l2=0.005),
    "transe": dict(dim=128, epochs=25),
}
#: The same for all models.
COMMON = dict(
    min_triples=0,
    optimizer="adagrad",
    loss="softmax",
    batch_size=512,
    num_negs_per_pos=256,
    lr=0.1,
    lr_final=0.1,
    lr_plateau=1.0,
    init_std=0.05,
    reciprocal_relations=False,
    entity_n3=0.0,
    relation_n3=0.0,
    entity_l2=0.0,
    relation_l2=0.0,
    entity_dropout=0.0,
    relation_dropout=0.0,
    relation_weight=0.0,
    dura=0.0,
    targets_per_query=0,
)
#: Options that need all entities as negatives.
ONLY_WITH_ALL = ("relation_weight", "dura", "targets_per_query")
#: The learning rate of Adam, found on FB15k-237 (valid).
ADAM_LR = 0.03
#: `--num-negs-per-pos all`: as Lacroix, Usunier, Obozinski, *Canonical Tensor Decomposition for Knowledge Base
#: Completion*, ICML 2018. Each of a triple's two questions has a penalty there, so that entities have it twice.
_FULL = dict(batch_size=1000, init_std=1e-3, reciprocal_relations=True, lr_final=1.0, targets_per_query=8)
_N3 = dict(entity_n3=0.1, relation_n3=0.05)
#: The same, by model.
FULL = {"complex": _FULL | _N3, "distmult": _FULL | _N3, "rescal": _FULL | dict(dura=0.05), "transe": _FULL}
#: `--preset lapse`: Renz-Wieland et al., *Dynamic Parameter Allocation in Parameter Servers*, VLDB 2020, and
#: *NuPS*, SIGMOD 2022: binary cross-entropy with 10 negatives per side, AdaGrad 0.1, initial values near 0. (They train
#: triple by triple; here a small block shares its negatives.)
LAPSE = dict(
    loss="bce",
    num_negs_per_pos=10,
    batch_size=32,
    lr=0.1,
    lr_final=1.0,
    init_std=0.01,
    entity_l2=5e-4,
    relation_l2=5e-4,
)
_ALL = dict(num_negs_per_pos=ALL)


def _long(epochs: int) -> dict[str, int]:
    """So many epochs; of a graph that is smaller than FB15k-237 more, to train as many triples as of that."""
    return dict(epochs=epochs, min_triples=270_000 * epochs)


#: `--preset fast`, `quality` and `best`, by model. `--help` says what they take.
PRESETS: dict[str, dict[str, dict]] = {
    "fast": {
        "complex": _ALL | _long(12) | dict(dim=200, relation_weight=1.0),
        "distmult": _ALL | _long(12) | dict(dim=200, relation_weight=1.0),
        "rescal": _ALL | _long(10) | dict(dim=100),
        "transe": _long(25) | dict(dim=128),
    },
    "quality": {
        "complex": _ALL | _long(25) | dict(dim=400, relation_weight=1.0),
        "distmult": _ALL | _long(25) | dict(dim=400, relation_weight=1.0),
        "rescal": _ALL | _long(30) | dict(dim=256),
        "transe": _long(50) | dict(dim=256, num_negs_per_pos=512),
    },
    "best": {
        "complex": _ALL | _long(30) | dict(dim=1000, relation_weight=1.0),
        "distmult": _ALL | _long(30) | dict(dim=1000, relation_weight=1.0),
        "rescal": _ALL | _long(50) | dict(dim=256),
        "transe": _long(100) | dict(dim=512, num_negs_per_pos=1024),
    },
    "lapse": dict.fromkeys(DEFAULTS, LAPSE),
}


def searched(args: argparse.Namespace) -> tuple[dict[str, search.Range], search.Goal]:
    """What ``--search`` varies, and what it looks for: rates and penalties around those of the model and preset."""
    penalties = ("entity_n3", "relation_n3", "entity_l2", "relation_l2", "dura")
    present = {name: getattr(args, name) for name in penalties if getattr(args, name) and name not in args.given}
    ranges = {name: search.Range(value / 10, value * 10) for name, value in present.items()}
    if not ranges:
        ranges = {name: search.Range(1e-6, 1e-2) for name in ("entity_l2", "relation_l2")}
    ranges |= {"lr": search.Range(args.lr / 5, args.lr * 5), "entity_dropout": search.Range(0.0, 0.4)}
    return ranges, search.Goal("mrr", False)


def negatives(text: str) -> int:
    """The type of ``--num-negs-per-pos``."""
    return ALL if text == "all" else positive_int(text)


penalty = NumberType(float, lambda value: 0 <= value <= 1e6, "a number from 0 to 1e6")
probability = NumberType(float, lambda value: 0 <= value <= 1 - 1e-6, "a number of at least 0 and below 1")
share = NumberType(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line (None: that of this process), complete."""
    parser = make_parser()
    args = complete(options.parse(parser, argv))
    if unfit := contradiction(args):
        parser.error(unfit)
    return args


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in the options that were not given: by the preset, by the model, by what is common, in this order."""
    preset = PRESETS[args.preset][args.model] if args.preset else {}
    of_model, of_all = DEFAULTS[args.model], {}
    given = args.num_negs_per_pos
    if (preset.get("num_negs_per_pos") if given is None else given) == ALL:
        of_all = FULL[args.model]
    else:  # a preset may suit all negatives only
        preset = {name: value for name, value in preset.items() if name not in ONLY_WITH_ALL}
    if args.epochs is not None:
        preset = {name: value for name, value in preset.items() if name != "min_triples"}
    if of_all or args.preset == "lapse":  # these replace the penalties and the reciprocal relations of the model, too
        of_model = {name: of_model[name] for name in ("dim", "epochs")}
    of_optimizer = {"lr": ADAM_LR} if args.optimizer == "adam" else {}
    for name, value in (COMMON | of_model | of_all | preset | of_optimizer).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.optimizer == "adam" and "combine" not in args.given:
        args.combine = "sum"
    return args


def epochs_for(args: argparse.Namespace, num_triples: int) -> int:
    """The epochs of a training with so many triples: as many as are wanted for ``--min-triples`` as well."""
    return max(args.epochs, -(-args.min_triples // max(num_triples, 1)))


def contradiction(args: argparse.Namespace) -> str | None:
    """What is wrong about options that do not go together, with the way out."""
    if args.num_negs_per_pos == ALL:
        if args.model == "transe":
            return (
                "argument --num-negs-per-pos: all entities are scored by products of matrices, but the scores of "
                "transe are distances: give it a number of negative samples"
            )
        if args.loss != "softmax":
            return f"argument --num-negs-per-pos: all requires --loss softmax, not {args.loss}"
        if args.partition == "relation":
            return "argument --partition: with all negatives all workers train each triple together; omit it"
    else:
        for name in ONLY_WITH_ALL:
            if getattr(args, name):
                return f"argument {_flag(name)}: requires --num-negs-per-pos all"
    if args.optimizer == "adam" and args.combine != "sum":
        return (
            f"argument --combine: {args.combine} is a rule about AdaGrad's steps; with --optimizer adam gradients are "
            "summed: omit it"
        )
    if args.relation_weight and args.model not in ("complex", "distmult"):
        return (
            f"argument --relation-weight: {args.model} would need as much work for each relation as complex for all of "
            "them: choose complex or distmult, or 0"
        )
    return None


def make_parser() -> argparse.ArgumentParser:
    """All options of the application; `complete` replaces the default None."""
    parser = options.new_parser(
        "kge", DESCRIPTION, EXAMPLES.format(defaults=describe_defaults(), presets=describe_presets())
    )
    graph = Group(parser.add_argument_group("data"))
    graph.add(
        "--dataset DIR",
        Path,
        "folder with train, valid and test, each .txt or .tsv (subject, relation and object by name, separated by "
        "tabs), .csv (by commas) or .del (by id), or with train2id.txt and so on of OpenKE; plain, gzip, bzip2, xz or "
        "zip (default: a graph of the modules, classes and functions of this Python's standard library)",
    )
    graph.add(
        "--columns A,B,C",
        ColumnsType("SUBJECT,RELATION,OBJECT"),
        "which columns are subject, relation and object, each by its number from 1 or its name in the header, such as "
        "1,3,2 for subject, object, relation (default: as a header says, otherwise 1,2,3)",
    )
    graph.add(
        "--partition",
        ("random", "relation"),
        "how triples are assigned to workers: at random, or all triples of a relation to one worker, so that no two "
        "workers need it",
        default="random",
    )
    add_model_options(parser)
    add_optimizer_options(parser)
    system, output = options.add_shared_options(parser, epochs=None, dim=None)
    output.add(
        "--eval-every",
        natural_int,
        "evaluate on the valid triples every N epochs and after the last one, and keep the best model; 0: never",
        default=10,
    )
    output.add(
        "--patience",
        natural_int,
        "stop early after N evaluations in a row without improvement; 0: train all epochs",
        default=0,
    )
    options.add_lookahead_option(system, 1, "blocks")
    group = options.add_replication_options(
        parser,
        keys="entities and relations",
        default="as many as fit into --replica-memory",
        items="triples",
        sync_default=None,
        sync_help=f"{ROUNDS_AT_FIRST} times in each of the first {FIRST_EPOCHS} epochs, {ROUNDS_LATER} times in later "
        f"ones; {TRIPLES_OF_SUMS} with --combine sum",
    )
    options.add_combining_options(group, combine="adagrad", wire="bfloat16")
    options.add_sampling_options(group, "entities")
    search.add_options(parser, "learning rate, penalties and dropout", "filtered MRR on the validation triples")
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on the model and the loss."""
    group = Group(parser.add_argument_group("model"))
    group.add("--model", tuple(DEFAULTS), "how triples are scored", default="complex")
    group.add(
        "--preset",
        tuple(PRESETS),
        "fast, quality, best: settings for more and more time, see the tables below; lapse: those of the papers on "
        "Lapse and NuPS (binary cross-entropy, 10 negative samples per side, small blocks); other options override it",
    )
    group.add(
        "--reciprocal-relations",
        bool,
        "predict subjects by separate, inverse relations (default: depends on the model)",
        action=argparse.BooleanOptionalAction,
    )
    group.add("--norm", (1, 2), "transe: norm of the distance", default=1, type=int)
    group.add(
        "--loss",
        ("softmax", "bce", "margin"),
        "softmax: cross-entropy of the true entity against the negative samples; bce: binary cross-entropy of each; "
        "margin: true triples score higher by --margin (default: softmax)",
    )
    group.add("--margin", positive_float, "margin of the margin loss", default=1.0)
    group.add(
        "--num-negs-per-pos N|all",
        negatives,
        "number of negative samples per side of a triple, shared by a block; all: every entity is a negative, and all "
        f"workers train a block together (default: {COMMON['num_negs_per_pos']})",
    )
    group.add(
        "--relation-weight",
        penalty,
        "with all negatives: also predict the relation from both entities, with this weight of its loss (default: 0)",
    )
    group.add(
        "--dura",
        penalty,
        "with all negatives: weight of the squared norms of queries and entities, for each of a triple's two questions "
        "(DURA, Zhang et al. 2020; default: depends on the model)",
    )
    group.add(
        "--targets-per-query",
        positive_int,
        "with all negatives: how many triples with the same subject and relation, or relation and object, are asked "
        f"together, so that they share their scores (default: {_FULL['targets_per_query']})",
    )
    group.add(
        "--init-std", positive_float, f"standard deviation of the initial vectors (default: {COMMON['init_std']})"
    )


def add_optimizer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on the optimizer and on regularization."""
    group = Group(parser.add_argument_group("optimizer"))
    group.add(
        "--optimizer",
        ("adagrad", "adam"),
        "adagrad: by the kernel, with sums of squares behind the vectors; adam: by the server, where a value lies, "
        f"with moments behind it (default: {COMMON['optimizer']})",
    )
    group.add(
        "--batch-size",
        positive_int,
        f"number of triples of a block; their gradients are summed per parameter (default: {COMMON['batch_size']})",
    )
    group.add(
        "--min-triples",
        natural_int,
        "train at least so many triples: take more epochs than --epochs says if there are few (default: 0; with "
        "--preset it depends on the model, unless --epochs is given)",
    )
    group.add("--lr", positive_float, f"learning rate (default: {COMMON['lr']}, adam: {ADAM_LR})")
    group.add(
        "--lr-final",
        share,
        f"learning rate of the last epoch, as a share of --lr; it decreases linearly (default: {COMMON['lr_final']:g})",
    )
    group.add(
        "--lr-plateau",
        share,
        "multiply the learning rate by this after each evaluation on valid that finds no better model (--eval-every; "
        f"default: {COMMON['lr_plateau']:g})",
    )
    for kind in ("entity", "relation"):
        group.add(
            f"--{kind}-n3",
            penalty,
            f"N3 regularization: weight of |x|^3, summed over the vector of each {kind} of a "
            "triple (default: depends on the model)",
        )
        group.add(f"--{kind}-l2", penalty, "L2 regularization: weight of x^2, likewise (default: depends on the model)")
        group.add(
            f"--{kind}-dropout P",
            probability,
            f"probability of dropping an element of the {kind} that a query is made of (default: depends on the model)",
        )


def describe_defaults() -> str:
    """A table for ``--help``."""
    names = sorted({name for values in DEFAULTS.values() for name in values})
    return _table("", names, {model: COMMON | values for model, values in DEFAULTS.items()})


def describe_presets() -> str:
    """A table for ``--help`` of each preset that depends on the model."""
    tables = []
    for preset in ("fast", "quality", "best"):
        values = {}
        for model in DEFAULTS:
            args = argparse.Namespace(**dict.fromkeys(COMMON | DEFAULTS[model]), model=model, preset=preset)
            values[model] = vars(complete(args))
        names = [name for name in COMMON | DEFAULTS["complex"] if name == "dim" or _is_set(name, values)]
        tables.append(_table(preset, sorted(names), values))
    return "\n".join(tables)


def _is_set(name: str, values: dict[str, dict]) -> bool:
    """Whether some model has another value than without a preset."""
    return any(found[name] != (COMMON | DEFAULTS[model]).get(name) for model, found in values.items())


def _table(title: str, names: list[str], values: dict[str, dict]) -> str:
    rows = [[title, *values]]
    rows += [[_flag(name), *(_show(name, found[name]) for found in values.values())] for name in names]
    return "\n".join("  " + row[0].ljust(24) + "".join(cell.rjust(10) for cell in row[1:]) for row in rows)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _show(name: str, value: float | bool) -> str:
    if name == "num_negs_per_pos" and value == ALL:
        return "all"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:g}"
