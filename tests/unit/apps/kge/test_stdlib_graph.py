"""The graph of the standard library: what is read from sources, and how it is split."""

from collections import Counter

import pytest

from lapse.apps._shared.job import AppError
from lapse.apps.kge import stdlib_graph

SOURCES = {
    "base.py": 'class Problem(ValueError):\n    "See `find_it()`."\n\ndef find_it(x):\n    return len(x)\n',
    "pack/__init__.py": "from .inner import Thing\n",
    "pack/inner.py": """
import functools, sys
from base import Problem, find_it
from . import other

class Thing(other.Base):
    @functools.lru_cache(maxsize=None)
    def look(self):
        try:
            self.close()
        except (KeyError, Problem):
            raise Problem("x") from None

    def close(self):
        find_it(sys.argv)
        return Thing()
""",
    "pack/other.py": "import pack\n\nclass Base: pass\n\ndef make():\n    return pack.Thing()\n",
    "broken.py": "def (",
    "test/test_base.py": "import base\n",
}
EXPECTED = {
    ("base", "contains", "base.Problem"),
    ("base", "contains", "base.find_it"),
    ("base.find_it", "calls", "len"),
    ("base.Problem", "inherits", "ValueError"),
    ("base.Problem", "mentions", "base.find_it"),
    ("pack", "imports", "pack.inner"),
    ("pack.inner", "imports", "functools"),
    ("pack.inner", "imports", "sys"),
    ("pack.inner", "imports", "base"),
    ("pack.inner", "imports", "pack.other"),
    ("pack.inner", "contains", "pack.inner.Thing"),
    ("pack.inner.Thing", "inherits", "pack.other.Base"),
    ("pack.inner.Thing", "has_method", "pack.inner.Thing.look"),
    ("pack.inner.Thing", "has_method", "pack.inner.Thing.close"),
    ("pack.inner.Thing.look", "calls", "pack.inner.Thing.close"),
    ("pack.inner.Thing.look", "catches", "KeyError"),
    ("pack.inner.Thing.look", "catches", "base.Problem"),
    ("pack.inner.Thing.look", "raises", "base.Problem"),
    ("pack.inner.Thing.look", "creates", "base.Problem"),
    ("pack.inner.Thing.close", "calls", "base.find_it"),
    ("pack.inner.Thing.close", "uses", "sys"),
    ("pack.inner.Thing.close", "creates", "pack.inner.Thing"),
    ("pack.other", "imports", "pack"),
    ("pack.other", "contains", "pack.other.Base"),
    ("pack.other", "contains", "pack.other.make"),
    ("pack.other.make", "creates", "pack.inner.Thing"),
}


@pytest.fixture
def sources(tmp_path):
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_triples_of_some_sources(sources):
    found = stdlib_graph.gather(sources)
    assert len(found) == len(set(found))
    assert set(found) == EXPECTED


def test_a_library_without_sources(tmp_path):
    with pytest.raises(AppError, match="without its sources"):
        stdlib_graph.prune(stdlib_graph.gather(tmp_path))


def test_few_triples_of_an_entity_are_not_worth_it(monkeypatch):
    monkeypatch.setattr(stdlib_graph, "MIN_TRIPLES", 0)
    ring = [(f"e{i}", "r", f"e{(i + 1) % 5}") for i in range(5)]
    chain = [("e0", "r", "x"), ("x", "r", "y"), ("y", "r", "z")]
    assert sorted(stdlib_graph.prune(ring + chain, 2)) == ring


def test_what_is_held_out_occurs_in_train():
    triples = [(f"e{i}", f"r{j}", f"e{(7 * i + j) % 40}") for i in range(40) for j in range(6)]
    train, valid, test = stdlib_graph.split(triples)
    assert sorted(train + valid + test) == sorted(triples)
    assert len(valid) == len(test) == int(0.05 * len(triples))
    entities = {entity for s, _, o in train for entity in (s, o)}
    relations = {r for _, r, _ in train}
    for s, r, o in valid + test:
        assert s in entities and o in entities and r in relations
    assert stdlib_graph.split(triples[::-1]) == [train, valid, test]


def test_a_relation_that_occurs_once_is_never_held_out():
    triples = [(f"e{i}", "r", f"e{(i + k) % 10}") for i in range(10) for k in range(1, 5)] + [("e0", "once", "e5")]
    train = stdlib_graph.split(triples)[0]
    assert Counter(r for _, r, _ in train)["once"] == 1
