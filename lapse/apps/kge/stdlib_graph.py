"""A knowledge graph that every machine with Python has: the standard library's own.

Entities are modules, classes and functions by their full names (``json.decoder.JSONDecoder``; builtins
without a prefix), relations are what the sources say about them:

============  ==========================  ==================================================
relation      from ... to                 found in
============  ==========================  ==================================================
imports       module, module              an ``import``
contains      module, class or function   a definition
has_method    class, function             a definition in a class
inherits      class, class                its bases
decorated_by  class or function, any      a decorator
raises        function, class             ``raise``
catches       function, class             ``except``
calls         function, function          a call
creates       function, class             a call
uses          function, module            an attribute of a module that is neither of these
mentions      any, class or function      its docstring
============  ==========================  ==================================================

No relation is the inverse or a copy of another one. Sources are parsed, never imported. Entities with few triples are
omitted; those of valid and test occur in train. The graph is kept in the user's cache folder.
"""

from __future__ import annotations

import ast
import builtins
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lapse.apps._shared import stdlib
from lapse.apps._shared.job import AppError
from lapse.apps.kge.data import SPLITS, Dataset

#: Part of the cached folder's name: raise it whenever the graph would come out differently.
FORMAT_VERSION = 1
#: With fewer triples, this Python was installed without its sources.
MIN_TRIPLES = 2000
#: Entities with fewer triples are omitted.
MIN_DEGREE = 4
#: Share of the triples for each of valid and test, and the seed of the choice.
HELD_OUT, SPLIT_SEED = 0.05, 20

Triple = tuple[str, str, str]
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Function = (ast.FunctionDef, ast.AsyncFunctionDef)

_CODE_WORD = re.compile(r"\b(?:[A-Za-z]+[A-Z_]\w*|\w+(?=\(\)))\b")  # camelCase, under_score, call()
#: Questions that are shown after the training, if the graph has their subject.
_QUESTIONS = (
    ("json", "imports"),
    ("json.decoder.JSONDecodeError", "inherits"),
    ("shutil.copyfile", "raises"),
    ("tempfile.NamedTemporaryFile", "calls"),
    ("http.client.HTTPConnection", "has_method"),
    ("logging.handlers", "imports"),
    ("asyncio.queues.Queue.get", "raises"),
)


def standard_graph() -> Path:
    """The folder with train.txt, valid.txt and test.txt, extracted if the cache does not have it."""
    name = f"python-knowledge-graph-{stdlib.interpreter_name()}-v{FORMAT_VERSION}"
    return stdlib.cached(name, _extract, "the graph of the standard library")


def _extract(folder: Path) -> None:
    folder.mkdir()
    for name, triples in zip(SPLITS, split(prune(gather())), strict=True):
        text = "".join("\t".join(triple) + "\n" for triple in triples)
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def questions(dataset: Dataset) -> list[tuple[int, int]]:
    """A few pairs (subject, relation) to complete, as ids."""
    entities = {name: i for i, name in enumerate(dataset.entities)}
    relations = {name: i for i, name in enumerate(dataset.relations)}
    return [(entities[s], relations[r]) for s, r in _QUESTIONS if s in entities and r in relations]


# --- selection and split -------------------------------------------------------------------------------------


def prune(triples: list[Triple], degree: int = MIN_DEGREE) -> list[Triple]:
    """Remove entities with less than `degree` triples until none is left (the k-core)."""
    while True:
        degrees = Counter(entity for s, _, o in triples for entity in (s, o))
        kept = [t for t in triples if degrees[t[0]] >= degree and degrees[t[2]] >= degree]
        if len(kept) == len(triples):
            break
        triples = kept
    if len(triples) < MIN_TRIPLES:
        raise AppError(
            f"the Python library under {stdlib.library_folder()} has only {len(triples):,} triples worth "
            "training on: this Python seems to be installed without its sources. Provide a graph with "
            "--dataset"
        )
    return triples


