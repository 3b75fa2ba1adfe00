"""Real text that every machine with Python has: the documentation of the standard library.

The docstrings of the running interpreter's standard library and the topics of `pydoc`, in lower
case, one sentence a line. Sources are parsed, never imported: importing all of the standard
library opens windows and browsers. The result is kept in the user's cache folder.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from lapse.apps._shared.stdlib import (
    StrippedPythonError,
    cached,
    interpreter_name,
    library_folder,
    parse_source,
    source_files,
)

log = logging.getLogger(__name__)

#: Part of the cached file's name: raise it whenever the text would come out differently.
FORMAT_VERSION = 1
#: With fewer words than this, the interpreter has no documentation worth training on.
MIN_WORDS = 20_000

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_PYDOC_TOPICS = Path("pydoc_data") / "topics.py"

_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_WORD = re.compile(r"[a-z]+(?:[_'][a-z]+)*")


def standard_corpus() -> Path:
    """Return the file with the text, gathering it where the cache does not have it.

    Where the cache folder cannot be written, a temporary file is used, which lives as long as
    this process.
    """
    return cached(cache_name(), gather, "the Python documentation")


def cache_name() -> str:
    """A name that changes with the format, the Python version, and the place of its library."""
    return f"python-documentation-{interpreter_name()}-v{FORMAT_VERSION}.txt"


def gather(folder: Path | None = None) -> str:
    """Read all documentation under `folder` (default: the standard library).

    Returns
    -------
    str
        One sentence a line.
    """
    folder = library_folder() if folder is None else folder
    lines = [line for text in _documentation(folder) for line in to_sentences(text)]
    words = sum(line.count(" ") + 1 for line in lines)
    if words < MIN_WORDS:
        raise StrippedPythonError(
            f"the Python documentation under {folder} has only {words:,} words: this Python seems "
            f"to be stripped of its sources. Give a text with --corpus"
        )
    return "\n".join(lines) + "\n"


def _documentation(folder: Path) -> Iterator[str]:
    sources = list(source_files(folder))
    if not sources:
        log.warning("no Python sources under %s: this Python is stripped", folder)
    for path in sources:
        yield from docstrings(path)
    yield from pydoc_topics(folder / _PYDOC_TOPICS)


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file's module, classes and functions, none where it does not parse."""
    tree = parse_source(path)
    if tree is None:
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            yield text


def pydoc_topics(path: Path) -> Iterator[str]:
    """The texts of `pydoc`'s help topics: the values of a dictionary in its source."""
    tree = parse_source(path)
    topics = next(
        (node.value for node in getattr(tree, "body", ()) if isinstance(node, (ast.Assign,))), None
    )
    try:
        texts = list(ast.literal_eval(topics).values())
    except (ValueError, AttributeError, TypeError):
        log.warning("the topics of pydoc are missing in this Python (%s): doing without", path)
        return
    yield from (text for text in texts if isinstance(text, str))


def to_sentences(text: str) -> Iterator[str]:
    """Cut a text into sentences of lower-case words; those of a single word are left out."""
    for paragraph in _PARAGRAPH_END.split(text.lower()):
        for sentence in _SENTENCE_END.split(paragraph):
            words = _WORD.findall(sentence)
            if len(words) > 1:
                yield " ".join(words)
