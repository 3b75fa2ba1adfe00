"""The options of ``python -m lapse.apps.clicks``."""

from __future__ import annotations

import argparse

from lapse.apps._shared import options
from lapse.apps._shared.options import Group, positive_float, positive_int

DESCRIPTION = """\
Predict clicks by sparse logistic regression with AdaGrad (Duchi et al. 2011).

An example has 20 fields, each with a category; field and category are hashed to a key. A key's value is its weight and
the sum of its squared gradients, in a Lapse server that spans all ranks. The examples are synthetic.
"""

EXAMPLES = """\
examples:
  python -m lapse.apps.clicks                          one process
  mpirun -n 4 python -m lapse.apps.clicks --output model
                                                       four ranks; model/weights.npy is the model
  mpirun -n 4 python -m lapse.apps.clicks --batch 1 --lookahead 8 --management lapse
                                                       one example at a time, keys localized 8 ahead

The last line of the output is RESULT and a JSON object; its loss is the mean logistic loss of the test.
"""

#: Examples of all ranks between two synchronizations of replicas. An example has many keys that all have, and all ranks
#: correct the same error: on 8 ranks the first epochs diverged with 16,384.
MOST_PER_ROUND = 8192
#: Enough to hide the time a key needs to arrive.
DEFAULT_LOOKAHEAD = 2


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line (None: that of this process)."""
    return options.parse(make_parser(), argv)


def make_parser() -> argparse.ArgumentParser:
    """All options of the application."""
    parser = options.new_parser("clicks", DESCRIPTION, EXAMPLES)
    data = Group(parser.add_argument_group("synthetic clicks"))
    data.add("--examples", positive_int, "number of examples for training; a tenth as many are the test", 1 << 18)
    data.add("--keys", positive_int, "number of keys that fields and categories are hashed to", 1_000_000)
    model = Group(parser.add_argument_group("model"))
    model.add("--learning-rate --lr", positive_float, "of AdaGrad", 0.05)
    system, _ = options.add_shared_options(parser, epochs=3, dim_names="")
    system.add(
        "--batch",
        positive_int,
        "number of examples between a pull of their keys and a push of what changed; they are trained one by one",
        256,
    )
    options.add_lookahead_option(system, DEFAULT_LOOKAHEAD, "batches")
    replication = options.add_replication_options(
        parser,
        keys="keys",
        default="all of the training that fit into --replica-memory",
        items="examples",
        sync_default=MOST_PER_ROUND,
        sync_help="an eighth of what was trained before, and %(default)s at most",
    )
    options.add_combining_options(replication, combine="adagrad", wire="exact")
    return parser
