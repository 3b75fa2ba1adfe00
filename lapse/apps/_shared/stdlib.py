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
import shutil
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

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


def module_name(path: Path, folder: Path) -> str:
    """The name by which a file under `folder` is imported: ``json`` for ``json/__init__.py``."""
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


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


def cached(name: str, extract: Callable[[Path], object], what: str) -> Path:
    """The file or folder of that name in the cache, written by `extract` if it does not exist; `what` is for messages.

    It appears when it is complete. The cache folder is for this user alone (others could put another text there); if it
    cannot be that, or cannot be written, a temporary folder is used, which is removed at exit.
    """
    path = cache_folder() / name
    try:
        _make_private(path.parent)
        if path.exists() and path.stat().st_size > 0:
            log.info("using %s extracted earlier: %s", what, path)
            return path
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=name))
    except OSError as error:
        log.warning("cannot use the cache folder (%s): using a temporary folder", error)
        temporary = Path(tempfile.mkdtemp(prefix="lapse-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        extract(temporary / name)
        return temporary / name
    try:
        extract(temporary / name)
        _move(temporary / name, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("extracted %s: %s", what, path)
    return path


def _make_private(folder: Path) -> None:
    """Make a folder that only this user can read and write."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.stat()
    if sys.platform == "win32":
        return
    if about.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user")
    if about.st_mode & 0o077:
        folder.chmod(0o700)


def _move(source: Path, path: Path) -> None:
    """Move a file or folder to its path; if another process has put a folder there meanwhile, that one is as good."""
    try:
        os.replace(source, path)
    except OSError:
        if not path.is_dir():
            raise


def write_temporary(text: str) -> Path:
    """Write a file that is removed when this process ends."""
    descriptor, name = tempfile.mkstemp(prefix="lapse-corpus-", suffix=".txt")
    atexit.register(Path(name).unlink, missing_ok=True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)
