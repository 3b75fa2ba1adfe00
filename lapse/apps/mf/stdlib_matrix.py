"""A real matrix that every machine with Python has: which identifiers the standard library's modules use how often.

Rows are modules, columns the names and attributes in their code, an entry is the logarithm of 1 + how often. Sources
are parsed, never imported.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from pathlib import Path

from lapse.apps._shared.stdlib import (
    StrippedPythonError,
    cached,
    interpreter_name,
    library_folder,
    parse_source,
    source_files,
)

#: Identifiers that fewer modules use tell nothing about a module.
MIN_MODULES = 3
#: With fewer modules than this, the interpreter has no sources worth training on.
MIN_SOURCES = 50
NAME = "identifiers of the standard library"
#: Part of the cached file's name: raise it whenever the matrix would come out differently.
FORMAT_VERSION = 1


def standard_matrix() -> bytes:
    """The lines of `gather`, from the cache if it has them."""
    name = f"python-identifiers-{interpreter_name()}-v{FORMAT_VERSION}.tsv"
    return cached(name, lambda path: path.write_text(gather(), encoding="utf-8"), f"the {NAME}").read_bytes()


def gather(folder: Path | None = None, least: int = MIN_SOURCES) -> str:
    """Count identifiers of all modules under `folder` (default: the standard library).

    Returns
    -------
    str
        Lines ``module<tab>identifier<tab>log(1 + count)``, as `data` reads them.
    """
    folder = library_folder() if folder is None else folder
    counts = {module_name(path, folder): found for path in source_files(folder) if (found := identifiers(path))}
    if len(counts) < least:
        raise StrippedPythonError(f"only {len(counts)} modules with sources under {folder}: this Python seems to be "
                                  f"stripped of them. Give ratings with --ratings FILE")
    modules_of = Counter(name for found in counts.values() for name in found)
    return "".join(
        f"{module}\t{name}\t{math.log1p(count):.6f}\n"
        for module, found in counts.items() for name, count in sorted(found.items())
        if modules_of[name] >= MIN_MODULES)


def module_name(path: Path, folder: Path) -> str:
    """How a file is imported: ``json/__init__.py`` is ``json``."""
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def identifiers(path: Path) -> Counter:
    """How often a file uses each name and attribute; none where it does not parse."""
    tree = parse_source(path)
    if tree is None:
        return Counter()
    return Counter(node.id if isinstance(node, ast.Name) else node.attr
                   for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute)))
