"""The embedded corpus: gathered without importing, cached so that nobody sees half a file."""

import os
import sys

import pytest

from lapse.apps._shared.stdlib import StrippedPythonError
from lapse.apps.word2vec import stdlib_corpus


@pytest.fixture
def library(tmp_path):
    """A small library folder with everything that matters."""
    files = {
        "good.py": '"""First sentence here. Second one."""\ndef f():\n    """A function\'s text."""\n',
        "broken.py": "def (:\n",
        "explodes.py": '"""Never imported, only read."""\nraise SystemExit(3)\n',
        "test/test_good.py": '"""Not this text."""\n',
        "site-packages/foreign.py": '"""Not that text."""\n',
        "pydoc_data/topics.py": "topics = {'if': 'The topic of conditions.'}\n",
    }
    for name, text in files.items():
        path = tmp_path / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "library"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stdlib_corpus, "gather", lambda: "some text\n")
    return tmp_path / "cache" / "lapse"


def test_docstrings_and_topics_but_no_tests_and_no_foreign_packages(library, monkeypatch):
    monkeypatch.setattr(stdlib_corpus, "MIN_WORDS", 1)
    lines = stdlib_corpus.gather(library).splitlines()
    assert lines == [
        "never imported only read",
        "first sentence here",
        "second one",
        "a function's text",
        "the topic of conditions",
    ]


def test_missing_topics_are_said(library, monkeypatch, caplog):
    monkeypatch.setattr(stdlib_corpus, "MIN_WORDS", 1)
    (library / "pydoc_data" / "topics.py").unlink()
    stdlib_corpus.gather(library)
    assert "topics of pydoc are missing" in caplog.text


def test_a_stripped_python_is_an_error_in_words(tmp_path, caplog):
    with pytest.raises(StrippedPythonError, match="--corpus"):
        stdlib_corpus.gather(tmp_path)
    assert "no Python sources" in caplog.text


def test_the_real_library_has_enough_words():
    words = stdlib_corpus.gather().split()
    assert len(words) > 200_000
    assert {"thread", "socket", "exception", "float", "directory"} <= set(words)
    assert all(word == word.lower() for word in words[:1000])


def test_the_cache_is_written_once_and_read_afterwards(cache, monkeypatch):
    path = stdlib_corpus.standard_corpus()
    assert path.parent == cache
    assert path.read_text() == "some text\n"
    assert list(cache.iterdir()) == [path]
    monkeypatch.setattr(stdlib_corpus, "gather", lambda: pytest.fail("gathered again"))
    assert stdlib_corpus.standard_corpus() == path


def test_an_interrupted_write_leaves_nothing(cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stdlib_corpus.standard_corpus()
    assert list(cache.iterdir()) == []


def test_a_cache_folder_that_cannot_be_written(cache, caplog):
    cache.parent.write_text("a file where the folder should be")
    path = stdlib_corpus.standard_corpus()
    try:
        assert path.read_text() == "some text\n"
        assert "temporary" in caplog.text
    finally:
        path.unlink()


def test_the_name_is_keyed_by_versions(monkeypatch):
    name = stdlib_corpus.cache_name()
    assert ".".join(map(str, sys.version_info[:3])) in name
    monkeypatch.setattr(stdlib_corpus, "FORMAT_VERSION", stdlib_corpus.FORMAT_VERSION + 1)
    assert stdlib_corpus.cache_name() != name
