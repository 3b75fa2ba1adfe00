"""Commands that ask a trained model: ``python -m lapse.apps.<app> <command> MODEL``. They start no MPI."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from lapse.apps._shared.job import AppError, describe
from lapse.apps._shared.options import positive_int


def new_parser(app: str, command: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser with the argument ``MODEL`` and the option ``-k``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m lapse.apps.{app} {command}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="the folder that a training wrote with --output")
    parser.add_argument(
        "-k", type=positive_int, default=10, metavar="N", help="number of answers (default: %(default)s)"
    )
    return parser


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Print an error of the body in a line, and exit; names may have any character.

    A reader that has gone (``| head``) is no error.
    """
    logging.getLogger("lapse").setLevel(logging.WARNING)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    try:
        yield
        sys.stdout.flush()
    except (AppError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered is flushed at the end
            sys.exit(0)
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def answer_lines(answer: Callable[[str], None], prompt: str) -> None:
    """Answer each line of standard input until it ends; with a prompt, if it is a terminal.

    An error is printed, and the next line is read; unless a person has seen it, the process exits with 1 at the end.
    """
    is_terminal = sys.stdin.isatty()
    went_well = True
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() then edits lines and has a history
        print("end with Ctrl-D", file=sys.stderr)
    for line in _typed(prompt) if is_terminal else sys.stdin:
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        try:
            answer(text)
        except AppError as error:
            print(f"error: {error}", file=sys.stderr)
            went_well = False
        sys.stdout.flush()
    if not (went_well or is_terminal):
        sys.exit(1)


def warn(text: str) -> None:
    """Print a warning."""
    print(f"warning: {text}", file=sys.stderr)


def _typed(prompt: str) -> Iterator[str]:
    while True:
        try:
            yield input(prompt)
        except EOFError:
            print()
            return


@contextlib.contextmanager
def output_to(path: Path | None) -> Iterator[IO[str]]:
    """A file to write, which appears when it is complete; None: standard output."""
    if path is None:
        yield sys.stdout
        return
    from lapse.apps._shared.files import replacing

    with replacing(path) as temporary:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            yield file
