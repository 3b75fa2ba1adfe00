"""``python -m lapse.apps.kge``: the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lapse.apps import _base
from lapse.apps.kge import models

DESCRIPTION = """\
Train knowledge-graph embeddings, and measure how well they complete triples.

The parameters, a vector for each entity and each relation and its AdaGrad state, live in a Lapse
server that spans all ranks; each worker trains on its own share of the triples.
"""

EXAMPLES = """\
defaults by model (found on FB15k-237):
{defaults}

examples:
  python -m lapse.apps.kge                           one process, the graph of the standard library
  mpirun -n 2 python -m lapse.apps.kge --dataset fb15k-237 --output model
                                                     two ranks, ComplEx, a data set of yours
  mpirun -n 2 python -m lapse.apps.kge --dataset fb15k-237 --model rescal --eval-every 10 --patience 3

The output folder holds entities.npy, relations.npy (for numpy.load), entities.tsv, relations.tsv
(ids and names) and model.json. The last line of the output is RESULT and a JSON object: mrr, hits1,
hits3 and hits10 are filtered, on test, over both sides.
"""


def make_parser() -> argparse.ArgumentParser:
    """All options of the application; what `models.complete` fills in is None."""
    parser = argparse.ArgumentParser(
        prog="python -m lapse.apps.kge", description=DESCRIPTION,
        epilog=EXAMPLES.format(defaults=models.describe_defaults()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    graph = parser.add_argument_group("data")
    graph.add_argument("--dataset", type=Path, metavar="DIR",
                       help="folder with train, valid and test, each .txt (subject, relation and object "
                            "by name, between tabs) or .del (by id), plain or .gz (default: the modules, "
                            "classes and functions of this Python's standard library)")
    graph.add_argument("--partition", choices=("random", "relation"), default="random",
                       help="how triples are shared out to workers: at random, or all of a relation to "
                            "one worker, so that no two workers need it (default: %(default)s)")
    add_model_options(parser)
    add_training_options(parser)
    system, output = _base.add_shared_options(parser, epochs=None, dim=None)
    output.add_argument("--eval-every", type=_base.natural_int, default=10, metavar="N",
                        help="measure the quality on valid every N epochs and after the last one, and "
                             "end with the best model; 0: never (default: %(default)s)")
    output.add_argument("--patience", type=_base.natural_int, default=0, metavar="N",
                        help="stop when N evaluations in a row found no better model; 0: train all "
                             "epochs (default: %(default)s)")
    system.add_argument("--lookahead", type=_base.natural_int, default=1, metavar="N",
                        help="how many blocks ahead of their turn parameters are localized "
                             "(default: %(default)s)")
    add_replication_options(parser)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what concerns the model and the loss."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=tuple(models.DEFAULTS), default="complex",
                       help="how a triple is scored (default: %(default)s)")
    group.add_argument("--preset", choices=tuple(models.PRESETS),
                       help="lapse: the setting of the papers on Lapse and NuPS (binary cross-entropy, "
                            "10 negatives per side, small blocks); options given beside it win")
    group.add_argument("--reciprocal-relations", action=argparse.BooleanOptionalAction, default=None,
                       help="ask for subjects by relations of their own (default: by model)")
    group.add_argument("--norm", type=int, choices=(1, 2), default=1,
                       help="transe: of the distance (default: %(default)s)")
    group.add_argument("--loss", choices=("softmax", "bce", "margin"),
                       help="softmax: cross-entropy of the true entity against the negatives; bce: "
                            "binary cross-entropy of each; margin: true triples score higher by --margin "
                            "(default: softmax)")
    group.add_argument("--margin", type=_base.positive_float, default=1.0, metavar="X",
                       help="of the margin loss (default: %(default)s)")
    group.add_argument("--num-negs-per-pos", type=_base.positive_int, metavar="N",
                       help="random entities against each side of a triple, shared by a block "
                            f"(default: {models.COMMON['num_negs_per_pos']})")
    group.add_argument("--init-std", type=_base.positive_float, metavar="X",
                       help="standard deviation of the vectors at the start "
                            f"(default: {models.COMMON['init_std']})")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add what concerns the steps."""
    group = parser.add_argument_group("optimisation (AdaGrad)")
    group.add_argument("--batch-size", type=_base.positive_int, metavar="N",
                       help="triples of a block: their gradients are summed per parameter "
                            f"(default: {models.COMMON['batch_size']})")
    group.add_argument("--lr", type=_base.positive_float, metavar="X",
                       help=f"learning rate (default: {models.COMMON['lr']})")
    group.add_argument("--lr-final", type=fraction, metavar="X",
                       help="share of the learning rate that is left in the last epoch, falling linearly "
                            f"(default: {models.COMMON['lr_final']:g})")
    for kind in ("entity", "relation"):
        group.add_argument(f"--{kind}-n3", type=penalty, metavar="X",
                           help=f"weight of |x|^3, summed over a vector, for each {kind} of a triple "
                                "(default: by model)")
        group.add_argument(f"--{kind}-l2", type=penalty, metavar="X",
                           help="likewise of x^2 (default: by model)")
        group.add_argument(f"--{kind}-dropout", type=rate, metavar="P",
                           help=f"probability with which an element of the {kind} that a question is made "
                                "of is dropped (default: by model)")


def add_replication_options(parser: argparse.ArgumentParser) -> None:
    """Add what concerns hot spots and negatives."""
    group = parser.add_argument_group("replication and sampling")
    group.add_argument("--replicate", type=_base.natural_int, metavar="N",
                       help="lapse2: replicate the N entities and relations that are used most; 0: none "
                            "(default: those for which it costs less than to move them, at most half of "
                            "all values)")
    group.add_argument("--sync-triples", type=_base.positive_int, default=4096, metavar="N",
                       help="lapse2: triples that all ranks together train at most between two rounds in "
                            "which replicas are synchronised (default: %(default)s)")
    group.add_argument("--sampling-scheme", choices=("naive", "preloc", "pool", "local"),
                       help="how negatives are drawn. naive: when they are needed; preloc: ahead, and "
                            "localized; pool: ahead, each used several times; local: among the entities "
                            "that are here (default: classic: naive, lapse: preloc, lapse2: local)")
    group.add_argument("--sampling-reuse", type=_base.positive_int, default=16, metavar="N",
                       help="pool: how often each draw is used (default: %(default)s)")
    group.add_argument("--sampling-postpone", action="store_true",
                       help="pool: use negatives that are elsewhere later")


def penalty(text: str) -> float:
    """For `argparse`: a finite number from 0 on."""
    return _between(text, 0.0, 1e6, "a number from 0 to 1e6")


def rate(text: str) -> float:
    """For `argparse`: a number from 0 to below 1."""
    return _between(text, 0.0, 1 - 1e-6, "a number from 0 to below 1")


def fraction(text: str) -> float:
    """For `argparse`: a number from 0 to 1."""
    return _between(text, 0.0, 1.0, "a number from 0 to 1")


def _between(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text} is not {what}")
    return value


def main(argv: list[str] | None = None) -> None:
    """Run the application with the given arguments (default: those of the command line)."""
    args = _base.parse(make_parser(), argv)
    models.complete(args)
    from mpi4py import MPI  # not before: `--help` must not start MPI

    with _base.job(MPI.COMM_WORLD):
        from lapse.apps.kge import train

        train.run(args, MPI.COMM_WORLD)


if __name__ == "__main__":
    sys.exit(main())
