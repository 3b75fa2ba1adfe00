"""What the documentation names exists: files, and the functions in the walks of docs/architecture.md; code that reads
models reads names whole.
"""

import json
import re
from pathlib import Path

import numpy as np
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


#: Names with characters at which Python's text files or `splitlines` end a line.
ODD_NAMES = ["a\rb", "line\u2028separator", "next\x85line", "form\x0cfeed", " spaces "]


def code_of(page):
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


@pytest.mark.parametrize("app", ["mf", "kge"])
def test_code_of_a_page_reads_names_with_other_line_ends(tmp_path, monkeypatch, capsys, app):
    """And names the answers to its question in their order."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    if app == "mf":
        users, items = [*ODD_NAMES, "196"], ["c\rd", *ODD_NAMES]
        for side, names in (("row", users), ("column", items)):
            (folder / f"{side}_ids.txt").write_bytes("".join(f"{name}\n" for name in names).encode())
            np.save(folder / f"{side}s.npy", np.zeros((6, 2), np.float32))
        np.save(folder / "row_biases.npy", np.zeros(6, np.float32))
        np.save(folder / "column_biases.npy", np.arange(6, 0, -1, dtype=np.float32))
        (folder / "model.json").write_text(json.dumps(dict(mean=0.0, low=0, high=9, rank=2, biases=True)))
        expected = items
    else:
        expected = [*ODD_NAMES, "json"]
        for stem, names in (("entities", expected), ("relations", ["x\ry", "imports"])):
            lines = "".join(f"{i}\t{name}\n" for i, name in enumerate(names))
            (folder / f"{stem}.tsv").write_bytes(lines.encode())
        np.save(folder / "entities.npy", np.array([[6 - i, 0] for i in range(6)], np.float32))
        np.save(folder / "relations.npy", np.ones((2, 2), np.float32))
    exec(compile(code_of(ROOT / "apps" / app / "README.md"), "README.md", "exec"), {})
    assert eval(capsys.readouterr().out)[:5] == expected[:5]
