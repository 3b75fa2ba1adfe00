"""word2vec without a server, on one array and the threads of one process.

    python -m lapse.bench.plain.word2vec --workers 2 --epochs 5

takes the options of the application (those about ranks and files have no effect) and prints a line per epoch, then
``RESULT`` and a JSON object.
"""

from __future__ import annotations

import argparse
import json
import threading
import time

import numpy as np

import lapse
from lapse.apps.word2vec import options, placement, stdlib_corpus, train
from lapse.apps.word2vec.survey import survey
from lapse.apps.word2vec.text import Text
from lapse.apps.word2vec.vocabulary import Selection
from lapse.bench.plain._word2vec import PlainTrainer
from lapse.sampling._draws import Generator, Table


class Run:
    """Training on an array of all vectors.

    Parameters
    ----------
    args
        The application's options.
    text
        The corpus, in as many shares as there are workers.

    Attributes
    ----------
    vectors
        float32 array of shape ``(2 * words, dim)``, the input vectors in the even rows.
    """

    def __init__(self, args: argparse.Namespace, text: Text) -> None:
        self._args, self._text = args, text
        words, bound = len(text.vocabulary), 0.5 / args.dim
        self.vectors = np.zeros((2 * words, args.dim), np.float32)
        starts = lapse.UniformValues(-bound, bound).values(np.arange(0, 2 * words, 2), args.dim, args.seed)
        self.vectors[::2] = np.asarray(starts).reshape(words, args.dim)
        self._table = Table(0, 2 * words, placement.noise(text.vocabulary, args.ns_exponent))
        self._generators = [Generator(args.seed, worker, 1) for worker in range(args.workers)]

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """Train once over the text; the seconds and the loss."""
        trainers = [self._trainer(epoch, worker) for worker in range(self._args.workers)]
        threads = [
            threading.Thread(target=self._train, args=(trainer, epoch, worker))
            for worker, trainer in enumerate(trainers)
        ]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
        return seconds, sum(each.loss for each in trainers) / max(sum(each.pairs for each in trainers), 1)

    def _trainer(self, epoch: int, worker: int) -> PlainTrainer:
        return PlainTrainer(
            self.vectors,
            self._table,
            self._generators[worker],
            block_units=1,
            lookahead=0,
            is_replicated=np.zeros(len(self.vectors), np.uint8),
            seeds=train.stream_seeds(self._args, epoch, worker),
            **placement.pair_options(self._args, self._text.vocabulary, placement.LONG_UNIT),
        )

    def _train(self, trainer: PlainTrainer, epoch: int, worker: int) -> None:
        schedule = train.Schedule(self._args, self._text.share_words[worker], epoch)
        for block in self._text.blocks(worker):
            trainer.train(block.words, block.ends, *schedule.advance(block.read))
        trainer.finish()


def main(argv: list[str] | None = None) -> None:
    """Train and print."""
    args = options.parse(argv)
    from mpi4py import MPI

    if not args.sg:
        raise SystemExit("--sg 0: CBOW is not among what this program compares")
    corpus = args.corpus or [stdlib_corpus.standard_corpus()]
    run = Run(args, survey(MPI.COMM_SELF, corpus, args.workers, Selection(args.min_count, args.max_vocab)))
    seconds, losses = [], []
    for epoch in range(args.epochs):
        spent, loss = run.train_epoch(epoch)
        print(f"epoch {epoch + 1}: {spent:.3f} s, loss {loss:.4f}", flush=True)
        seconds.append(spent)
        losses.append(loss)
    print(
        "RESULT "
        + json.dumps(
            {
                "app": "word2vec.plain",
                "workers": args.workers,
                "epochs": args.epochs,
                "seconds": seconds,
                "loss": losses[-1],
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
