"""Names in a mapped file: found whatever characters they have, and suggested when they are unknown."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.apps._shared.job import AppError
from lapse.apps._shared.names import FEW, Names, UnknownNameError, escape, index_of_field, numbers_of, unescape

ODD = ["a", "tab\tb", "tab", "b", '"quoted"', "back\\slash", "New York ", " 1", "1", "Zürich", "\U0001f600", "a\rb",
       "line\u2028separator", "x 7", "?", "'", "a, b", "-"]  # fmt: skip
#: How the applications write names: what is before and after one in its line.
FORMS = {"kge": (b"\t", b"", "{i}\t{name}\n"), "mf": (b"", b"", "{name}\n"), "word2vec": (b"", b" ", "{name} {i}\n")}


def write(path, names, form):
    before, after, line = FORMS[form]
    text = "".join(line.format(i=i, name=name) for i, name in enumerate(names))
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return Names(path, "name", before, after)


@pytest.mark.parametrize("form", FORMS)
def test_odd_names_are_found_one_by_one_and_together(tmp_path, form):
    names = write(tmp_path / "names", ODD, form)
    assert list(names) == ODD and len(names) == len(ODD) and names[-1] == ODD[-1] and names[:2] == ODD[:2]
    assert [names.index(name) for name in ODD] == list(range(len(ODD)))
    assert len(ODD) > FEW
    np.testing.assert_array_equal(names.find([*ODD, "c", "ta"]), [*range(len(ODD)), -1, -1])
    np.testing.assert_array_equal(names.find(["b", "c", "lash", "0", "0\ta", ""]), [3, -1, -1, -1, -1, -1])
    assert "tab" in names and "ab" not in names and 7 not in names


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1), max_size=30))
@pytest.mark.parametrize("form", FORMS)
def test_any_names_are_found_as_a_list_finds_them(tmp_path_factory, form, texts):
    names = write(tmp_path_factory.mktemp("names") / "names", texts, form)
    assert list(names) == texts
    wanted = [texts.index(name) for name in texts]
    assert [names.index(name) for name in texts] == wanted
    np.testing.assert_array_equal(names.find(texts), wanted)


def test_a_last_line_without_an_end_counts(tmp_path):
    (tmp_path / "names").write_bytes(b"a\nbc")
    names = Names(tmp_path / "names")
    assert list(names) == ["a", "bc"] and names.index("bc") == 1 and "b" not in names


def test_an_empty_file_has_no_names(tmp_path):
    (tmp_path / "names").touch()
    names = Names(tmp_path / "names")
    assert list(names) == [] and "a" not in names and names.alike("a") == []


def test_bytes_that_are_not_utf_8_stay_what_they_are(tmp_path):
    (tmp_path / "names").write_bytes(b"caf\xe9\nb\n")
    names = Names(tmp_path / "names")
    assert names[0].encode("utf-8", "surrogateescape") == b"caf\xe9" and names.index(names[0]) == 0


@pytest.mark.parametrize("form", FORMS)
def test_an_unknown_name_is_an_error_that_suggests_others(tmp_path, form):
    names = write(tmp_path / "names", ["thread", "threads", "process", "Zebra"], form)
    with pytest.raises(UnknownNameError, match=r"no name 'thraed'; did you mean 'thread'"):
        names.index("thraed")
    with pytest.raises(LookupError, match="did you mean 'Zebra'"):
        names.index("ZEBRA")
    with pytest.raises(AppError, match="no name 'quark'$"):
        names.index("quark")


def test_a_line_without_a_separator_is_an_error_that_names_it(tmp_path):
    (tmp_path / "names").write_text("0\ta\nb\n")
    with pytest.raises(AppError, match=r"names:2: b'b' is no line"):
        Names(tmp_path / "names", before=b"\t")[1]


def test_names_and_numbers_are_numbers(tmp_path):
    names = write(tmp_path / "names", ["a", "b", "1"], "mf")
    np.testing.assert_array_equal(numbers_of(names, ["b", 0, "1", np.int64(1)]), [1, 0, 2, 1])
    for unknown in (3, -1, "c"):
        with pytest.raises(UnknownNameError, match=f"{unknown}"):
            numbers_of(names, [unknown])


@given(st.text())
def test_fields_survive(name):
    field = escape(name)
    assert unescape(field) == name and not set(field) & set("\t\n\r")


def test_a_name_with_a_backslash_is_found_without_an_escape(tmp_path):
    names = write(tmp_path / "names", ["C:\\temp", "a\tb", "a\\tb"], "mf")
    assert [index_of_field(names, field) for field in ("C:\\temp", "C:\\\\temp", "a\\tb", "a\\\\tb")] == [0, 0, 1, 2]
