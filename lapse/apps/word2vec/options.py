"""The options of ``python -m lapse.apps.word2vec``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lapse.apps._shared import options
from lapse.apps._shared.options import fraction, natural_int, positive_float, positive_int

DESCRIPTION = """\
Train word vectors by skip-gram with negative sampling (Mikolov et al. 2013).

The parameters, an input and an output vector for each word, are stored in a Lapse server that spans all
ranks; each worker trains on its own share of the text. Options are named as in gensim.
"""

EXAMPLES = """\
examples:
  python -m lapse.apps.word2vec                      one process, on the documentation of this Python
  mpirun -n 4 python -m lapse.apps.word2vec --corpus text.txt.gz --output model
                                                     four ranks, on your own text (one sentence per line)

The model folder contains vectors.txt (word vectors), context.txt (context vectors) and vocab.txt (counts);
gensim reads the first two: KeyedVectors.load_word2vec_format("model/vectors.txt").
The last line of the output is RESULT and a JSON object.
"""

#: Enough to hide the time a key needs to arrive; with more, others take it away before its turn.
DEFAULT_LOOKAHEAD = 1
#: Summed updates that were computed from older values make frequent words' vectors diverge: every
#: 2,000 words the loss stays within 1%, every 10,000 it grows by 15% on 4 ranks and 50% on 8.
DEFAULT_SYNC_WORDS = 2000


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line (None: that of this process)."""
    return options.parse(make_parser(), argv)


def make_parser() -> argparse.ArgumentParser:
    """All options of the application."""
    parser = options.new_parser("word2vec", DESCRIPTION, EXAMPLES)
    text = parser.add_argument_group("text")
    text.add_argument(
        "--corpus",
        type=Path,
        metavar="FILE",
        help="text with one sentence per line and words separated by spaces, plain or gzip (default: the "
        "documentation of this Python's standard library)",
    )
    text.add_argument(
        "--min-count",
        type=positive_int,
        default=5,
        metavar="N",
        help="ignore words that occur less often (default: %(default)s)",
    )
    text.add_argument(
        "--sample",
        type=fraction,
        default=1e-3,
        metavar="X",
        help="downsample words that are more frequent than this share of the text; 0: none (default: %(default)s)",
    )
    add_model_options(parser)
    system, output = options.add_shared_options(parser, epochs=5, dim=100)
    output.add_argument("--binary", action="store_true", help="write the vectors in word2vec's binary format")
    system.add_argument(
        "--unit",
        type=positive_int,
        metavar="N",
        help="number of pairs that are trained between a pull of their parameters and a push of the "
        "changes (default: 640 on one or two hosts, otherwise 160)",
    )
    system.add_argument(
        "--block",
        type=positive_int,
        metavar="N",
        help="lapse2: number of units for which vectors that are not replicated are localized, pulled "
        "and pushed together (default: up to 10, as long as none of them is used often)",
    )
    options.add_lookahead_option(system, DEFAULT_LOOKAHEAD, "blocks (lapse: units)")
    group = options.add_replication_options(
        parser,
        keys="vectors",
        limit=", at most 10%% of all",
        items="words",
        sync_default=DEFAULT_SYNC_WORDS,
        sync_help="%(default)s; with many more, the loss increases",
    )
    options.add_sampling_options(group, "words")
    group.add_argument(
        "--slow-down",
        type=positive_float,
        default=1.0,
        metavar="X",
        help="for experiments: sleep after each unit, so that training takes X times as long (default: %(default)s)",
    )
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on pairs, negative samples and the learning rate."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--window",
        type=positive_int,
        default=5,
        metavar="N",
        help="maximum distance between the words of a pair (default: %(default)s)",
    )
    model.add_argument(
        "--negative",
        type=natural_int,
        default=5,
        metavar="N",
        help="number of negative samples per pair (default: %(default)s)",
    )
    model.add_argument(
        "--negatives-per",
        choices=("word", "pair"),
        default="word",
        help="which pairs share negative samples. word: all pairs of a center word (Ji et al. 2016), so "
        "that fewer vectors are read and written; pair: none (Mikolov et al. 2013), which is two "
        "to three times as slow and not better by the objective on held-out text (default: "
        "%(default)s)",
    )
    model.add_argument(
        "--negative-reuse",
        type=positive_int,
        metavar="N",
        help="how many center words of a unit (with --negatives-per pair: how many pairs) use the same "
        "negative samples. Larger values save copies of vectors; values up to 8 did not change the "
        "objective (default: 4 on one or two hosts, otherwise 1; ranks that share no memory count "
        "as hosts)",
    )
    model.add_argument(
        "--alpha", type=positive_float, default=0.025, metavar="X", help="initial learning rate (default: %(default)s)"
    )
    model.add_argument(
        "--min-alpha", type=positive_float, default=1e-4, metavar="X", help="final learning rate (default: %(default)s)"
    )
