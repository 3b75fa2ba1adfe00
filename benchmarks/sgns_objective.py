"""The skip-gram or CBOW objective of a model on text that it has not seen.

    python benchmarks/sgns_objective.py MODEL TEXT [--sg 0]

For each pair of words at a distance of at most 5 (no shrinking windows, no subsampling) the loss is
``-log s(in . out) - sum over 5 negatives of log s(-in . negative)``, where the input vector of one
word predicts the output vector of the other, in both directions. Words outside the model's
vocabulary are dropped. Negatives are drawn from the model's word counts to the power of 3/4 with
fixed seeds; a negative that equals the predicted word is ignored. Models trained on the same text have
the same vocabulary, hence the same pairs and negatives.

MODEL is one of

* a folder that ``python -m lapse.apps.word2vec --output`` wrote (also the folder of
  ``benchmarks/train_gensim.py``): vectors.txt or .bin, context.txt or .bin, vocab.txt;
* a file that gensim's ``Word2Vec.save`` wrote (needs gensim): the word vectors are ``model.wv``,
  the context vectors ``model.syn1neg``.

With ``--sg 0`` the mean of the input vectors of the words at a distance of at most 5 predicts the output
vector of the word between them: the loss is that of one prediction per word.

The standard error treats sentences, not pairs, as independent.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapse.apps.word2vec import model_io
from lapse.apps.word2vec.corpus import Share
from lapse.apps.word2vec.vocabulary import NOISE_POWER
from lapse.base.word_vectors import read_vectors

PAIRS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Model:
    """Vectors by word, the words in an order that depends on their counts only."""

    words: list[str]
    counts: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray


def load(path: Path) -> Model:
    """Read a model of either kind."""
    words, counts, inputs, outputs = (load_folder if path.is_dir() else load_gensim)(path)
    order = sorted(range(len(words)), key=lambda i: (-counts[i], words[i]))
    return Model([words[i] for i in order], np.array(counts)[order], inputs[order], outputs[order])


def load_folder(path: Path):
    """Read the three files that a training run has written."""
    words, inputs = read_vectors(_existing(path, model_io.WORD_VECTORS))
    context_words, outputs = read_vectors(_existing(path, model_io.CONTEXT_VECTORS))
    if words != context_words:
        raise ValueError(
            f"{path}: word vectors and context vectors are of different words; both must come from the same run"
        )
    counts = model_io.read_counts(path / model_io.COUNTS)
    return words, [counts[word] for word in words], inputs, outputs


def _existing(folder: Path, stem: str) -> Path:
    names = [folder / model_io.file_name(stem, binary) for binary in (False, True)]
    found = [name for name in names if name.exists()]
    if not found:
        raise FileNotFoundError(f"neither {names[0]} nor {names[1]} exists: pass a folder written by --output")
    return max(found, key=lambda name: name.stat().st_mtime)


def load_gensim(path: Path):
    """Read a file written by `gensim.models.Word2Vec.save`."""
    from gensim.models import Word2Vec

    model = Word2Vec.load(str(path))
    words = model.wv.index_to_key
    counts = [model.wv.get_vecattr(word, "count") for word in words]
    return words, counts, model.wv.vectors, model.syn1neg


def read_text(path: Path, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The known words of a text: their indexes, and the number of the sentence of each."""
    index = {word: i for i, word in enumerate(words)}
    sentences = [[index[w] for w in s if w in index] for s in Share(path).sentences()]
    lengths = [len(sentence) for sentence in sentences]
    flat = np.array([i for sentence in sentences for i in sentence], dtype=np.int64)
    return flat, np.repeat(np.arange(len(sentences)), lengths)


def make_pairs(words: np.ndarray, sentence: np.ndarray, window: int):
    """All pairs (input word, predicted word, sentence) in both directions."""
    inputs, targets, owners = [], [], []
    for distance in range(1, window + 1):
        first = np.flatnonzero(sentence[distance:] == sentence[:-distance])
        second = first + distance
        inputs += [words[first], words[second]]
        targets += [words[second], words[first]]
        owners += [sentence[first], sentence[first]]
    return np.concatenate(inputs), np.concatenate(targets), np.concatenate(owners)


