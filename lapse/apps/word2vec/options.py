"""The options of ``python -m lapse.apps.word2vec``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lapse.apps._shared import options
from lapse.apps._shared.options import (
    Group,
    finite_float,
    fraction,
    natural_float,
    natural_int,
    positive_float,
    positive_int,
)
from lapse.apps.word2vec.vocabulary import NOISE_POWER

DESCRIPTION = """\
Train word vectors by skip-gram or CBOW with negative sampling (Mikolov et al. 2013).

The parameters, an input and an output vector for each word, are stored in a Lapse server that spans all
ranks; each worker trains on its own share of the text. Options are named as in gensim.
"""

EXAMPLES = """\
examples:
  python -m lapse.apps.word2vec                      one process, on the documentation of this Python
  mpirun -n 4 python -m lapse.apps.word2vec --corpus text.txt.gz --output model
                                                     four ranks, on your own text (one sentence per line)
  python -m lapse.apps.word2vec query model king - man + woman
                                                     ask the model; query --help explains it

The model folder contains vectors.txt (word vectors; also vectors.npy), context.txt (context vectors) and
vocab.txt (counts); gensim reads the first two: KeyedVectors.load_word2vec_format("model/vectors.txt").
The last line of the output is RESULT and a JSON object.
"""

#: Enough to hide the time a key needs to arrive; with more, others take it away before its turn.
DEFAULT_LOOKAHEAD = 1

#: Words of a synthetic text per different word.
LENGTH_PER_WORD = 50


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line (None: that of this process)."""
    return options.parse(make_parser(), argv)


def make_parser() -> argparse.ArgumentParser:
    """All options of the application."""
    parser = options.new_parser("word2vec", DESCRIPTION, EXAMPLES)
    text = Group(parser.add_argument_group("text"))
    text.add(
        "--corpus FILE",
        Path,
        "text with one sentence per line and words separated by spaces, plain or compressed: files, folders (all files "
        "below), patterns in quotes ('texts/**/*.gz'), or - for standard input, which is copied into a temporary file "
        "(default: the documentation of this Python's standard library)",
        nargs="+",
    )
    text.add("--min-count", positive_int, "ignore words that occur less often", default=5)
    text.add(
        "--max-vocab --max-final-vocab",
        positive_int,
        "train no more than the N most frequent words (default: all that occur --min-count times)",
    )
    text.add(
        "--sample",
        fraction,
        "downsample words that are more frequent than this share of the text; 0: none",
        default=1e-3,
    )
    text.add(
        "--phrases",
        positive_int,
        "join pairs of words that stand together more often than by chance into one word, new_york, as word2phrase "
        "does; with 2 PASSES also phrases of up to four words, and so on (default without a number: 1)",
        nargs="?",
        const=1,
        metavar="PASSES",
    )
    text.add(
        "--phrases-threshold",
        natural_float,
        "join a pair a b if (count(a b) - min count) / (count(a) count(b)) x words of the text is larger; a larger "
        "threshold means fewer phrases",
        default=100.0,
    )
    text.add("--phrases-min-count", positive_int, "join only pairs that occur more often", default=5)
    made = Group(
        parser.add_argument_group(
            "synthetic text",
            "words by Zipf's law; those of a topic stand together, and the most frequent ones everywhere",
        )
    )
    made.add(
        "--synthetic-words", positive_int, "train on a text of N different words, which is generated from the seed"
    )
    made.add(
        "--synthetic-length",
        positive_int,
        f"number of words in the text (default: {LENGTH_PER_WORD} per different word)",
    )
    add_model_options(parser)
    system, output = options.add_shared_options(parser, epochs=5, dim=100)
    output.add("--binary", bool, "write the vectors in word2vec's binary format")
    system.add(
        "--unit",
        positive_int,
        "number of pairs that are trained between a pull of their parameters and a push of the changes (default: 640 "
        "on one or two hosts and if all vectors are replicated, otherwise 160)",
    )
    system.add(
        "--block",
        positive_int,
        "lapse2: number of units for which vectors that are not replicated are localized, pulled and pushed together "
        "(default: up to 10, as long as none of them is used often)",
    )
    options.add_lookahead_option(system, DEFAULT_LOOKAHEAD, "blocks (lapse: units)")
    group = options.add_replication_options(
        parser,
        keys="vectors",
        default="as many as fit into --replica-memory",
        items="words",
        sync_default=None,
        sync_help="by the learning rate and the most frequent word, 16,000 for most texts; 2000 with --combine sum; "
        "with many more, the loss increases",
    )
    options.add_combining_options(group, combine="adaptive", wire="bfloat16")
    options.add_sampling_options(group, "words")
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on pairs, negative samples and the learning rate."""
    model = Group(parser.add_argument_group("model"))
    model.add(
        "--sg",
        int,
        "1: skip-gram, each word of the context predicts the word by itself; 0: CBOW, the mean of their vectors does, "
        "which takes less time",
        default=1,
        choices=(0, 1),
        metavar="0|1",
    )
    model.add(
        "--start-vectors FILE",
        Path,
        "continue from these vectors: a model's folder (word and context vectors), a file in a format of word2vec "
        "(binary if it ends in .bin), or a NumPy array with the words in vocab.txt beside it. All of their words are "
        "in the model, those that the text lacks unchanged, as long as --max-vocab leaves room; words that are new "
        "begin as usual. --dim is theirs",
    )
    model.add("--window", positive_int, "maximum distance between the words of a pair", default=5)
    model.add("--negative", natural_int, "number of negative samples per pair", default=5)
    model.add(
        "--negatives-per",
        ("word", "pair"),
        "which pairs share negative samples. word: all pairs of a center word (Ji et al. 2016), so that fewer vectors "
        "are read and written; pair: none (Mikolov et al. 2013), which is two to three times as slow and not better by "
        "the objective on held-out text",
        default="word",
    )
    model.add(
        "--ns-exponent",
        finite_float,
        "negatives are drawn in proportion to the words' counts to the power of X: 1 as in the text, 0 all words "
        "alike, below 0 rare words more often (0.75: Mikolov et al. 2013; for recommendations others are better: "
        "Caselles-Dupre et al. 2018)",
        default=NOISE_POWER,
    )
    model.add(
        "--negative-reuse",
        positive_int,
        "how many center words of a unit (with --negatives-per pair: how many pairs) use the same negative samples. "
        "Larger values save copies of vectors; values up to 8 did not change the objective (default: 4 on one or two "
        "hosts, otherwise 1, as with --sg 0; ranks that share no memory count as hosts)",
    )
    model.add("--alpha", positive_float, "initial learning rate", default=0.025)
    model.add("--min-alpha", positive_float, "final learning rate", default=1e-4)
