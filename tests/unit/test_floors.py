"""The floors of docs/architecture.md: the package keeps to them, and the checker finds what does not."""

from pathlib import Path

import pytest

import floors
import lapse

PACKAGE = Path(lapse.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"


def test_the_package_keeps_to_its_page():
    assert floors.check(PACKAGE, floors.read_page(PAGE.read_text(encoding="utf-8"))) == []


# Planted packages ---------------------------------------------------------------------------------

TABLES = """
# Page

## Floors

| floor | where | job |
| --- | --- | --- |
| 0 | `house.cellar`, `house.errors` | things |
| 1 | `house.kitchen`, `house._larder` | meals |
| 2 | `house.server` | guests |

### Declared sideways imports

| from | to | why |
| --- | --- | --- |
| `house.kitchen` | `house._larder` | it cooks what is there |

### Sizes above the limits

| where | why |
| --- | --- |
| `house.cellar.grown` | it has grown |
"""

SOUND = {
    "__init__.py": "",
    "errors.py": "class HouseError(Exception):\n    pass\n",
    "cellar/__init__.py": "",
    "cellar/_types.pxd": "ctypedef long key_t\n",
    "cellar/wine.py": "import os\n\nclass Bottle:\n    def __init__(self):\n        self._age = os.getpid()\n",
    "kitchen/__init__.py": "",
    "kitchen/_stove.pxd": "from house.cellar._types cimport key_t\n",
    "kitchen/_stove.pyx": (
        '"""Text that begins a line with\nfrom house.server import guest\nis no import."""\n'
        "# from house.server import guest\n"
        "cimport numpy as cnp\nfrom house.kitchen._stove cimport key_t\n"
        "from house._larder cimport (\n    shelf_t,\n)\n\n"
        "cdef class Stove:\n    cdef int _heat\n\n    def light(self):\n        self._heat = 3\n"
    ),
    "kitchen/meal.py": "from house.kitchen import _stove\n\ndef cook(stove):\n    return stove._heat, _stove\n",
    "_larder.pxd": "from house.cellar._types cimport key_t\n\ncdef struct shelf_t:\n    key_t key\n",
    "_larder.pyx": "",
    "server/__init__.py": "",
    "server/guest.py": "from ..kitchen.meal import cook\nfrom house import errors\n",
}


def findings(tmp_path, changes, page=TABLES):
    """Write a package that keeps to its page, but for some files, and return what the checker finds."""
    for name, text in {**SOUND, **changes}.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [line.replace(f"{tmp_path}/", "") for line in floors.check(tmp_path / "house", floors.read_page(page))]


def test_nothing_is_found_in_a_sound_package(tmp_path):
    assert findings(tmp_path, {}) == []


UPWARD = [
    ("cellar/wine.py", "from house.kitchen import meal\n", 1, "house.kitchen.meal"),
    ("cellar/wine.py", "import house.kitchen.meal as meal\n", 1, "house.kitchen.meal"),
    ("cellar/wine.py", "\nfrom ..kitchen.meal import cook\n", 2, "house.kitchen.meal"),
    ("cellar/wine.py", "def drink():\n    from house.kitchen.meal import cook\n", 2, "house.kitchen.meal"),
    ("cellar/wine.py", "from importlib import import_module\nimport_module('house.server.guest')\n", 2,
     "house.server.guest"),
    ("cellar/wine.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.server.guest\n", 3,
     "house.server.guest"),
    ("cellar/_types.pxd", "from house.kitchen._stove cimport Stove\n", 1, "house.kitchen._stove"),
    ("cellar/_types.pxd", "cimport house.kitchen._stove\n", 1, "house.kitchen._stove"),
    ("kitchen/_stove.pyx", "def f():\n    from house.server.guest import come\n", 2, "house.server.guest"),
    ("kitchen/_stove.pyx", "\nfrom house.server cimport (\n    guest)\n", 2, "house.server.guest"),
]  # fmt: skip


@pytest.mark.parametrize("file, text, line, target", UPWARD)
def test_upward_imports_are_found(tmp_path, file, text, line, target):
    found = [one for one in findings(tmp_path, {file: text}) if "which is above it" in one]
    assert len(found) == 1
    assert found[0].startswith(f"house/{file}:{line}: ") and f" imports {target}," in found[0]


def test_a_head_that_names_another_floor_is_found(tmp_path):
    assert findings(tmp_path, {"cellar/_types.pxd": '"""Floor 0. Types."""\nctypedef long key_t\n'}) == []
    found = findings(tmp_path, {"kitchen/_stove.pyx": '"""Floor 2. Heat."""\ncdef class Stove:\n    cdef int _heat\n'})
    assert found == ["house/kitchen/_stove.pyx:1: says floor 2, but house.kitchen._stove is on floor 1"]


def test_an_undeclared_sideways_import_is_found(tmp_path):
    found = findings(tmp_path, {"_larder.pyx": "from house.kitchen._stove cimport Stove\n"})
    assert "house/_larder.pyx:1: house._larder (floor 1) imports house.kitchen._stove, which is beside it" in found[0]


def test_a_cycle_is_found_once_with_its_path(tmp_path):
    found = findings(tmp_path, {"cellar/a.py": "import house.cellar.b\n",
                                "cellar/b.py": "def f():\n    import house.cellar.c\n",
                                "cellar/c.py": "from house.cellar import a\n"})  # fmt: skip
    assert found == ["import cycle: house.cellar.a -> house.cellar.b -> house.cellar.c -> house.cellar.a"]


def test_an_import_for_type_checkers_only_is_no_cycle(tmp_path):
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.cellar import b\n"
    assert findings(tmp_path, {"cellar/a.py": text, "cellar/b.py": "import house.cellar.a\n"}) == []


@pytest.mark.parametrize("file", ["kitchen/pan.py", "kitchen/_pan.pyx"])
def test_private_members_of_another_place_are_found(tmp_path, file):
    found = findings(tmp_path, {file: "import os\n\ndef open(bottle):\n    os._exit(1)\n    return bottle._age\n"})
    user = f"house/{file}:5: house.kitchen.{Path(file).stem}"
    assert found == [f"{user} uses bottle._age, which is private to house.cellar"]


def test_private_functions_of_compiled_modules_are_found(tmp_path):
    stove = SOUND["kitchen/_stove.pyx"] + "\n    cdef int _cool(self) except -1 nogil:\n        return 0\n"
    found = findings(tmp_path, {"kitchen/_stove.pyx": stove, "server/guest.py": "def come(s):\n    s._cool()\n"})
    assert len(found) == 1 and "uses s._cool, which is private to house.kitchen" in found[0]


@pytest.mark.parametrize("file", ["kitchen/pan.py", "kitchen/_pan.pyx"])
def test_an_object_that_holds_one_from_above_is_found(tmp_path, file):
    text = "class Pan:\n    def __init__(self, server):\n        self._server = server\n"
    assert "uses self._server, named as a place above it (floor 2)" in findings(tmp_path, {file: text})[0]


def test_a_module_that_the_page_does_not_name_is_found(tmp_path):
    assert findings(tmp_path, {"attic.py": ""}) == ["house.attic stands on no floor of the page"]


def test_a_place_that_does_not_exist_is_found(tmp_path):
    page = TABLES.replace("`house.errors`", "`house.errors`, `house.garden`")
    assert findings(tmp_path, {}, page) == ["the page names house.garden, which does not exist"]


def test_a_place_on_two_floors_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="house.errors stands on two floors, 0 and 2"):
        findings(tmp_path, {}, TABLES.replace("`house.server`", "`house.server`, `house.errors`"))


def test_a_page_without_floors_is_an_error():
    with pytest.raises(ValueError, match="no table below '## Floors'"):
        floors.read_page("# Page\n")


LONG = "\n".join(f"X{number} = 0" for number in range(floors.MAX_MODULE_LINES + 1))
LONG_CLASS = "\n".join(["class Wide:", *(["    x = 0"] * floors.MAX_CLASS_LINES), "y = 0"])


def test_sizes_above_the_limits_are_found_but_for_those_that_the_page_names(tmp_path):
    found = findings(tmp_path, {"cellar/long.py": LONG, "cellar/_long.pyx": LONG, "cellar/grown.py": LONG})
    assert sorted(found) == [f"house.cellar.{name} has 701 lines; the limit is 700" for name in ("_long", "long")]


@pytest.mark.parametrize("file", ["wide.py", "_wide.pyx"])
def test_classes_above_their_limit_are_found(tmp_path, file):
    found = findings(tmp_path, {f"cellar/{file}": LONG_CLASS})
    assert found == [f"house.cellar.{Path(file).stem}.Wide has 501 lines; the limit is 500"]
