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
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from lapse import _mpi_loader
from lapse.apps._shared.inputs import recognize

HELD_OUT = 20
OBJECTIVE = Path(__file__).with_name("sgns_objective.py")


def split(text, order):
    """The lines to train on, in this order, and those held out."""
    with recognize(text).open() as file:
        lines = file.readlines()
    training = [line for number, line in enumerate(lines) if number % HELD_OUT]
    if order:
        random.Random(order).shuffle(training)
    return training, lines[::HELD_OUT]


def run(command):
    """What it prints; ends the program with its messages if it fails."""
    environment = os.environ | {"LAPSE_SHARED_MEMORY": "0", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(map(str, command))} has failed:\n{ended.stderr[-2000:]}")
    return ended.stdout


def train(folder, ranks, options):
    """The losses of all epochs and the objective."""
    model, metrics = folder / "model", folder / "metrics.jsonl"
    command = [
        _mpi_loader.launcher_path(),
        "-n",
        ranks,
        sys.executable,
        "-m",
        "lapse.apps.word2vec",
        "--corpus",
        folder / "training.txt",
    ]
    command += ["--output", model, "--metrics", metrics, "--no-progress", *options]
    run(list(map(str, command)))
    epochs = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [epoch["loss"] for epoch in epochs if "loss" in epoch]
    sg = options[options.index("--sg") + 1] if "--sg" in options else "1"
    measured = run([sys.executable, OBJECTIVE, model, folder / "held_out.txt", "--sg", sg])
    return losses, json.loads(measured.splitlines()[-1])["objective"]


def main():
    """Print a line for each order and number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="one sentence per line, plain or compressed")
    parser.add_argument("--ranks", default="8,16,32,64", metavar="N,N", help="beside 1 (default: %(default)s)")
    parser.add_argument("--orders", type=int, default=1, metavar="N", help="of the lines (default: %(default)s)")
    args, options = parser.parse_known_args()
    for order in range(args.orders):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            training, held_out = split(args.text, order)
            (folder / "training.txt").write_bytes(b"".join(training))
            (folder / "held_out.txt").write_bytes(b"".join(held_out))
            alone = None
            for ranks in (1, *map(int, args.ranks.split(","))):
                losses, objective = train(folder, ranks, options)
                alone = alone or objective
                worse = 100 * (objective / alone - 1)
                shown = f"loss {losses[0]:.3f} to {losses[-1]:.3f}, objective {objective:.4f}, {worse:+.2f}%"
                print(f"order {order}, {ranks} ranks: {shown}", flush=True)


if __name__ == "__main__":
    main()
