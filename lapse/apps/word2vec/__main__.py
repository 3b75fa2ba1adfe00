"""``python -m lapse.apps.word2vec``: the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lapse.apps import _base

DESCRIPTION = """\
Train word vectors: skip-gram with negative sampling (Mikolov et al. 2013).

The parameters, an input and an output vector for each word, live in a Lapse server that spans all
ranks; each worker trains on its own share of the text. Options are named as in gensim.
"""

EXAMPLES = """\
examples:
  python -m lapse.apps.word2vec                      one process, the documentation of this Python
  mpirun -n 4 python -m lapse.apps.word2vec --corpus text.txt.gz --output model
                                                     four ranks, a text of yours (a sentence a line)

The model folder holds vectors.txt (word vectors), context.txt (context vectors) and vocab.txt
(counts); gensim reads the first two: KeyedVectors.load_word2vec_format("model/vectors.txt").
The last line of the output is RESULT and a JSON object.
"""


def make_parser() -> argparse.ArgumentParser:
    """All options of the application."""
    parser = argparse.ArgumentParser(
        prog="python -m lapse.apps.word2vec", description=DESCRIPTION, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = parser.add_argument_group("text")
    text.add_argument("--corpus", type=Path, metavar="FILE",
                      help="one sentence a line, words between spaces, plain or gzip (default: the "
                           "documentation of this Python's standard library)")
    text.add_argument("--min-count", type=_base.positive_int, default=5, metavar="N",
                      help="leave out words that occur less often (default: %(default)s)")
    text.add_argument("--sample", type=fraction, default=1e-3, metavar="X",
                      help="thin out words that are more frequent than this share of the text; "
                           "0: none (default: %(default)s)")
    model = parser.add_argument_group("model")
    model.add_argument("--window", type=_base.positive_int, default=5, metavar="N",
                       help="largest distance between the words of a pair (default: %(default)s)")
    model.add_argument("--negative", type=_base.natural_int, default=5, metavar="N",
                       help="random words against each pair (default: %(default)s)")
    model.add_argument("--negatives-per", choices=("word", "pair"), default="word",
                       help="whom random words are drawn for. word: all pairs of a centre word share theirs, as in "
                            "Ji et al. 2016, so that fewer vectors are read and written; pair: each pair has its "
                            "own, as in Mikolov et al. 2013: two to three times as slow, and no better by the "
                            "objective on held-out text (default: %(default)s)")
    model.add_argument("--negative-reuse", type=_base.positive_int, metavar="N",
                       help="how many centre words of a unit have the same random words (or pairs, with "
                            "--negatives-per pair). More save copies of vectors, and did not change the objective "
                            "up to 8 (default: 4 on one host or two, else 1; ranks without "
                            "shared memory count as hosts)")
    model.add_argument("--alpha", type=_base.positive_float, default=0.025, metavar="X",
                       help="learning rate at the start (default: %(default)s)")
    model.add_argument("--min-alpha", type=_base.positive_float, default=1e-4, metavar="X",
                       help="learning rate at the end (default: %(default)s)")
    system, output = _base.add_shared_options(parser, epochs=5, dim=100)
    output.add_argument("--binary", action="store_true",
                        help="write the vectors in word2vec's binary format")
    system.add_argument("--unit", type=_base.positive_int, metavar="N",
                        help="pairs that are trained between a pull of their parameters and a push "
                             "of the changes (default: 640 on one host or two, else 160)")
    system.add_argument("--block", type=_base.positive_int, metavar="N",
                        help="lapse2: units for which vectors that are not replicated are localized, "
                             "pulled and pushed together (default: up to 10, as long as none of them "
                             "is used often)")
    system.add_argument("--lookahead", type=_base.natural_int, default=DEFAULT_LOOKAHEAD,
                        metavar="N",
                        help="how many blocks (lapse: units) ahead of their turn vectors are "
                             "localized (default: %(default)s)")
    add_replication_options(parser)
    return parser


def add_replication_options(parser: argparse.ArgumentParser) -> None:
    """Add what concerns hot spots and negatives."""
    hot = parser.add_argument_group("replication and sampling")
    hot.add_argument("--replicate", type=_base.natural_int, metavar="N",
                     help="lapse2: replicate the N vectors that are used most; 0: none (default: those "
                          "for which it costs less than to move them, at most 10%% of all)")
    hot.add_argument("--sync-words", type=_base.positive_int, default=DEFAULT_SYNC_WORDS, metavar="N",
                     help="lapse2: words that all ranks together train at most between two rounds in "
                          "which replicas are synchronised; with many more the loss grows "
                          "(default: %(default)s)")
    hot.add_argument("--sampling-scheme", choices=("naive", "preloc", "pool", "local"),
                     help="how negatives are drawn. naive: when they are needed; preloc: ahead, and "
                          "localized; pool: ahead, each used several times; local: among the vectors "
                          "that are here (default: classic: naive, lapse: preloc, lapse2: local, with "
                          "few words preloc)")
    hot.add_argument("--sampling-reuse", type=_base.positive_int, default=16, metavar="N",
                     help="pool: how often each draw is used (default: %(default)s)")
    hot.add_argument("--sampling-postpone", action="store_true",
                     help="pool: use negatives that are elsewhere later")
    hot.add_argument("--slow-down", type=_base.positive_float, default=1.0, metavar="X",
                     help="for experiments: sleep after each unit, so that training takes X times as "
                          "long (default: %(default)s)")


#: Enough to hide the time a key needs to arrive; with more, others take it away before its turn.
DEFAULT_LOOKAHEAD = 1
#: Summed updates that were computed from older values make frequent words' vectors diverge: every
#: 2,000 words the loss stays within 1%, every 10,000 it grows by 15% on 4 ranks and 50% on 8.
DEFAULT_SYNC_WORDS = 2000


def fraction(text: str) -> float:
    """For `argparse`: a number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to below 1")
    return value


def main(argv: list[str] | None = None) -> None:
    """Run the application with the given arguments (default: those of the command line)."""
    args = _base.parse(make_parser(), argv)
    from mpi4py import MPI  # not before: `--help` must not start MPI

    with _base.job(MPI.COMM_WORLD):
        from lapse.apps.word2vec import train

        train.run(args, MPI.COMM_WORLD)


if __name__ == "__main__":
    sys.exit(main())
