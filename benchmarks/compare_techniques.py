"""Word vectors by every technique and sampling scheme: speed, traffic, locality and quality.

    .venv/bin/python benchmarks/compare_techniques.py --ranks 4 --epochs 5

Trains on nine tenths of the text (by default the Python documentation of this machine), once on one
rank, and once on --ranks ranks for each management and sampling scheme: by messages, as between hosts, and once with
shared memory. Prints a table: seconds, messages and megabytes per epoch, share of local accesses, loss, and the
skip-gram objective on the held-out tenth (`sgns_objective.py`, with the same negatives for all), absolute and relative
to the run on one rank. With --json FILE the rows are also written to a file, one JSON object per line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import sgns_objective
import word_vectors

from lapse.apps._shared.metrics import local_share
from lapse.apps.word2vec.corpus import Share
from lapse.apps.word2vec.stdlib_corpus import standard_corpus

HELD_OUT = 10  # every tenth sentence is held out
POOL = ("--sampling-scheme", "pool", "--sampling-postpone")
TECHNIQUES = {
    "classic": ("--management", "classic"),
    "lapse": ("--management", "lapse"),
    "lapse2": ("--management", "lapse2"),
    "lapse2, naive": ("--management", "lapse2", "--sampling-scheme", "naive"),
    "lapse2, preloc": ("--management", "lapse2", "--sampling-scheme", "preloc"),
    "lapse2, pool": ("--management", "lapse2", "--sampling-scheme", "pool"),
    "lapse2, pool, postponed": ("--management", "lapse2", *POOL),
    "lapse2, shared memory": ("--management", "lapse2"),
}
COLUMNS = f"{'ranks':>5} {'technique':<24}{'s':>6}{'local':>9}{'messages':>10}{'MB':>7}{'loss':>8}{'objective':>11}"


def split(corpus: Path, folder: Path) -> tuple[Path, Path]:
    """Write every tenth sentence to one file and the others to another."""
    train, test = folder / "train.txt", folder / "test.txt"
    with open(train, "w", encoding="utf-8") as kept, open(test, "w", encoding="utf-8") as out:
        for number, sentence in enumerate(Share(str(corpus)).sentences()):
            print(*sentence, file=out if number % HELD_OUT == 0 else kept)
    return train, test


def run(ranks: int, technique: str, train: Path, folder: Path, options: list[str]) -> dict:
    """Train, and collect the figures of the run."""
    options = [*TECHNIQUES[technique], *options]
    lines = word_vectors.train(ranks, train, folder, options, shares_memory=technique.endswith("shared memory"))
    stats = lines[-1]["stats"]
    return {
        "ranks": ranks,
        "technique": technique,
        "loss": lines[-1]["loss"],
        "seconds": sorted(line["seconds"] for line in lines)[len(lines) // 2],
        "local": local_share(stats),
        "messages": stats["messages_sent"],
        "megabytes": stats["bytes_sent"] / 1e6,
    }


def show(row: dict, reference: float) -> None:
    """A line of the table."""
    print(
        f"{row['ranks']:>5} {row['technique']:<24}{row['seconds']:>6.1f}{row['local']:>9.2%}{row['messages']:>10,}"
        f"{row['megabytes']:>7,.0f}{row['loss']:>8.4f}{row['objective']:>11.4f}"
        f" {row['objective'] / reference - 1:+.2%}",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="default: the Python documentation")
    parser.add_argument("--ranks", type=int, default=4, metavar="N")
    parser.add_argument("--epochs", type=int, default=5, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--only", nargs="+", choices=TECHNIQUES, metavar="NAME", help=f"of: {'; '.join(TECHNIQUES)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    options = ["--epochs", str(args.epochs), "--seed", str(args.seed)]
    jobs = [(1, "classic")] + [(args.ranks, name) for name in args.only or TECHNIQUES]
    reference = None
    print(COLUMNS)
    for ranks, technique in jobs:
        with tempfile.TemporaryDirectory() as folder:
            train, test = split(args.corpus or standard_corpus(), Path(folder))
            row = run(ranks, technique, train, Path(folder), options)
            row["objective"] = sgns_objective.measure(Path(folder, "model"), test)["objective"]
        reference = reference or row["objective"]
        show(row, reference)
        if args.json:
            with open(args.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
