"""Train gensim with the settings of ``python -m lapse.apps.word2vec``, to compare the two.

    python benchmarks/train_gensim.py --corpus train.txt --epochs 10 --seed 1 --output model
    python benchmarks/sgns_objective.py model held_out.txt

Writes the same three files as our application, and ``gensim.model``. gensim is not a dependency of
Lapse; install it with ``pip install gensim``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from lapse.apps.word2vec import model_io
from lapse.apps.word2vec.corpus import Share


class Sentences:
    """A corpus that can be iterated several times, read as our application reads it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self):
        return Share(self._path).sentences()


def train(args: argparse.Namespace):
    """Train; returns the model and the seconds of training alone."""
    from gensim.models import Word2Vec

    model = Word2Vec(
        vector_size=args.dim,
        window=args.window,
        min_count=args.min_count,
        sg=args.sg,
        negative=args.negative,
        sample=args.sample,
        alpha=args.alpha,
        min_alpha=args.min_alpha,
        epochs=args.epochs,
        workers=args.workers,
        seed=args.seed,
    )
    sentences = Sentences(args.corpus)
    model.build_vocab(sentences)
    start = time.perf_counter()
    model.train(sentences, total_examples=model.corpus_count, total_words=model.corpus_total_words, epochs=args.epochs)
    return model, time.perf_counter() - start


def save(model, folder: Path, binary: bool) -> None:
    """Write the model as our application does, and as gensim does."""
    folder.mkdir(parents=True, exist_ok=True)
    words = model.wv.index_to_key
    counts = np.array([model.wv.get_vecattr(word, "count") for word in words])
    for stem, vectors in ((model_io.WORD_VECTORS, model.wv.vectors), (model_io.CONTEXT_VECTORS, model.syn1neg)):
        path = folder / model_io.file_name(stem, binary)
        model_io.write_vectors(path, words, [vectors], model.vector_size, binary)
    model_io.write_counts(folder / model_io.COUNTS, words, counts)
    model.save(str(folder / "gensim.model"))


def main(argv: list[str] | None = None) -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    for name, default in (
        ("sg", 1),
        ("dim", 100),
        ("window", 5),
        ("min-count", 5),
        ("negative", 5),
        ("epochs", 5),
        ("workers", 1),
        ("seed", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    for name, default in (("sample", 1e-3), ("alpha", 0.025), ("min-alpha", 1e-4)):
        parser.add_argument(f"--{name}", type=float, default=default, metavar="X")
    parser.add_argument("--binary", action="store_true")
    args = parser.parse_args(argv)
    model, seconds = train(args)
    save(model, args.output, args.binary)
    print(
        json.dumps(
            {
                "app": "gensim",
                "seconds_per_epoch": seconds / args.epochs,
                "vocab": len(model.wv),
                "gensim": __import__("gensim").__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
