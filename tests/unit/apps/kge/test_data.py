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
    assert named(dataset, "train") == [("a", "r", "b"), ("  c", "r", " b ")]
    assert any("spaces around them" in doubt for doubt in data.doubts(dataset))


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


# Other formats, headers and columns ----------------------------------------------------------------

TRIPLE_LINES = "".join(f"e{i % 40}\tr{i % 3}\te{i * 7 % 40}\n" for i in range(200))


def write_files(folder, **texts):
    for name, text in {"valid.txt": "", "test.txt": "", **texts}.items():
        if text is not None:
            (folder / name).write_bytes(text.encode())
    return folder


@pytest.mark.parametrize(
    "header, order",
    [
        ("subject\trelation\tobject", (0, 1, 2)),
        ("head\trelation\ttail", (0, 1, 2)),
        ("Head\tTail\tRelation", (0, 2, 1)),
        ("source,target,label", (0, 2, 1)),
        ('"predicate","subject","object"', (1, 0, 2)),
    ],
)
def test_a_header_is_no_triple_and_says_the_order(tmp_path, header, order):
    separator = "\t" if "\t" in header else ","
    expected = [("a", "likes", "b"), ("b", "likes", "c c")]
    lines = [separator.join(triple[order[i]] for i in range(3)) for triple in expected]
    name = "train.txt" if separator == "\t" else "train.csv"
    dataset = data.read(write_files(tmp_path, **{name: "\n".join([header, *lines])}))
    assert named(dataset, "train") == expected
    assert any("the first line is a header" in note for note in dataset.notes)


def test_a_header_of_other_names_is_doubted(tmp_path):
    header = "von\tbeziehung\tnach\n"
    dataset = data.read(
        write_files(tmp_path, **{"train.txt": header + TRIPLE_LINES, "test.txt": header + "e1\tr1\te2\n"})
    )
    assert any("'von beziehung nach', has names that occur nowhere else" in doubt for doubt in data.doubts(dataset))
    read = data.read(tmp_path, "von,beziehung,nach")
    assert len(read.train) == len(dataset.train) - 1 and len(read.test) == 1
    assert not [doubt for doubt in data.doubts(read) if "nowhere else" in doubt]


OPENKE = {
    "train2id.txt": "3\n0 1 0\n2 0 1\n1 2 0\n",
    "valid2id.txt": "0\n",
    "test2id.txt": "1\n0\t2\t1\n",
    "entity2id.txt": "3\nnew york\t0\nb\t1\nc\t2\n",
    "relation2id.txt": "2\n/in\t0\nlikes\t1\n",
    "valid.txt": None,
    "test.txt": None,
}


def test_the_format_of_openke(tmp_path):
    dataset = data.read(write_files(tmp_path, **OPENKE))
    assert named(dataset, "train") == [("new york", "/in", "b"), ("c", "likes", "new york"), ("b", "/in", "c")]
    assert named(dataset, "test") == [("new york", "likes", "c")]
    assert any("subject, object and relation" in note for note in dataset.notes)
    (tmp_path / "train2id.txt").write_text("4\n0 1 0\n2 0 1\n1 2 0\n")
    with pytest.raises(AppError, match=r"train2id\.txt: 3 triples, but its first line declares 4"):
        data.read(tmp_path)


def test_files_of_openke_under_another_name_are_refused_with_the_way_out(tmp_path):
    write_files(tmp_path, **{"train.txt": OPENKE["train2id.txt"]})
    with pytest.raises(AppError, match=r"train\.txt:1: .*rename it to train2id\.txt, or say so by --columns 1,3,2"):
        data.read(tmp_path)
    assert named(data.read(tmp_path, "1,3,2"), "train") == [("0", "0", "1"), ("2", "1", "0"), ("1", "0", "2")]


def test_columns_are_chosen_among_more_than_three(tmp_path):
    write_files(tmp_path, **{"train.txt": "1\ta\tb\tlikes\n2\tb\tc\tlikes\n"})
    with pytest.raises(AppError, match=r"train\.txt:1: .*found 4; of more columns, --columns chooses"):
        data.read(tmp_path)
    assert named(data.read(tmp_path, "2,4,3"), "train") == [("a", "likes", "b"), ("b", "likes", "c")]
    with pytest.raises(AppError, match=r"train\.txt:1: --columns: no column 'x'"):
        data.read(tmp_path, "x,4,3")
    with pytest.raises(AppError, match=r"train\.txt:1: --columns: no column '5'"):
        data.read(tmp_path, "5,4,3")


def test_the_order_of_columns_is_doubted(tmp_path):
    lines = "".join(f"e{i % 40}\te{i * 7 % 40}\tr{i % 3}\n" for i in range(200))
    dataset = data.read(write_files(tmp_path, **{"train.txt": lines}))
    assert any("--columns 1,3,2" in doubt for doubt in data.doubts(dataset))
    assert not any("order" in doubt for doubt in data.doubts(data.read(tmp_path, "1,3,2")))


def test_repeated_triples_are_said(tmp_path):
    lines = TRIPLE_LINES.splitlines(keepends=True)
    dataset = data.read(
        write_files(tmp_path, **{"train.txt": TRIPLE_LINES, "test.txt": "".join(lines[3:5]) + "e1\tr0\te0\n"})
    )
    assert any("2 of 3 triples of test are in train, too" in doubt for doubt in data.doubts(dataset))
    assert not any("of valid" in doubt for doubt in data.doubts(dataset) if "in train, too" in doubt)
    twice = data.doubts(data.read(write_files(tmp_path, **{"train.txt": TRIPLE_LINES + lines[0]})))
    assert any("triples occur more than once in train" in doubt for doubt in twice)
    wide = np.array([[2**31 - 1, 2**31 - 1, 2**31 - 1], [1, 2, 3], [1, 2, 3]])
    first, second, third = data._numbers(wide).tolist()
    assert second == third != first


def test_sizes_are_asked_before_anything_of_that_size_is_made(tmp_path):
    asked = []

    def refuse(entities, relations):
        asked.append((entities, relations))
        raise AppError("too many")

    write_files(
        tmp_path,
        **{"train.del": "0\t0\t2000000000\n", "valid.del": "", "test.del": "", "valid.txt": None, "test.txt": None},
    )
    for path in ("valid.txt", "test.txt"):
        (tmp_path / path).unlink(missing_ok=True)
    with pytest.raises(AppError, match="too many"):
        data.read(tmp_path, allow=refuse)
    (tmp_path / "train.del").write_text("0\t0\t1\n")
    (tmp_path / "entity_ids.del").write_text("2000000000\tx\n")
    with pytest.raises(AppError, match="too many"):
        data.read(tmp_path, allow=lambda e, r: refuse(e, r) if e > 2 else None)
    assert asked == [(2_000_000_001, 1), (2_000_000_001, 1)]
    (tmp_path / "entity_ids.del").write_text("1\tx\n1\ty\n")
    with pytest.raises(AppError, match=r"entity_ids\.del:2: id 1 has the names 'x' and 'y'"):
        data.read(tmp_path)


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
    for damaged in (packed[:-9], packed[:15] + b"xxxx" + packed[19:]):
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
