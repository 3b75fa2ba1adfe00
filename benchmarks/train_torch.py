"""Train ComplEx in PyTorch with the settings of ``python -m lapse.apps.kge``, to compare the two.

    python benchmarks/train_torch.py --dataset fb15k-237
    python benchmarks/train_torch.py --dataset fb15k-237 --batch-size 4096 --epochs 50

One process with two threads; the step is that of ``python -m lapse bench kge``. The last line is a JSON object with the
quality on test, measured as our application measures it. PyTorch is not a dependency of Lapse; install it with
``pip install torch``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from lapse.apps.kge import _ranking, data, options
from lapse.apps.kge.evaluate import Quality, sum_up
from lapse.bench._torch_step import Step

#: Queries scored at once.
QUERIES = 512


def train(args: argparse.Namespace, dataset: data.Dataset) -> tuple[Step, float]:
    """Train; returns the model and the seconds of training alone."""
    step = Step(
        len(dataset.entities),
        len(dataset.relations),
        dim=args.dim,
        negatives=args.negatives,
        rate=args.lr,
        penalty=args.n3,
        seed=args.seed,
    )
    triples = torch.from_numpy(dataset.train)
    begin = time.perf_counter()
    for epoch in range(args.epochs):
        step.rate = args.lr * (1 + (args.lr_final - 1) * epoch / max(args.epochs - 1, 1))
        loss = sum(step.train(batch) for batch in triples[torch.randperm(len(triples))].split(args.batch_size))
        print(f"epoch {epoch + 1}: loss {loss / len(triples) / 2:.4f}, {time.perf_counter() - begin:.1f} s", flush=True)
    return step, time.perf_counter() - begin


@torch.no_grad()
def evaluate(step: Step, dataset: data.Dataset) -> Quality:
    """Filtered ranks over both sides of test."""
    known = data.Known(dataset.everything(), len(dataset.relations))
    sums = 0
    for first in range(0, len(dataset.test), QUERIES):
        part = dataset.test[first : first + QUERIES]
        for column, inverse in ((2, 0), (0, len(dataset.relations))):
            relations = step.relations[part[:, 1] + inverse]
            scores = (step.queries(step.entities[part[:, 2 - column]], relations) @ step.entities.T).numpy()
            targets = part[:, column]
            ranks = _ranking.Ranks(targets, scores[np.arange(len(part)), targets], *known.answers(part, column))
            ranks.count(0, scores)
            sums = sums + sum_up(ranks.filtered)
    return Quality.of(sums)


def main(argv: list[str] | None = None) -> None:
    """Train and measure."""
    defaults = {**options.COMMON, **options.DEFAULTS["complex"]}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, metavar="DIR")
    for name, default in (
        ("epochs", defaults["epochs"]),
        ("batch-size", defaults["batch_size"]),
        ("dim", defaults["dim"]),
        ("negatives", defaults["num_negs_per_pos"]),
        ("threads", 2),
        ("seed", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help="default: %(default)s")
    for name, default in (("lr", defaults["lr"]), ("lr-final", defaults["lr_final"]), ("n3", defaults["entity_n3"])):
        parser.add_argument(f"--{name}", type=float, default=default, metavar="X", help="default: %(default)s")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    dataset = data.read(args.dataset)
    step, seconds = train(args, dataset)
    quality = evaluate(step, dataset).named()
    print(
        json.dumps(
            {
                "app": "torch",
                "torch": torch.__version__,
                "seconds_per_epoch": seconds / args.epochs,
                "triples_per_second": len(dataset.train) * args.epochs / seconds,
                **quality,
            }
        )
    )


if __name__ == "__main__":
    main()
