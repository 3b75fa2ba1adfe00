"""Real text that every machine with Python has: the documentation of the standard library.

The docstrings of the running interpreter's standard library and the topics of `pydoc`, in lower case, one sentence per
line. Sources are parsed, never imported. The result is kept in the user's cache folder.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from lapse.apps._shared import stdlib

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
    """The file with the text, extracted if the cache does not have it."""
    name = cache_name()
    return stdlib.cached(name, lambda path: path.write_text(gather(), encoding="utf-8"), "the Python documentation")


def cache_name() -> str:
    """A name that changes with the format, the Python version, and the place of its library."""
    return f"python-documentation-{stdlib.interpreter_name()}-v{FORMAT_VERSION}.txt"


def gather(folder: Path | None = None) -> str:
    """Read all documentation under `folder` (default: the standard library).

    Returns
    -------
    str
        One sentence per line.
    """
    folder = stdlib.library_folder() if folder is None else folder
    lines = [line for text in _documentation(folder) for line in to_sentences(text)]
    words = sum(line.count(" ") + 1 for line in lines)
    if words < MIN_WORDS:
        raise stdlib.StrippedPythonError(
            f"the Python documentation under {folder} has only {words:,} words: this Python seems to be installed "
            f"without its sources. Provide a text with --corpus"
        )
    return "\n".join(lines) + "\n"


def _documentation(folder: Path) -> Iterator[str]:
    sources = list(stdlib.source_files(folder))
    if not sources:
        log.warning("no Python sources under %s: this Python was installed without them", folder)
    for path in sources:
        yield from docstrings(path)
    yield from pydoc_topics(folder / _PYDOC_TOPICS)


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file's module, classes and functions; none if it cannot be parsed."""
    tree = stdlib.parse_source(path)
    if tree is None:
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            yield text


def pydoc_topics(path: Path) -> Iterator[str]:
    """The texts of `pydoc`'s help topics: the values of a dictionary in its source."""
    tree = stdlib.parse_source(path)
    assigned = [node.value for node in getattr(tree, "body", ()) if isinstance(node, ast.Assign)]
    try:
        texts = list(ast.literal_eval(assigned[0]).values())
    except (ValueError, AttributeError, IndexError, TypeError):
        log.warning("the topics of pydoc are missing in this Python (%s): continuing without them", path)
        return
    yield from (text for text in texts if isinstance(text, str))


def to_sentences(text: str) -> Iterator[str]:
    """Split a text into sentences of lower-case words, without those of a single word."""
    for paragraph in _PARAGRAPH_END.split(text.lower()):
        for sentence in _SENTENCE_END.split(paragraph):
            words = _WORD.findall(sentence)
            if len(words) > 1:
                yield " ".join(words)
