"""``python -m lapse.apps.kge predict``: ask a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from lapse.apps._shared import asking
from lapse.apps._shared.job import AppError

if TYPE_CHECKING:
    from lapse.apps.kge.trained import Model

DESCRIPTION = """\
The likeliest objects (SUBJECT RELATION ?) or subjects (? RELATION OBJECT), or the score of a triple.

Each line of the answer is subject, relation, object and score, separated by tabs. Without a question, each line of
standard input is one, of three columns separated by tabs. No MPI is started.
"""
EXAMPLES = """\
examples:
  python -m lapse.apps.kge predict model json imports '?'
  python -m lapse.apps.kge predict model '?' imports json -k 3
  python -m lapse.apps.kge predict model --input questions.tsv --output answers.tsv --known fb15k-237

In names, \\t, \\n, \\r and \\\\ stand for a tab, line ends and a backslash; \\? is the name "?".
"""
ASKED = "?"
#: Lines of a file that are answered together.
LINES_AT_ONCE = 4096


class Question(NamedTuple):
    """Numbers of entities and a relation; -1: what is asked for."""

    subject: int
    relation: int
    object: int


def main(argv: list[str]) -> None:
    """Run the command with these arguments."""
    parser = make_parser()
    args = parser.parse_intermixed_args(argv)
    if len(args.question) not in (0, 3):
        parser.error("a question has three parts: SUBJECT RELATION OBJECT, one of the entities may be ?")
    if args.question and args.input:
        parser.error("argument --input: not with a question on the command line")
    if args.mark_known and not args.known:
        parser.error("argument --mark-known: requires --known")
    with asking.reporting():
        from lapse.apps.kge.trained import Model  # not before: `--help` needs no NumPy

        model = Model.load(args.model)
        with asking.output_to(args.output) as out:
            if args.question:
                _answer(model, [read_question(model, args.question)], args, out)
            elif args.input:
                _answer_file(model, args, out)
            else:
                asking.answer_lines(
                    lambda line: _answer(model, [read_question(model, line.split("\t"))], args, out),
                    "subject, relation, object (tabs between them, ? for what is asked)> ",
                )


def make_parser() -> argparse.ArgumentParser:
    """All options of the command."""
    parser = asking.new_parser("kge", "predict", DESCRIPTION, EXAMPLES)
    parser.add_argument("question", metavar="NAME", nargs="*", help="SUBJECT RELATION OBJECT; ? is what is asked for")
    parser.add_argument("--input", type=Path, metavar="FILE", help="a question per line, three columns with tabs")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the answers there (default: print them)")
    parser.add_argument(
        "--known",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="triples that are known, and left out of the answers: a file of triples, or the folder of a data set "
        "(train, valid and test); may be given several times",
    )
    parser.add_argument(
        "--mark-known",
        action="store_true",
        help="do not leave out what is known: a fifth column says known or new",
    )
    return parser


def read_question(model: Model, fields: list[str]) -> Question:
    """The numbers of names.

    Raises
    ------
    AppError
        For another number of fields, two things asked for, or a relation asked for.
    UnknownNameError
        For an unknown name.
    """
    from lapse.apps._shared.names import index_of_field

    if len(fields) != 3:
        raise AppError(f"{' '.join(fields)[:80]!r} is no question: it must be subject, relation, object, tabs between")
    subject, relation, obj = fields
    if relation == ASKED or subject == obj == ASKED:
        raise AppError("one entity can be asked for at a time, and no relation; give its subject or its object")

    def entity(field: str) -> int:
        if field == ASKED:
            return -1
        return index_of_field(model.entities, ASKED if field == "\\?" else field)

    return Question(entity(subject), index_of_field(model.relations, relation), entity(obj))


def _answer_file(model: Model, args: argparse.Namespace, out: IO[str]) -> None:
    from lapse.apps._shared import inputs

    with inputs.recognize(args.input).open() as file:
        lines = enumerate((line.decode("utf-8", "surrogateescape").rstrip("\r\n") for line in file), 1)
        while some := list(islice(lines, LINES_AT_ONCE)):
            _answer(model, list(_read_questions(model, args.input, some)), args, out)


def _read_questions(model: Model, path: Path, lines: list[tuple[int, str]]) -> Iterator[Question]:
    seen: dict[str, Question] = {}
    for number, line in lines:
        if not line.strip():
            continue
        try:
            if line not in seen:
                seen[line] = read_question(model, line.split("\t"))
        except AppError as error:
            raise AppError(f"{path}:{number}: {error}") from None
        yield seen[line]


# --- answers -----------------------------------------------------------------------------------------------------


def _answer(model: Model, questions: list[Question], args: argparse.Namespace, out: IO[str]) -> None:
    """Write the answers in the order of the questions."""
    from lapse.apps._shared.names import escape

    known = find_known(model, questions, args.known)
    for question, objects, scores in zip(questions, *_solve(model, questions, args, known), strict=True):
        for found, score in zip(objects, scores, strict=True):
            s, r, o = (found if part < 0 else part for part in question)
            names = (model.entities[s], model.relations[r], model.entities[o])
            line = [*(escape(name) for name in names), f"{score:.6g}"]
            if args.mark_known:
                line.append("known" if found in known[question] else "new")
            out.write("\t".join(line) + "\n")


def _solve(
    model: Model, questions: list[Question], args: argparse.Namespace, known: dict[Question, set[int]]
) -> tuple[list[list[int]], list[list[float]]]:
    """For each question, the entities that answer it (of a triple, its object), and their scores."""
    entities: list[list[int]] = [[] for _ in questions]
    scores: list[list[float]] = [[] for _ in questions]
    triples = [i for i, each in enumerate(questions) if min(each) >= 0]
    s, r, o = ([questions[i][part] for i in triples] for part in range(3))
    for i, score in zip(triples, model.scores(s, r, o).tolist(), strict=True):
        entities[i], scores[i] = [questions[i].object], [score]
    for ask, place, parts in ((model.objects, 2, (0, 1)), (model.subjects, 0, (1, 2))):
        mine = [i for i, each in enumerate(questions) if each[place] < 0]
        left_out = None if args.mark_known else [sorted(known[questions[i]]) for i in mine]
        first, second = ([questions[i][part] for i in mine] for part in parts)
        for i, answers in zip(mine, ask(first, second, args.k, left_out), strict=True):
            entities[i], scores[i] = answers.ids.tolist(), answers.scores.tolist()
    return entities, scores


def find_known(model: Model, questions: Iterable[Question], paths: Iterable[Path]) -> dict[Question, set[int]]:
    """For each question, the entities that are known to answer it (of a triple, its object if it is known)."""
    from lapse.apps.kge import data

    known: dict[Question, set[int]] = {question: set() for question in questions}
    if not (paths := list(paths)):
        return known
    by_names = {_names_of(model, question): question for question in known}
    wanted: dict[Question, set[str]] = {each: set() for each in known}

    def take(s: str, r: str, o: str) -> None:
        for names, answer in (((s, r, None), o), ((None, r, o), s), ((s, r, o), o)):
            if (question := by_names.get(names)) is not None:
                wanted[question].add(answer)

    for path in paths:
        data.visit(path, take)
    everything = sorted(set().union(*wanted.values()))
    places = dict(zip(everything, model.entities.find(everything).tolist(), strict=True))
    return {each: {places[name] for name in names if places[name] >= 0} for each, names in wanted.items()}


def _names_of(model: Model, question: Question) -> tuple[str | None, str, str | None]:
    subject, relation, obj = question
    entities = [None if number < 0 else model.entities[number] for number in (subject, obj)]
    return entities[0], model.relations[relation], entities[1]
