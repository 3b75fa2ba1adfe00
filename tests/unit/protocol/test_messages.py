"""The table of message kinds, which the code, the tests and the documents share."""

import re
from pathlib import Path

import pytest
from lapse.messaging._kinds import MESSAGE_KINDS

DOCS = Path(__file__).resolve().parents[3] / "docs"


def documented_kinds(page):
    """The rows of a page's tables of messages: {name: (route, meaning)}."""
    kinds = {}
    in_table = False
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| kind |"):
            assert cells == ["kind", "from → to", "meaning"]
            in_table = True
        elif not line.startswith("|"):
            in_table = False
        elif in_table and not set(line) <= set("|- "):
            name, route, meaning = cells
            assert name not in kinds
            kinds[name] = (route, meaning)
    return kinds


@pytest.mark.parametrize(
    "page, handlers",
    [("protocol.md", {"relocation", "communication"}), ("replication.md", {"replication"})],
)
def test_the_documents_show_the_table_of_kinds(page, handlers):
    expected = {
        kind.name: (kind.route.replace("->", "→"), kind.meaning)
        for kind in MESSAGE_KINDS.values()
        if kind.handled_by in handlers
    }
    assert documented_kinds(page) == expected


def test_kinds_have_names_and_numbers_of_their_own():
    assert len({kind.name for kind in MESSAGE_KINDS.values()}) == len(MESSAGE_KINDS)
    assert all(0 < number < 64 for number in MESSAGE_KINDS)
    assert all(re.fullmatch("[A-Z]+(_[A-Z]+)*", kind.name) for kind in MESSAGE_KINDS.values())


def test_requests_have_the_numbers_of_the_operations():
    names = ["PULL", "PUSH", "SET", "LOCALIZE", "LOCATE"]
    assert [MESSAGE_KINDS[number].name for number in range(1, 6)] == names
