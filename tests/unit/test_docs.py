"""What the documentation names exists: files, and the functions in the walks of docs/architecture.md."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "apps").glob("*/README.md")), *sorted((ROOT / "examples").glob("*/README.md")),
         ROOT / "benchmarks" / "README.md"]  # fmt: skip
#: Examples of files that a reader creates.
EXAMPLES = ("lapse/apps/linear", "lapse/sampling/_near", "tests/apps/test_linear")


def named_files(text):
    """The paths of this repository that a page names, as code or as the target of a link."""
    code = re.findall(r"`((?:lapse|docs|tests|benchmarks|hostfiles|apps)/[\w./*-]+)[`(:]", text)
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    return [path for path in [*code, *links] if not path.startswith(EXAMPLES)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    missing = [path for path in named_files(page.read_text(encoding="utf-8"))
               if not list(ROOT.glob(path.rstrip("/"))) and not list(page.parent.glob(path.rstrip("/")))]  # fmt: skip
    assert missing == []


def steps_of(page):
    """The rows of tables with the columns step, function and file."""
    text = page.read_text(encoding="utf-8")
    for table in re.findall(r"\| step \| function \| file \|\n\|[- |]+\n((?:\|.*\n)+)", text):
        for row in table.splitlines():
            _, functions, files = (cell.strip() for cell in row.strip("|").split("|"))
            yield re.findall(r"`(\w+)`", functions), re.findall(r"`([^`]+)`", files)


def test_functions_of_the_walks_are_defined_in_their_files():
    steps = list(steps_of(ROOT / "docs" / "architecture.md"))
    assert len(steps) > 20
    missing = []
    for functions, files in steps:
        assert functions and files
        text = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)
        missing += [
            (name, files) for name in functions if not re.search(rf"\b(?:def|cdef|cpdef)\b[^\n=]*\b{name}\(", text)
        ]
    assert missing == []
