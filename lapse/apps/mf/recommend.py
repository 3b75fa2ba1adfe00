"""``python -m lapse.apps.mf recommend``: ask a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lapse.apps._shared import asking, columns
from lapse.apps._shared.job import AppError

if TYPE_CHECKING:
    from lapse.apps._shared.top import Answers
    from lapse.apps.mf.trained import Model, NewRow

DESCRIPTION = """\
The items with the highest predictions for users, items like others, and items for users that are new.

Each line of the answer is user (or item), item, and prediction (or cosine), separated by tabs. Without USER, --similar
and --new-users, each line of standard input is a user. No MPI is started.
"""
EXAMPLES = """\
examples:
  python -m lapse.apps.mf recommend model 196 22 -k 5 --seen ratings.csv
  python -m lapse.apps.mf recommend model --similar "Star Wars (1977)"
  python -m lapse.apps.mf recommend model --new-users more_ratings.csv --output answers.tsv

In names, \\t, \\n, \\r and \\\\ stand for a tab, line ends and a backslash.
"""
#: Bytes of a file of ratings that are parsed at once.
READ_AT_ONCE = 1 << 24

Ratings = list[tuple[int, float]]


def main(argv: list[str]) -> None:
    """Run the command with these arguments."""
    parser = make_parser()
    args = parser.parse_intermixed_args(argv)
    if (bool(args.users) + bool(args.similar) + (args.new_users is not None)) > 1:
        parser.error("USER, --similar and --new-users exclude each other")
    with asking.reporting():
        from lapse.apps.mf.trained import Model  # not before: `--help` needs no NumPy

        model = Model.load(args.model)
        with asking.output_to(args.output) as out:
            if args.new_users is not None:
                recommend_to_new(model, args, out)
            elif args.similar:
                _write(out, args.similar, model.similar(_numbers(model.columns, args.similar), args.k))
            elif args.users:
                recommend(model, args.users, args, out)
            else:
                asking.answer_lines(lambda line: recommend(model, [line], args, out), "user> ")


def make_parser() -> argparse.ArgumentParser:
    """All options of the command."""
    parser = asking.new_parser("mf", "recommend", DESCRIPTION, EXAMPLES)
    parser.add_argument("users", metavar="USER", nargs="*", help="names of users, as in the ratings")
    parser.add_argument("--similar", metavar="ITEM", nargs="+", help="the items most like these")
    parser.add_argument(
        "--new-users",
        type=Path,
        metavar="FILE",
        help="ratings by users that are new, in a format of --ratings: their factors are fitted to these, and what "
        "they have rated is left out",
    )
    parser.add_argument("--seen", type=Path, metavar="FILE", help="ratings whose items are left out for their users")
    parser.add_argument(
        "--columns",
        type=columns.ColumnsType("USER,ITEM,RATING"),
        metavar="A,B,C",
        help="which columns of --seen and --new-users are user, item and rating (default: as their headers say, "
        "otherwise 1,2,3)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the answers there (default: print them)")
    return parser


def recommend(model: Model, users: Sequence[str], args: argparse.Namespace, out: IO[str]) -> None:
    """Answer for users that the model knows."""
    places = _numbers(model.rows, users)
    left_out = None
    if args.seen is not None:
        known = [model.rows[place] for place in places]
        ratings, _ = read_ratings(model, args.seen, args.columns, set(known).__contains__)
        left_out = [[item for item, _ in ratings.get(name, [])] for name in known]
    _write(out, users, model.recommend(places, args.k, left_out), model.clip)


def recommend_to_new(model: Model, args: argparse.Namespace, out: IO[str]) -> None:
    """Answer for all users of a file of ratings, as if the model knew none of them."""
    from lapse.apps._shared.names import escape

    ratings, unknown = read_ratings(model, args.new_users, args.columns, lambda user: True)
    if not ratings:
        raise AppError(f"{args.new_users}: none of its items is known to the model, such as {unknown[:1]}")
    if unknown:
        asking.warn(f"{args.new_users}: {len(unknown):,} items are unknown to the model, such as {unknown[0]!r}")
    rows: list[NewRow] = []
    for user, some in ratings.items():
        try:
            rows.append(model.fold_in([item for item, _ in some], [value for _, value in some]))
        except ValueError as error:
            raise AppError(f"{args.new_users}: user {user!r}: {error}") from None
    left_out = [[item for item, _ in some] for some in ratings.values()]
    _write(out, [escape(user) for user in ratings], model.recommend(rows, args.k, left_out), model.clip)


def read_ratings(
    model: Model, path: Path, chosen: str | None, accept: Callable[[str], bool]
) -> tuple[dict[str, Ratings], list[str]]:
    """The ratings of the users that are accepted, and the items that the model does not have.

    Raises
    ------
    AppError
        For what cannot be read, with file and line.
    """
    from lapse.apps.mf import data

    source = data.Source(str(path))
    form = data.read_format(source, chosen)
    count = -(-source.size // READ_AT_ONCE) or 1
    ratings: dict[str, Ratings] = {}
    unknown: dict[str, None] = {}
    for index in range(count):
        share = data.read_share(source, index, count, form)
        row_ids = share.row_ids if share.row_ids is not None else _counted(share.shape, 0)
        column_ids = share.column_ids if share.column_ids is not None else _counted(share.shape, 1)
        wanted = [accept(name) for name in row_ids]
        places = model.columns.find(column_ids).tolist()
        for row, column, value in zip(share.rows.tolist(), share.columns.tolist(), share.values.tolist(), strict=True):
            if not wanted[row]:
                continue
            if places[column] >= 0:
                ratings.setdefault(row_ids[row], []).append((places[column], value))
            else:
                unknown[column_ids[column]] = None
    return ratings, list(unknown)


def _counted(shape: tuple[int, int] | None, axis: int) -> list[str]:
    """The names of a matrix without names."""
    return [str(number) for number in range(1, shape[axis] + 1)] if shape else []


def _numbers(names, fields: Sequence[str]) -> list[int]:
    from lapse.apps._shared.names import index_of_field

    return [index_of_field(names, field) for field in fields]


def _write(out: IO[str], asked: Sequence[str], answers: list[Answers], shown=lambda scores: scores) -> None:
    from lapse.apps._shared.names import escape

    for question, (_, scores, names) in zip(asked, answers, strict=True):
        for name, score in zip(names, shown(scores).tolist(), strict=True):
            out.write(f"{question}\t{escape(name)}\t{score:.6g}\n")
