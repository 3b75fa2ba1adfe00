"""The standard library of the running Python as data that every machine has: its sources, and a cache for what was
extracted from them.

Sources are parsed, never imported: importing all of the standard library opens windows and browsers.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import logging
import os
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from lapse.apps._shared.files import write_text

log = logging.getLogger(__name__)

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


class StrippedPythonError(Exception):
    """This Python was installed without its sources."""


def library_folder() -> Path:
    """The folder of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(folder: Path) -> Iterator[Path]:
    """The Python files under `folder` in a fixed order, without tests and third-party packages."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        yield from (Path(here, name) for name in sorted(files) if name.endswith(".py"))


def parse_source(path: Path) -> ast.Module | None:
    """The syntax tree of a file; None if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        log.debug("skipped %s: %s", path, error)
        return None


def cache_folder() -> Path:
    """The folder of this user's caches, by the convention of the platform."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        base = Path(chosen)
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    else:
        base = Path("~/.cache")
    with suppress(RuntimeError):  # no home folder: writing will fail, and that is reported
        base = base.expanduser()
    return base / "lapse"


def interpreter_name() -> str:
    """A name that changes with the Python version and the folder of its library."""
    version = sys.implementation.name + "-" + ".".join(map(str, sys.version_info[:3]))
    folder = hashlib.sha256(str(library_folder()).encode()).hexdigest()[:8]
    return f"{version}-{folder}"


def cached(name: str, gather: Callable[[], str], what: str) -> Path:
    """The file of that name in the cache, written with the result of `gather` if it does not exist.

    If the cache folder cannot be written, a temporary file is used, which is removed at exit. `what` is for messages.
    """
    path = cache_folder() / name
    if path.is_file() and path.stat().st_size > 0:
        log.info("using %s extracted earlier: %s", what, path)
        return path
    text = gather()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text, unique=True)
        log.info("extracted %s of this machine: %s", what, path)
        return path
    except OSError as error:
        log.warning("cannot write to the cache folder (%s): using a temporary file", error)
        return write_temporary(text)


def write_temporary(text: str) -> Path:
    """Write a file that is removed when this process ends."""
    descriptor, name = tempfile.mkstemp(prefix="lapse-corpus-", suffix=".txt")
    atexit.register(Path(name).unlink, missing_ok=True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)
