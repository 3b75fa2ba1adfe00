"""Word2vec on more and more ranks: is the model as good as that of one rank, and does nothing diverge?

    python benchmarks/many_ranks.py TEXT --ranks 8,16,32,64 [--orders 3] [options of lapse.apps.word2vec]

All ranks run on this machine and exchange messages, as ranks of different hosts do. Where they outnumber its cores,
each waits for the others for most of the time: what ranks learn reaches the others later than on hosts of their own,
so that a pace that holds here holds there as well. Every 20th line of the text is held out; the other ones are read
as they are (order 0), or shuffled (1, 2, ...), since ranks read different parts of the text at a time. For each
order, and each number of ranks, a line shows the mean loss of the first and of the last epoch, and the objective on
the lines held out (`sgns_objective.py`; lower is better), and by how much it is worse than that of one rank.
"""

import argparse
import random
import tempfile
from pathlib import Path

import sgns_objective
import word_vectors

from lapse.apps._shared.inputs import recognize

HELD_OUT = 20


def split(text, order):
    """The lines to train on, in this order, and those held out."""
    with recognize(text).open() as file:
        lines = file.readlines()
    training = [line for number, line in enumerate(lines) if number % HELD_OUT]
    if order:
        random.Random(order).shuffle(training)
    return training, lines[::HELD_OUT]


def main():
    """Print a line for each order and number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="one sentence per line, plain or compressed")
    parser.add_argument("--ranks", default="8,16,32,64", metavar="N,N", help="beside 1 (default: %(default)s)")
    parser.add_argument("--orders", type=int, default=1, metavar="N", help="of the lines (default: %(default)s)")
    parser.add_argument("--sg", type=int, choices=(0, 1), default=1, help="1: skip-gram, 0: CBOW")
    args, options = parser.parse_known_args()
    options += ["--sg", str(args.sg)]
    for order in range(args.orders):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            texts = [folder / "training.txt", folder / "held_out.txt"]
            for text, lines in zip(texts, split(args.text, order), strict=True):
                text.write_bytes(b"".join(lines))
            alone = None
            for ranks in (1, *map(int, args.ranks.split(","))):
                losses = [epoch["loss"] for epoch in word_vectors.train(ranks, texts[0], folder, options)]
                objective = sgns_objective.measure(folder / "model", texts[1], sg=args.sg)["objective"]
                alone = alone or objective
                worse = 100 * (objective / alone - 1)
                shown = f"loss {losses[0]:.3f} to {losses[-1]:.3f}, objective {objective:.4f}, {worse:+.2f}%"
                print(f"order {order}, {ranks} ranks: {shown}", flush=True)


if __name__ == "__main__":
    main()
