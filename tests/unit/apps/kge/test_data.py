"""Triples in files: formats, names and ids, errors with file and line."""

import gzip
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.apps._shared.job import AppError
from lapse.apps.kge import data

SPLITS = {
    "train": [("a", "likes", "b"), ("b", "likes", "c c"), ("a", "knows", "b")],
    "valid": [("c c", "likes", "a")],
    "test": [("a", "knows", "new")],
}


def write(folder, splits, suffix=".txt", encode=lambda triple: "\t".join(triple)):
    folder.mkdir(exist_ok=True)
    for name, triples in splits.items():
        text = "".join(encode(triple) + "\n" for triple in triples).encode()
        (folder / (name + suffix)).write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    return folder


def named(dataset, split):
    return [(dataset.entities[s], dataset.relations[r], dataset.entities[o]) for s, r, o in getattr(dataset, split)]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_names(tmp_path, suffix):
    dataset = data.read(write(tmp_path, SPLITS, suffix))
    assert dataset.entities == ["a", "b", "c c", "new"]
    assert dataset.relations == ["likes", "knows"]
    for split, triples in SPLITS.items():
        assert named(dataset, split) == triples
    assert dataset.unseen() == 1
    assert dataset.train.dtype == np.int64 and len(dataset.everything()) == 5


@pytest.mark.parametrize("suffix", [".del", ".del.gz"])
def test_ids_are_their_own_names_unless_names_stand_beside(tmp_path, suffix):
    ids = {"train": [("0", "1", "2"), ("2", "0", "4")], "valid": [("0", "0", "0")], "test": []}
    folder = write(tmp_path, ids, suffix)
    dataset = data.read(folder)
    assert dataset.entities == list("01234") and dataset.relations == ["0", "1"]
    assert dataset.train.tolist() == [[0, 1, 2], [2, 0, 4]] and dataset.test.shape == (0, 3)
    (folder / "entity_ids.del").write_text("1\tone\n6\tsix x\n")
    assert data.read(folder).entities == ["0", "one", "2", "3", "4", "5", "six x"]


def test_columns_between_spaces_blank_lines_and_other_line_ends(tmp_path):
    write(tmp_path, SPLITS)
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa r  b\r\n\r\n  c\tr\t b \n\n")
    dataset = data.read(tmp_path)
    assert named(dataset, "train") == [("a", "r", "b"), ("c", "r", "b")]


BAD_LINES = ["a b", "a\tb", "a\tb\tc\td", "\tb\tc", "word"]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_line_that_is_not_a_triple(tmp_path, line):
    write(tmp_path, SPLITS)
    with open(tmp_path / "valid.txt", "a") as file:
        file.write(line + "\n")
    with pytest.raises(AppError, match=r"valid\.txt:2: .*not a triple"):
        data.read(tmp_path)


@pytest.mark.parametrize("number", ["-1", "x", "1.5", "1_0", "²", str(2**31), "9" * 5000])
def test_what_is_no_id(tmp_path, number):
    write(tmp_path, {"train": [("0", "0", "0"), ("0", "0", number)], "valid": [], "test": []}, ".del")
    with pytest.raises(AppError, match=r"train\.del:2: .*id") as caught:
        data.read(tmp_path)
    assert len(str(caught.value)) < 6000


def test_files_that_are_missing_or_there_twice_or_mixed(tmp_path):
    with pytest.raises(AppError, match="not a folder"):
        data.read(tmp_path / "nowhere")
    write(tmp_path, {"train": SPLITS["train"], "valid": []})
    with pytest.raises(AppError, match="test.txt"):
        data.read(tmp_path)
    write(tmp_path, {"test": []}, ".del")
    with pytest.raises(AppError, match="one kind"):
        data.read(tmp_path)
    write(tmp_path, {"test": []})
    with pytest.raises(AppError, match="several"):
        data.read(tmp_path)


def test_no_triples(tmp_path):
    write(tmp_path, {"train": [], "valid": [], "test": []})
    with pytest.raises(AppError, match="no triples"):
        data.read(tmp_path)


def test_bytes_that_are_not_utf8_and_damaged_gzip(tmp_path):
    write(tmp_path, SPLITS)
    (tmp_path / "train.txt").write_bytes(b"a\tr\tb\nx\tr\t\xff\n")
    with pytest.raises(AppError, match=r"train\.txt:2: not UTF-8"):
        data.read(tmp_path)
    (tmp_path / "train.txt").unlink()
    packed = gzip.compress(b"a\tr\tb\n" * 1000)
    for damaged in (packed[:-9], packed[:15] + b"xxxx" + packed[19:], b"plain"):
        (tmp_path / "train.txt.gz").write_bytes(damaged)
        with pytest.raises(AppError, match=r"train\.txt\.gz: damaged"):
            data.read(tmp_path)


@given(st.binary(max_size=200), st.sampled_from([".txt", ".del", ".txt.gz"]))
def test_any_bytes_are_triples_or_an_error_with_the_file(content, suffix):
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), {"valid": [], "test": []}, suffix)
        (folder / ("train" + suffix)).write_bytes(content)
        try:
            dataset = data.read(folder)
        except AppError as error:
            assert "train" + suffix in str(error)
        except MemoryError:
            pytest.fail("an id must not take memory that nobody has")
        else:
            assert dataset.train[:, [0, 2]].max() < len(dataset.entities)


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Z")), min_size=1, max_size=5).filter(
    lambda name: not name.startswith("\ufeff")
)


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=10))
def test_what_is_written_is_read(triples):
    with tempfile.TemporaryDirectory() as name:
        dataset = data.read(write(Path(name), {"train": triples, "valid": [], "test": triples}))
        assert named(dataset, "train") == named(dataset, "test") == triples


@given(st.lists(st.tuples(*[st.integers(0, n) for n in (4, 2, 4)]), min_size=1, max_size=30))
def test_known_answers(triples):
    array = np.array(triples, dtype=np.int64)
    known = data.Known(array, 3)
    for column in (0, 2):
        rows, entities = known.answers(array, column)
        found = {(int(row), int(entity)) for row, entity in zip(rows, entities, strict=True)}
        assert len(found) == len(rows)  # also where a triple is given twice
        expected = {
            (i, other[column])
            for i, triple in enumerate(triples)
            for other in triples
            if other[1] == triple[1] and other[2 - column] == triple[2 - column] and other[column] != triple[column]
        }
        assert found == expected
