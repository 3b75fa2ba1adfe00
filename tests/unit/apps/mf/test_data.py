"""The readers of ratings: formats, shares, and lines that are none."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.apps._shared.inputs import InputError
from lapse.apps.mf import data
from lapse.apps.mf.data import RatingsError, Source, read_share


def read(text, index=0, count=1):
    return read_share(Source("ratings", text if isinstance(text, bytes) else text.encode()), index, count)


def triples(share):
    if share.row_ids is None:
        return list(zip(share.rows.tolist(), share.columns.tolist(), share.values.tolist()))
    return [
        (share.row_ids[r], share.column_ids[c], v) for r, c, v in zip(share.rows, share.columns, share.values.tolist())
    ]


EXPECTED = [("7", "x y", 3.0), ("8", "z", 1.5)]


@pytest.mark.parametrize(
    "text",
    [
        "7\tx y\t3\t881250949\n8\tz\t1.5\t0\n",
        "7,x y,3\n8,z,1.5\n",
        "7, x y ,3\r\n8,z , 1.5",
        '7,"x y",3,"a,b"\n"8",z,1.5,"c"\n',
        "7;x y;3;0\n8;z;1.5;0\n",
        "7::x y::3::0\n8::z::1.5::0\n",
        "user,item,rating\n7,x y,3\n8,z,1.5\n",
        "\n\n7,x y,3\n\n8,z,1.5\n \n",
        b"\xef\xbb\xbf7,x y,3\n8,z,1.5\n",
        b"\xef\xbb\xbfuser\titem\trating\n7\tx y\t3\n8\tz\t1.5\n",
    ],
)
def test_formats_of_text(text):
    assert triples(read(text)) == EXPECTED


def test_lines_that_end_in_cr_are_lines(tmp_path):
    """Not one line with further fields."""
    (tmp_path / "ratings").write_bytes(b"7,x,3,99\r8,z,1.5,99\r7,z,4,98\r")
    share = read_share(Source(str(tmp_path / "ratings")))
    assert triples(share) == [("7", "x", 3.0), ("8", "z", 1.5), ("7", "z", 4.0)]


def test_white_space():
    assert triples(read("user item rating time\n1 2 3\n 4   5 -0.5  99\n")) == [("1", "2", 3.0), ("4", "5", -0.5)]


def test_lines_of_a_tab_separated_file_that_were_edited_with_spaces():
    text = "1\t2\t3\t99\n12  203\t3\t99\n276\t1090  1  99\n"
    assert triples(read(text)) == [("1", "2", 3.0), ("12", "203", 3.0), ("276", "1090", 1.0)]


MATRIX = """%%MatrixMarket matrix coordinate real general
% a comment
%
4 3 2
1 3 2.5
4 1 -1e2
"""


@pytest.mark.parametrize(
    "text", [MATRIX, MATRIX.replace("MatrixMarket matrix", "matrixmarket MATRIX"), MATRIX.replace("\n", "\r\n")]
)
def test_matrix_market(text):
    share = read(text)
    assert triples(share) == [(0, 2, 2.5), (3, 0, -100.0)]
    assert share.shape == (4, 3)


@pytest.mark.parametrize(
    "text, line, reason",
    [
        ("1 2 3\n1 2\n", 2, "has 2 fields"),
        ("1,2,3\n1,2,x\n", 2, "not a number"),
        ("1,2,3\n1,2,nan\n", 2, "finite"),
        ("1,2,3\n1,2,inf\n", 2, "finite"),
        ("1,2,3\n1,2,1e39\n", 2, "at most"),
        ("1,2,3\n,2,3\n", 2, "empty name"),
        ("1,2\n", 1, "has 2 fields"),
        ("1,2,x\n1,2,3\n", 1, "not a number"),
        (b"1,2,3\n\xff,2,3\n", 2, "not UTF-8"),
        ("user,item,rating\n\n1,2,\n", 3, "not a number"),
        (MATRIX.replace("4 1 -1e2", "5 1 1"), 6, "from 1 to 4"),
        (MATRIX.replace("4 1 -1e2", "4 0 1"), 6, "from 1 to 3"),
        (MATRIX.replace("4 1 -1e2", "4 1"), 6, "not an entry"),
        (MATRIX.replace("4 3 2", "4 3"), 4, "not a size line"),
        (MATRIX.replace("4 3 2", "4 9999999999 2"), 4, "2,147,483,647"),
        (MATRIX.replace("real", "pattern"), 1, "pattern"),
        (MATRIX.replace("general", "symmetric"), 1, "symmetric"),
        ("%%MatrixMarket matrix coordinate real general\n% nothing\n", 3, "before the size line"),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_bad_lines_are_named(text, line, reason, count):
    messages = []
    for index in range(count):
        try:
            read(text, index, count)
        except RatingsError as error:
            messages.append(str(error))
    assert messages
    for message in messages:
        assert message.startswith(f"ratings:{line}: ") and reason in message


def test_as_many_entries_as_declared():
    data.check_entries(Source("m"), 2, 2)
    with pytest.raises(RatingsError, match="3 entries, but the size line declares 2"):
        data.check_entries(Source("m"), 2, 3)


@pytest.mark.parametrize("text", ["", "\n \n", "user,item,rating\n"])
@pytest.mark.parametrize("count", [1, 3])
def test_files_without_ratings(text, count):
    assert all(len(read(text, index, count)) == 0 for index in range(count))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 50])
def test_shares_have_each_rating_once_under_the_same_identity(tmp_path, monkeypatch, compressed, count):
    monkeypatch.setattr(data, "PIECE", 64)
    text = "user item rating\n" + "".join(f"u{i} i{i * 7 % 11} {i}\n" for i in range(200))
    path = tmp_path / "ratings"
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    shares = [read_share(Source(str(path)), index, count) for index in range(count)]
    whole = read(text)
    found = sorted((int(i), t) for s in shares for i, t in zip(s.identities, triples(s)))
    assert found == [(int(i), t) for i, t in zip(whole.identities, triples(whole))]
    if count <= 3:
        assert min(map(len, shares)) > 20


def test_a_damaged_gzip_file(tmp_path):
    path = tmp_path / "ratings.gz"
    path.write_bytes(gzip.compress(b"1 2 3\n" * 1000)[:-20])
    with pytest.raises(InputError, match="ratings.gz: damaged gzip file"):
        read_share(Source(str(path)))


@settings(max_examples=200)
@given(st.binary(max_size=300) | st.text("0123456789 ,\t.\n%-", max_size=200).map(str.encode), st.integers(1, 4))
def test_any_bytes_are_ratings_or_an_error_with_a_line(content, count):
    for prefix in (b"", b"1,2,3\n", b"%%MatrixMarket matrix coordinate real general\n"):
        try:
            shares = [read(prefix + content, index, count) for index in range(count)]
        except RatingsError as error:
            assert int(str(error).split(":")[1]) >= 1
            continue
        assert all(np.isfinite(share.values).all() for share in shares)
        assert sum(map(len, shares)) <= (prefix + content).count(b"\n") + 1


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.text("abc é", min_size=1).map(str.strip).filter(bool),
            st.integers(0, 9).map(str),
            st.floats(-100, 100, width=32),
        ),
        max_size=30,
    ),
    st.sampled_from("\t;,"),
    st.integers(1, 5),
)
def test_what_was_written_is_read(ratings, separator, count):
    text = "".join(f"{u}{separator}{i}{separator}{x!r}\n" for u, i, x in ratings)
    shares = [read(text, index, count) for index in range(count)]
    assert [t for s in shares for t in triples(s)] == ratings
