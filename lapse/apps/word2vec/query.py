"""``python -m lapse.apps.word2vec query``: ask trained word vectors."""

from __future__ import annotations

from pathlib import Path

from lapse.apps._shared import asking
from lapse.apps._shared.job import AppError

DESCRIPTION = """\
The nearest words to a word, or to a sum of words: each line of the answer is a word, a tab, and the cosine.

Without WORDS, each line of standard input is a question; an empty line ends each answer. No MPI is started.
"""
EXAMPLES = """\
examples:
  python -m lapse.apps.word2vec query model thread
  python -m lapse.apps.word2vec query model king - man + woman
  python -m lapse.apps.word2vec query model < questions.txt
  python -m lapse.apps.word2vec query model --evaluate questions-words.txt

A + or - alone between words is an operator; \\+ and \\- are these words.
"""


def main(argv: list[str]) -> None:
    """Run the command with these arguments."""
    parser = asking.new_parser("word2vec", "query", DESCRIPTION, EXAMPLES)
    parser.add_argument("words", metavar="WORDS", nargs="*", help="a word, or words with + and - between them")
    parser.add_argument(
        "--evaluate",
        type=Path,
        metavar="FILE",
        help="test the model by analogies (questions-words.txt: accuracy by section), or by word pairs with a number "
        "(rank correlation)",
    )
    args = parser.parse_intermixed_args(argv)
    with asking.reporting():
        from lapse.apps.word2vec.trained import Model  # not before: `--help` needs no NumPy

        model = Model.load(args.model)

        def answer(text: str) -> None:
            plus, minus = parse(text)
            _, scores, words = model.nearest(plus, minus, args.k)
            print("".join(f"{word}\t{score:.4f}\n" for word, score in zip(words, scores.tolist(), strict=True)), end="")

        def answer_and_end(text: str) -> None:
            answer(text)
            print()

        if args.evaluate is not None:
            from lapse.apps.word2vec.evaluation import evaluate

            print(evaluate(model, args.evaluate))
        elif args.words:
            answer(" ".join(args.words))
        else:
            asking.answer_lines(answer_and_end, "words> ")


def parse(text: str) -> tuple[list[str], list[str]]:
    """The words of a question that are added, and those that are subtracted.

    Raises
    ------
    AppError
        If no word is added, or an operator is not followed by a word.
    """
    tokens = text.split()
    if len(tokens) == 1:
        return [_word(tokens[0])], []
    plus: list[str] = []
    minus: list[str] = []
    sign = ""  # of the word that must follow
    for token in tokens:
        if token in ("+", "-") and not sign:
            sign = token
        else:
            (minus if sign == "-" else plus).append(_word(token))
            sign = ""
    if sign or not plus:
        raise AppError(f"{text!r} is no sum of words, such as king - man + woman")
    return plus, minus


def _word(token: str) -> str:
    return token[1:] if token in ("\\+", "\\-") else token
