"""Reads the imports of a package and compares them with the floors that its page of documentation promises.

Nothing is imported or compiled: Python is parsed with `ast`, Cython (``.pyx`` and ``.pxd``) with regular expressions.
A ``.pyx`` and its ``.pxd`` are one module. Imports inside functions count; those for type checkers only
(``if TYPE_CHECKING:``) count as imports, but not as part of a cycle.
"""

import ast
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

MAX_MODULE_LINES = 700
MAX_CLASS_LINES = 500

FLOORS = "## Floors"
SIDEWAYS = "### Declared sideways imports"
SIZES = "### Sizes above the limits"


@dataclass
class Import:
    """One import: ``name`` is a module, ``line`` is where it stands."""

    name: str
    path: Path
    line: int
    is_for_types: bool = False


@dataclass
class Module:
    """What the files of one module import, define and touch."""

    name: str
    files: list[Path] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    private_names: set[str] = field(default_factory=set)
    accesses: list[tuple[str, str, Path, int]] = field(default_factory=list)  # object, attribute, file, line
    sizes: list[tuple[str, int, int]] = field(default_factory=list)  # name, lines, limit
    floors: list[tuple[int, Path]] = field(default_factory=list)  # named at the head of a file


@dataclass
class Page:
    """The tables of the page: what is where, and what is allowed all the same."""

    floors: dict[str, int]
    sideways: list[tuple[str, str]]
    sizes: set[str]

    def place_of(self, module: str) -> str | None:
        """Return the entry of the table that a module belongs to; the root package stands for itself only."""
        while module:
            if module in self.floors:
                return module
            module = module.rpartition(".")[0]
            if "." not in module:
                return None
        return None

    def declares(self, source: str, target: str) -> bool:
        """Whether the page allows an import between two places of one floor."""
        return any(_is_within(source, start) and _is_within(target, end) for start, end in self.sideways)


# The page -----------------------------------------------------------------------------------------


def read_page(text: str) -> Page:
    """Read the tables; every name stands in backticks."""
    floors: dict[str, int] = {}
    for number, where, *_ in _rows(text, FLOORS):
        for name in _names(where):
            if name in floors:
                raise ValueError(f"{name} stands on two floors, {floors[name]} and {number}")
            floors[name] = int(number)
    if not floors:
        raise ValueError(f"no table below {FLOORS!r}")
    sideways = [
        (source, target)
        for sources, targets, *_ in _rows(text, SIDEWAYS)
        for source in _names(sources)
        for target in _names(targets)
    ]
    sizes = {name for where, *_ in _rows(text, SIZES) for name in _names(where)}
    return Page(floors, sideways, sizes)


def _rows(text: str, header: str) -> list[list[str]]:
    """Return the rows of the first table below a header, without its two lines of head."""
    rows: list[list[str]] = []
    level = header.split(" ")[0]
    below = text.partition(f"\n{header}\n")[2]
    for line in below.splitlines():
        if line.startswith("#") and len(line.split(" ")[0]) <= len(level):
            break
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def _names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


def _is_within(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


# The sources --------------------------------------------------------------------------------------


def read_package(folder: Path) -> dict[str, Module]:
    """Read all sources of a package; ``folder`` is named as the package."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".pyx", ".pxd"))
    modules: dict[str, Module] = {}
    for path in paths:
        name = _module_name(path, folder)
        modules.setdefault(name, Module(name)).files.append(path)
    for module in modules.values():
        for path in module.files:
            read = _read_python if path.suffix == ".py" else _read_cython
            read(path, module, modules)
            if match := re.match(r'"""Floor (\d+)\.', path.read_text(encoding="utf-8")):
                module.floors.append((int(match[1]), path))
    return modules


def _module_name(path: Path, folder: Path) -> str:
    words = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def _resolve(base: str, names: list[str], modules: dict[str, Module]) -> list[str]:
    """Return the modules that ``from base import names`` loads."""
    found = [f"{base}.{name}" for name in names if f"{base}.{name}" in modules]
    return found if len(found) == len(names) else [base, *found]


def _absolute(module: str, is_package: bool, level: int, base: str) -> str:
    """Return what a relative import names."""
    if level == 0:
        return base
    words = module.split(".")
    words = words[: len(words) - level + is_package]
    return ".".join([*words, base]) if base else ".".join(words)


class _PythonReader(ast.NodeVisitor):
    def __init__(self, path: Path, module: Module, modules: dict[str, Module]):
        self.path, self.module, self.modules = path, module, modules
        self.is_for_types = False

    def visit_If(self, node: ast.If) -> None:
        before = self.is_for_types
        self.is_for_types = before or "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body:
            self.visit(child)
        self.is_for_types = before
        self.visit(node.test)
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        is_package = self.path.name == "__init__.py"
        base = _absolute(self.module.name, is_package, node.level, node.module or "")
        for name in _resolve(base, [alias.name for alias in node.names], self.modules):
            self._add(name, node)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func).endswith("import_module") and node.args and isinstance(node.args[0], ast.Constant):
            self._add(str(node.args[0].value), node)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = ast.unparse(node.value)
        if isinstance(node.ctx, ast.Store) and owner == "self":
            self.module.private_names.add(node.attr)
        self.module.accesses.append((owner, node.attr, self.path, node.lineno))
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.module.private_names.add(node.id)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.module.private_names.add(node.name)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.module.private_names.add(node.name)
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        self.module.sizes.append((f"{self.module.name}.{node.name}", lines, MAX_CLASS_LINES))
        self.generic_visit(node)

    def _add(self, name: str, node: ast.stmt | ast.expr) -> None:
        self.module.imports.append(Import(name, self.path, node.lineno, self.is_for_types))


