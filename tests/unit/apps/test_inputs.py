"""What the applications make of files: read right, or an error that names the file and the way out. Never a guess."""

import contextlib
import os
import pickle
import random
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.apps._shared import inputs
from lapse.apps._shared.inputs import InputError
from lapse.apps._shared.job import AppError
from lapse.apps.kge import data as kge_data
from lapse.apps.mf import data as mf_data
from lapse.apps.word2vec.corpus import Share
from odd_files import DAMAGED, READABLE, REFUSED

LINES = [f"u{i % 7}\tcaf\u00e9 {i % 5}\t{i % 4}" for i in range(200)]
TEXT = "".join(f"{line}\n" for line in LINES).encode()
NAMES = ("text", "text.txt", "text.gz", "text.zip")


def read_as_text(path):
    return [" ".join(words) for part in range(3) for words in Share(path, part, 3).sentences()]


def read_as_ratings(path):
    shares = [mf_data.read_share(mf_data.Source(str(path)), part, 3) for part in range(3)]
    return [
        f"{s.row_ids[r]}\t{s.column_ids[c]}\t{v:g}"
        for s in shares
        for r, c, v in zip(s.rows, s.columns, s.values.tolist())
    ]


def read_as_triples(path):
    folder = path.parent
    for split in ("valid", "test"):
        (folder / f"{split}.txt").write_bytes(b"")
    for old in folder.glob("train*"):
        old.unlink()
    os.link(path, folder / "train.txt")
    found = kge_data.read(folder)
    return [f"{found.entities[s]}\t{found.relations[r]}\t{found.entities[o]}" for s, r, o in found.train]


READERS = {"word2vec": read_as_text, "mf": read_as_ratings, "kge": read_as_triples}


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("app", READERS)
def test_what_is_text_is_read_whatever_its_name(tmp_path, app, kind):
    expected = [" ".join(line.split()) for line in LINES] if app == "word2vec" else LINES
    path = tmp_path / random.Random(kind).choice(NAMES)
    path.write_bytes(READABLE[kind](TEXT))
    assert sorted(READERS[app](path)) == sorted(expected)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("app", READERS)
def test_what_is_no_text_is_refused_by_name_with_the_way_out(tmp_path, app, kind):
    make, words = REFUSED[kind]
    path = tmp_path / "text.txt"
    path.write_bytes(make(TEXT))
    with pytest.raises(AppError) as caught:
        READERS[app](path)
    message = str(caught.value)
    assert message.startswith(str(tmp_path)) and all(word in message for word in words), message


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("app", READERS)
def test_damaged_files_are_named(tmp_path, app, kind):
    rng = random.Random(0)
    text = "".join(f"u{rng.randrange(10**6)}\ti{rng.randrange(10**6)}\t{i % 4}\n" for i in range(4000)).encode()
    path = tmp_path / "text.txt"
    path.write_bytes(DAMAGED[kind](text))
    with pytest.raises(AppError, match=f"damaged {kind.partition(',')[0]} file"):
        READERS[app](path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path, "is a folder"), ("/dev/null", "is a device"), (tmp_path / "pipe", "is a pipe")):
        with pytest.raises(InputError, match=words):
            inputs.recognize(path)
    with pytest.raises(FileNotFoundError):
        inputs.recognize(tmp_path / "none")


def test_loading_executes_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    for name, content in (("p", pickle.dumps(Bomb())), ("p0", pickle.dumps(Bomb(), 0))):
        path = tmp_path / name
        path.write_bytes(content)
        for reader in READERS.values():
            with contextlib.suppress(AppError):
                reader(path)
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    share = Share(path)
    path.write_bytes(TEXT + TEXT)
    with pytest.raises(InputError, match=r"must not change"):
        list(share.sentences())


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_characters_that_are_cut_by_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(inputs, "BLOCK", block)
    for encoding in ("utf-16", "utf-32"):
        path = tmp_path / encoding
        path.write_bytes("a\U0001f600 \u00e9\r\n".encode(encoding))
        with inputs.recognize(path).open() as file:
            assert file.read().decode() == "a\U0001f600 \u00e9\r\n"


# Fuzzing ------------------------------------------------------------------------------------------


@st.composite
def odd_contents(draw):
    """Files of all kinds, cut, with other bits, or with something inserted."""
    makers = [*READABLE.values(), *(make for make, _ in REFUSED.values())]
    text = draw(st.sampled_from([TEXT[:200], b"a b 1\nc d 2\n", b"0\t1\t2\n", b"user,item,rating\n1,2,3\n", b""]))
    with contextlib.suppress(UnicodeDecodeError):
        text = draw(st.sampled_from(makers))(text)
    content = bytearray(text)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        kind = draw(st.sampled_from("xid"))
        if kind == "x" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "i":
            content[at:at] = draw(
                st.sampled_from([b"\n", b"\r", b"\t", b",", b'"', b"\0", b"\xff", b"::", b"9" * 40, b"%%"])
            )
        else:
            del content[at : at + draw(st.integers(1, 8))]
    return bytes(content)


@settings(max_examples=150, deadline=None)
@given(odd_contents() | st.binary(max_size=200), st.sampled_from(sorted(READERS)))
def test_any_file_is_read_or_refused(content, app):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text.txt")
        path.write_bytes(content)
        try:
            READERS[app](path)
        except AppError as error:
            assert re.match(re.escape(folder), str(error)) and len(str(error)) < 2000
