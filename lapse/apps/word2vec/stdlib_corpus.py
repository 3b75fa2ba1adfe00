"""Real text that every machine with Python has: the documentation of the standard library.

The docstrings of the running interpreter's standard library and the topics of `pydoc`, in lower
case, one sentence a line. Sources are parsed, never imported: importing all of the standard
library opens windows and browsers. The result is kept in the user's cache folder.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import logging
import os
import re
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

#: Part of the cached file's name: raise it whenever the text would come out differently.
FORMAT_VERSION = 1
#: With fewer words than this, the interpreter has no documentation worth training on.
MIN_WORDS = 20_000

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_PYDOC_TOPICS = Path("pydoc_data") / "topics.py"

_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_WORD = re.compile(r"[a-z]+(?:[_'][a-z]+)*")


class StrippedPythonError(Exception):
    """The running Python has been stripped of its documentation."""


def standard_corpus() -> Path:
    """Return the file with the text, gathering it where the cache does not have it.

    Where the cache folder cannot be written, a temporary file is used, which lives as long as
    this process.
    """
    path = cache_folder() / cache_name()
    if path.is_file() and path.stat().st_size > 0:
        log.info("reading the Python documentation gathered earlier: %s", path)
        return path
    text = gather()
    try:
        write_atomically(path, text)
        log.info("gathered the Python documentation of this machine: %s", path)
        return path
    except OSError as error:
        log.warning("cannot write to the cache folder (%s): using a temporary file", error)
        return write_temporary(text)


def cache_folder() -> Path:
    """Where this user's caches are, by the custom of the platform."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        base = Path(chosen)
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    else:
        base = Path("~/.cache")
    with suppress(RuntimeError):  # no home folder: writing will fail and be reported
        base = base.expanduser()
    return base / "lapse"


def cache_name() -> str:
    """A name that changes with the format, the Python version, and the place of its library."""
    version = sys.implementation.name + "-" + ".".join(map(str, sys.version_info[:3]))
    place = hashlib.sha256(str(library_folder()).encode()).hexdigest()[:8]
    return f"python-documentation-{version}-{place}-v{FORMAT_VERSION}.txt"


def library_folder() -> Path:
    """The folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


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


def source_files(folder: Path) -> Iterator[Path]:
    """The Python files under `folder` in a fixed order, without tests and foreign packages."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        yield from (Path(here, name) for name in sorted(files) if name.endswith(".py"))


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file's module, classes and functions, none where it does not parse."""
    tree = _parse(path)
    if tree is None:
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            yield text


def pydoc_topics(path: Path) -> Iterator[str]:
    """The texts of `pydoc`'s help topics: the values of a dictionary in its source."""
    tree = _parse(path)
    topics = next(
        (node.value for node in getattr(tree, "body", ()) if isinstance(node, (ast.Assign,))), None
    )
    try:
        texts = list(ast.literal_eval(topics).values())
    except (ValueError, AttributeError, TypeError):
        log.warning("the topics of pydoc are missing in this Python (%s): doing without", path)
        return
    yield from (text for text in texts if isinstance(text, str))


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        log.debug("left out %s: %s", path, error)
        return None


def to_sentences(text: str) -> Iterator[str]:
    """Cut a text into sentences of lower-case words; those of a single word are left out."""
    for paragraph in _PARAGRAPH_END.split(text.lower()):
        for sentence in _SENTENCE_END.split(paragraph):
            words = _WORD.findall(sentence)
            if len(words) > 1:
                yield " ".join(words)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is either not there or complete, whoever else writes it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def write_temporary(text: str) -> Path:
    """Write a file that is removed when this process ends."""
    descriptor, name = tempfile.mkstemp(prefix="lapse-corpus-", suffix=".txt")
    atexit.register(_remove, name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)


def _remove(name: str) -> None:
    with suppress(OSError):
        os.unlink(name)
