"""A corpus of several files: which are found, and that each line is read once, by one worker."""

import gzip

import pytest

from lapse.apps._shared import inputs
from lapse.apps._shared.job import AppError
from lapse.apps.word2vec import files


@pytest.fixture
def folder(tmp_path):
    """Three plain files, one of them empty and one in a folder below, and some that are compressed."""
    for name in ("b.txt", "a/c.txt", "a/.hidden", ".git/d", "empty"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines = [] if name == "empty" else [f"{name} {i}" for i in range(30)]
        path.write_text("\n".join(lines))  # without an end of the last line
    for i in range(4):
        (tmp_path / f"{i}.gz").write_bytes(gzip.compress(f"p{i} x\np{i} y\np{i} z\n".encode()))
    return tmp_path


def test_names_are_files_folders_and_patterns(folder):
    def find(*names):
        return [path.replace(str(folder), "") for path in files.find(str(name) for name in names)]

    plain = ["/a/c.txt", "/b.txt", "/empty"]
    assert find(folder) == ["/0.gz", "/1.gz", "/2.gz", "/3.gz", *plain]
    assert find(folder / "[01].gz") == ["/0.gz", "/1.gz"]
    assert find(folder / "**/*.txt") == plain[:2]
    assert find(folder / "b.txt", folder / "*.txt", "-") == ["/b.txt", "-"]
    (folder / "[01].gz").write_text("a file of this name is no pattern")
    assert find(folder / "[01].gz") == ["/[01].gz"]
    assert find(folder / "none.txt") == ["/none.txt"]  # an error when it is opened
    for wrong, words in ((folder / "*.zip", "matches no file"), (folder / "new", "folder without files")):
        (folder / "new").mkdir(exist_ok=True)
        with pytest.raises(AppError, match=words):
            find(wrong)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 50])
def test_each_line_is_read_once(folder, count):
    sources = [inputs.recognize(path) for path in files.find([str(folder)])]
    shares = files.divide(sources, count)
    found = [(file, " ".join(words)) for share in shares for file, piece in share for words in piece.sentences()]
    expected = [(file, " ".join(line.split())) for file, source in enumerate(sources) for line in lines_of(source)]
    assert sorted(found) == sorted(expected) and len(expected) == 4 * 3 + 2 * 30
    if count <= 4:  # whole compressed files, and an equal part of the others
        packed = [sum(not piece.source.is_direct for _, piece in share) for share in shares]
        assert sum(packed) == 4 if count != 3 else sum(packed) == 12
        plain = [sum(1 for _, piece in share if piece.source.is_direct for _ in piece.sentences()) for share in shares]
        assert max(plain) - min(plain) <= 5


def lines_of(source):
    with source.open() as file:
        return file.read().decode().splitlines()