def means_of_contexts(model: Model, words: np.ndarray, sentence: np.ndarray, window: int):
    """CBOW's predictions: the mean of the vectors around each word that has others near it, the word, its sentence."""
    sums, counts = np.zeros((len(words), model.inputs.shape[1])), np.zeros(len(words))
    for distance in range(1, window + 1):
        first = np.flatnonzero(sentence[distance:] == sentence[:-distance])
        for here, there in ((first, first + distance), (first + distance, first)):  # each index once
            sums[here] += model.inputs[words[there]]
            counts[here] += 1
    some = np.flatnonzero(counts)
    return sums[some] / counts[some, None], words[some], sentence[some]


def pair_losses(model: Model, rows: np.ndarray, inputs, targets, negative: int, seed: int) -> np.ndarray:
    """The loss of each pair of a row, by its number among `inputs`, and a word to predict."""
    cumulative = np.cumsum(model.counts.astype(np.float64) ** NOISE_POWER)
    rng = np.random.default_rng(seed)
    losses = np.empty(len(inputs))
    for start in range(0, len(inputs), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        draws = rng.random((len(inputs[part]), negative)) * cumulative[-1]
        negatives = np.searchsorted(cumulative, draws, side="right")
        losses[part] = _losses(model, rows[inputs[part]], targets[part], negatives)
    return losses


def _losses(model: Model, rows, targets, negatives) -> np.ndarray:
    rows = rows.astype(np.float64)
    positive = np.einsum("pd,pd->p", rows, model.outputs[targets])
    against = np.einsum("pd,pkd->pk", rows, model.outputs[negatives])
    against = np.where(negatives == targets[:, None], 0.0, np.logaddexp(0.0, against))
    return np.logaddexp(0.0, -positive) + against.sum(axis=1)


def mean_with_error(losses: np.ndarray, owners: np.ndarray) -> tuple[float, float]:
    """The mean over pairs, and its standard error with sentences drawn independently."""
    mean = losses.mean()
    residuals = np.bincount(owners, weights=losses - mean)
    groups = np.count_nonzero(np.bincount(owners))
    variance = np.sum(residuals**2) * groups / max(groups - 1, 1)
    return float(mean), float(np.sqrt(variance) / len(losses))


def measure(path: Path, text: Path, *, sg: int = 1, window: int = 5, negative: int = 5, seed: int = 0) -> dict:
    """The objective of a model on a text, its standard error, and over how much it was taken."""
    model = load(path)
    words, sentence = read_text(text, model.words)
    if sg:
        rows = model.inputs
        inputs, targets, owners = make_pairs(words, sentence, window)
    else:
        rows, targets, owners = means_of_contexts(model, words, sentence, window)
        inputs = np.arange(len(rows))
    if len(inputs) == 0:
        sys.exit(f"{text}: no two words of the vocabulary are within --window of each other")
    losses = pair_losses(model, rows, inputs, targets, negative, seed)
    mean, error = mean_with_error(losses, owners)
    return {
        "objective": mean,
        "standard_error": error,
        "pairs": len(losses),
        "words": len(words),
        "vocab": len(model.words),
    }


def main(argv: list[str] | None = None) -> None:
    """Print the objective as a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("text", type=Path, metavar="TEXT", help="one sentence per line, plain or gzip")
    parser.add_argument("--sg", type=int, choices=(0, 1), default=1, help="1: skip-gram, 0: CBOW")
    parser.add_argument("--window", type=int, default=5, metavar="N")
    parser.add_argument("--negative", type=int, default=5, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the negatives")
    args = parser.parse_args(argv)
    measured = measure(args.model, args.text, sg=args.sg, window=args.window, negative=args.negative, seed=args.seed)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