def _read_python(path: Path, module: Module, modules: dict[str, Module]) -> None:
    text = path.read_text(encoding="utf-8")
    module.sizes.append((module.name, len(text.splitlines()), MAX_MODULE_LINES))
    _PythonReader(path, module, modules).visit(ast.parse(text, str(path)))


_STRING = re.compile(r"'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|#[^\n]*", re.DOTALL)
_FROM = re.compile(r"^[ \t]*from[ \t]+(\.*)([\w.]*)[ \t]+c?import[ \t]+(\([^)]*\)|[^\n]*)", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*c?import[ \t]+([\w., ]+)", re.MULTILINE)
_ATTRIBUTE = re.compile(r"([\w\])]+(?:\.\w+)*?)\.(?=(\w+))")
_FUNCTION = re.compile(r"^[ \t]*c?p?def\b[^\n(=]*?(\w+)[ \t]*\(", re.MULTILINE)
_FIELD = re.compile(r"^[ \t]+cdef[ \t]+[^\n(:=]*?\b(\w+)[ \t]*$", re.MULTILINE)
_OWN = re.compile(r"\bself\.(\w+)[ \t]*=[^=]")
_CLASS = re.compile(r"^(?:cdef[ \t]+)?class[ \t]+(\w+)")


def _read_cython(path: Path, module: Module, modules: dict[str, Module]) -> None:
    text = path.read_text(encoding="utf-8")
    module.sizes.append((module.name, len(text.splitlines()), MAX_MODULE_LINES))
    module.sizes += _cython_classes(text, module.name)
    text = _STRING.sub(_blank, text)
    is_package = path.stem == "__init__"
    for match in _FROM.finditer(text):
        line = _line_of(text, match)
        base = _absolute(module.name, is_package, len(match[1]), match[2])
        names = [words[0] for words in map(str.split, match[3].strip("()").split(",")) if words]
        module.imports += [Import(name, path, line) for name in _resolve(base, names, modules)]
    for match in _IMPORT.finditer(text):
        names = [words[0] for words in map(str.split, match[1].split(",")) if words]
        module.imports += [Import(name, path, _line_of(text, match)) for name in names]
    for pattern in (_FUNCTION, _FIELD, _OWN):
        module.private_names.update(pattern.findall(text))
    for number, line in enumerate(text.splitlines(), 1):
        if not re.match(r"[ \t]*(from|c?import)[ \t]", line):
            module.accesses += [(match[1], match[2], path, number) for match in _ATTRIBUTE.finditer(line)]


def _blank(match: re.Match[str]) -> str:
    return '""' + "\n" * match[0].count("\n")


def _line_of(text: str, match: re.Match[str]) -> int:
    return text.count("\n", 0, match.start() + len(match[0]) - len(match[0].lstrip())) + 1


def _cython_classes(text: str, module: str) -> list[tuple[str, int, int]]:
    """Return the classes and their lengths, by indentation."""
    lines = [*text.splitlines(), "end"]
    found = []
    for start, line in enumerate(lines):
        if match := _CLASS.match(line):
            end = last = start + 1
            while not re.match(r"[^\s)#]", lines[end]):
                last = end + 1 if lines[end].strip() else last
                end += 1
            found.append((f"{module}.{match[1]}", last - start, MAX_CLASS_LINES))
    return found


# The comparison -----------------------------------------------------------------------------------


def check(folder: Path, page: Page) -> list[str]:
    """Return what contradicts the page, one line each."""
    modules = read_package(folder)
    return [
        *_unplaced(modules, page),
        *_wrong_heads(modules, page),
        *_wrong_imports(modules, page),
        *_cycles(modules),
        *_private_accesses(modules, page),
        *_accesses_upward(modules, page),
        *_sizes(modules, page),
    ]


def _unplaced(modules: dict[str, Module], page: Page) -> list[str]:
    root = min(modules, key=len) if modules else ""
    missing = [
        f"{name} stands on no floor of the page"
        for name, module in modules.items()
        if page.place_of(name) is None and not (name == root and not module.imports)
    ]
    gone = [
        f"the page names {place}, which does not exist"
        for place in page.floors
        if not any(_is_within(name, place) for name in modules)
    ]
    return missing + gone


def _wrong_heads(modules: dict[str, Module], page: Page) -> list[str]:
    return [
        f"{path}:1: says floor {named}, but {module.name} is on floor {page.floors[place]}"
        for module in modules.values()
        if (place := page.place_of(module.name)) is not None
        for named, path in module.floors
        if named != page.floors[place]
    ]


def _wrong_imports(modules: dict[str, Module], page: Page) -> list[str]:
    found = []
    for module in modules.values():
        source = page.place_of(module.name)
        for imported in module.imports:
            target = page.place_of(imported.name)
            if imported.name not in modules or source is None or target in (None, source):
                continue
            here, there = page.floors[source], page.floors[target]
            where = f"{imported.path}:{imported.line}: {module.name} (floor {here}) imports {imported.name}"
            if there > here:
                found.append(f"{where}, which is above it (floor {there})")
            elif there == here and not page.declares(module.name, imported.name):
                found.append(f"{where}, which is beside it; declare it in the page or move what it needs")
    return found


def _cycles(modules: dict[str, Module]) -> list[str]:
    """Return the import cycles, each once and as a path, found by a depth-first walk."""
    edges = {
        name: sorted({i.name for i in module.imports if i.name in modules and not i.is_for_types and i.name != name})
        for name, module in modules.items()
    }
    found, done = [], set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append("import cycle: " + " -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in edges[name]:
                walk(target, [*path, name])
            done.add(name)

    for name in edges:
        walk(name, [])
    return found


def _private_accesses(modules: dict[str, Module], page: Page) -> list[str]:
    """Return accesses to private members that are defined in another place of the package only.

    By name, so a name that both places define passes; one that nobody in the package defines belongs to a library.
    """
    definers: dict[str, set[str]] = defaultdict(set)
    for module in modules.values():
        for name in module.private_names:
            definers[name].add(page.place_of(module.name) or module.name)
    submodules = {name.rpartition(".")[2] for name in modules}
    found = []
    for module in modules.values():
        place = page.place_of(module.name) or module.name
        for owner, name, path, line in module.accesses:
            if not name.startswith("_") or name.startswith("__") or name in submodules:
                continue
            if owner not in ("self", "cls") and definers[name] and place not in definers[name]:
                others = ", ".join(sorted(definers[name]))
                found.append(f"{path}:{line}: {module.name} uses {owner}.{name}, which is private to {others}")
    return found


def _accesses_upward(modules: dict[str, Module], page: Page) -> list[str]:
    """Return attributes of ``self`` that are named as a place further up: an object below holds one from above."""
    floors = {place.rpartition(".")[2].strip("_"): floor for place, floor in page.floors.items() if "." in place}
    found = []
    for module in modules.values():
        place = page.place_of(module.name)
        for owner, name, path, line in module.accesses:
            above = floors.get(name.strip("_"), -1)
            if place is not None and owner == "self" and above > page.floors[place]:
                found.append(
                    f"{path}:{line}: {module.name} (floor {page.floors[place]}) uses {owner}.{name}, "
                    f"named as a place above it (floor {above})"
                )
    return found


def _sizes(modules: dict[str, Module], page: Page) -> list[str]:
    return [
        f"{name} has {lines} lines; the limit is {limit}"
        for module in modules.values()
        for name, lines, limit in module.sizes
        if lines > limit and name not in page.sizes
    ]