def split(triples: list[Triple]) -> list[list[Triple]]:
    """Train, valid and test; entities and relations of valid and test have other triples in train."""
    shuffled = sorted(triples)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    left = Counter(item for s, r, o in shuffled for item in (("e", s), ("r", r), ("e", o)))
    wanted = int(HELD_OUT * len(shuffled))
    train: list[Triple] = []
    held_out: list[Triple] = []
    for s, r, o in shuffled:
        items = Counter((("e", s), ("r", r), ("e", o)))
        if len(held_out) < 2 * wanted and all(left[item] > 1 + n for item, n in items.items()):
            left.subtract(items)
            held_out.append((s, r, o))
        else:
            train.append((s, r, o))
    return [train, held_out[::2], held_out[1::2]]


# --- reading the sources -----------------------------------------------------------------------------------


def gather(folder: Path | None = None) -> list[Triple]:
    """All triples of the sources under `folder` (default: the standard library), each once."""
    folder = stdlib.library_folder() if folder is None else folder
    modules = dict(_parse_all(folder))
    names = _Names(modules)
    found = dict.fromkeys(
        triple for module, tree in modules.items() for triple in _Reader(module, tree, names).triples()
    )
    return [(s, r, o) for s, r, o in found if s != o]


def _parse_all(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    """Modules and their syntax trees, without files that cannot be parsed."""
    for path in stdlib.source_files(folder):
        name = stdlib.module_name(path, folder)
        tree = stdlib.parse_source(path) if all(part.isidentifier() for part in name.split(".")) else None
        if tree is not None:
            yield name, tree


class _Names:
    """The kind of each full name: "module", "class" or "function"."""

    def __init__(self, modules: dict[str, ast.Module]) -> None:
        self.packages = modules
        self.kinds = dict.fromkeys(sys.stdlib_module_names, "module") | dict.fromkeys(modules, "module")
        for name, value in vars(builtins).items():
            if not name.startswith("_") and callable(value):
                self.kinds[name] = "class" if isinstance(value, type) else "function"
        for module, tree in modules.items():
            self._define(module, tree.body)
        self._exports = {module: dict(self._imported(module, tree)) for module, tree in modules.items()}

    def _define(self, scope: str, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, Function):
                self.kinds[f"{scope}.{node.name}"] = "function"
            elif isinstance(node, ast.ClassDef):
                self.kinds[f"{scope}.{node.name}"] = "class"
                self._define(f"{scope}.{node.name}", node.body)
            elif isinstance(node, (ast.If, ast.Try)):
                self._define(scope, node.body + node.orelse)

    def _imported(self, module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
        """Pairs (name in this module, full name)."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
            elif isinstance(node, ast.ImportFrom):
                origin = self.origin(module, node)
                for alias in node.names:
                    yield alias.asname or alias.name, f"{origin}.{alias.name}"

    def origin(self, module: str, node: ast.ImportFrom) -> str:
        """The module that ``from ... import`` takes from; relative ones are resolved."""
        if not node.level:
            return node.module or ""
        is_package = any(name.startswith(module + ".") for name in self.packages)
        parts = module.split(".")
        base = parts[: len(parts) - node.level + is_package]
        return ".".join(base + ([node.module] if node.module else []))

    def resolve(self, module: str, name: str, depth: int = 0) -> str | None:
        """The entity that a dotted name stands for in a module; None for none."""
        if f"{module}.{name}" in self.kinds:
            return f"{module}.{name}"
        first, _, rest = name.partition(".")
        full = self._exports.get(module, {}).get(first)
        if full is None:
            return name if name in self.kinds and "." not in name and self.kinds[name] != "module" else None
        return self.find(full + ("." + rest if rest else ""), depth)

    def find(self, full: str, depth: int = 0) -> str | None:
        """The entity with this full name, even if its module has imported it from elsewhere."""
        if full in self.kinds:
            return full
        module, _, name = full.rpartition(".")
        while module and module not in self._exports:
            module, _, more = module.rpartition(".")
            name = f"{more}.{name}"
        return self.resolve(module, name, depth + 1) if module and depth < 5 else None


class _Reader:
    """Reads the triples of one module."""

    def __init__(self, module: str, tree: ast.Module, names: _Names) -> None:
        self._module, self._tree, self._names = module, tree, names

    def triples(self) -> Iterator[Triple]:
        """All of them; some occur several times."""
        yield from self._imports()
        yield from self._mentions(self._module, self._tree)
        yield from self._definitions(self._module, self._tree.body, None)

    def _imports(self) -> Iterator[Triple]:
        for node in ast.walk(self._tree):
            targets = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                origin = self._names.origin(self._module, node)
                inner = [f"{origin}.{alias.name}" for alias in node.names]
                targets = [name for name in inner if self._kind(name) == "module"] or [origin]
            yield from ((self._module, "imports", name) for name in targets if self._kind(name) == "module")

    def _definitions(self, scope: str, body: list[ast.stmt], owner: str | None) -> Iterator[Triple]:
        """Of the body of a module, or of the class `owner`."""
        for node in body:
            if isinstance(node, (ast.If, ast.Try)):
                yield from self._definitions(scope, node.body + node.orelse, owner)
            if not isinstance(node, (*Function, ast.ClassDef)):
                continue
            name = f"{scope}.{node.name}"
            if owner is None:
                yield scope, "contains", name
            elif isinstance(node, Function):
                yield owner, "has_method", name
            yield from self._links(name, "decorated_by", node.decorator_list)
            yield from self._mentions(name, node)
            if isinstance(node, ast.ClassDef):
                yield from self._links(name, "inherits", node.bases, ("class",))
                yield from self._definitions(name, node.body, name)
            else:
                yield from self._function(name, node, owner)

    def _function(
        self, name: str, function: ast.FunctionDef | ast.AsyncFunctionDef, owner: str | None
    ) -> Iterator[Triple]:
        for node in (inner for statement in function.body for inner in ast.walk(statement)):
            if isinstance(node, ast.Raise) and node.exc is not None:
                yield from self._links(name, "raises", [node.exc], ("class",))
            elif isinstance(node, ast.ExceptHandler) and node.type is not None:
                types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                yield from self._links(name, "catches", types, ("class",))
            elif isinstance(node, ast.Call):
                target = self._entity(node.func, owner)
                relation = {"function": "calls", "class": "creates"}.get(self._kind(target))
                if relation and target:
                    yield name, relation, target
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                target = self._entity(node.value, owner)
                if target and self._kind(target) == "module" and self._entity(node, owner) is None:
                    yield name, "uses", target

    def _links(
        self, name: str, relation: str, nodes: list[ast.expr], kinds: tuple[str, ...] = ("class", "function")
    ) -> Iterator[Triple]:
        for node in nodes:
            target = self._entity(node.func if isinstance(node, ast.Call) else node, None)
            if target and self._kind(target) in kinds:
                yield name, relation, target

    def _mentions(self, name: str, node: Documented) -> Iterator[Triple]:
        for word in _CODE_WORD.findall(ast.get_docstring(node, clean=False) or ""):
            target = self._names.resolve(self._module, word)
            if target and self._kind(target) in ("class", "function"):
                yield name, "mentions", target

    def _entity(self, node: ast.expr, owner: str | None) -> str | None:
        """What an expression of names and dots stands for."""
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        if owner is not None and node.id in ("self", "cls") and len(parts) == 1:
            return self._names.find(f"{owner}.{parts[0]}")
        return self._names.resolve(self._module, ".".join([node.id, *reversed(parts)]))

    def _kind(self, name: str | None) -> str:
        """The kind of an entity; "" for none."""
        return self._names.kinds.get(name, "") if name else ""
