"""A real matrix that every machine with Python has: how often the standard library's modules use which identifiers.

Rows are modules, columns the names and attributes in their code, an entry is the logarithm of 1 + the number of uses.
Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from pathlib import Path

from lapse.apps._shared import stdlib

#: Identifiers that fewer modules use say nothing about a module.
MIN_MODULES = 3
#: With fewer modules than this, this Python was installed without its sources.
MIN_SOURCES = 50
NAME = "identifiers of the standard library"
#: Part of the cached file's name: raise it whenever the matrix would come out differently.
FORMAT_VERSION = 1


def standard_matrix() -> bytes:
    """The lines of `gather`, from the cache if it has them."""
    name = f"python-identifiers-{stdlib.interpreter_name()}-v{FORMAT_VERSION}.tsv"
    return stdlib.cached(name, lambda path: path.write_text(gather(), encoding="utf-8"), f"the {NAME}").read_bytes()


def gather(folder: Path | None = None, least: int = MIN_SOURCES) -> str:
    """Count identifiers of all modules under `folder` (default: the standard library).

    Returns
    -------
    str
        Lines ``module<tab>identifier<tab>log(1 + count)``, as `data` reads them.
    """
    folder = stdlib.library_folder() if folder is None else folder
    counts = {
        stdlib.module_name(path, folder): found for path in stdlib.source_files(folder) if (found := identifiers(path))
    }
    if len(counts) < least:
        raise stdlib.StrippedPythonError(
            f"only {len(counts)} modules with sources under {folder}: this Python seems to be "
            f"installed without its sources. Provide ratings with --ratings FILE"
        )
    modules_of = Counter(name for found in counts.values() for name in found)
    return "".join(
        f"{module}\t{name}\t{math.log1p(count):.6f}\n"
        for module, found in counts.items()
        for name, count in sorted(found.items())
        if modules_of[name] >= MIN_MODULES
    )


def identifiers(path: Path) -> Counter:
    """The number of uses of each name and attribute in a file; none if it cannot be parsed."""
    tree = stdlib.parse_source(path)
    if tree is None:
        return Counter()
    return Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, (ast.Name, ast.Attribute))
    )
