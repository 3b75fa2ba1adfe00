"""Vectors survive writing and reading, in both formats; other programs read them too."""

import numpy as np
import pytest

from lapse.apps.word2vec import model_io
from lapse.base.word_vectors import iterate_vectors, read_vectors

WORDS = ["the", "naïve", "\ufffd", "a-b"]


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32) * 1e-3


@pytest.mark.parametrize("binary", [False, True])
def test_what_is_written_is_read_back_exactly(tmp_path, vectors, binary):
    path = tmp_path / model_io.file_name("vectors", binary)
    model_io.write_vectors(path, WORDS, [vectors[:3], vectors[3:]], 7, binary)
    words, found = read_vectors(path)
    assert words == WORDS
    np.testing.assert_array_equal(found, vectors)
    parts = list(iterate_vectors(path, 3))
    assert [len(some) for some, _ in parts] == [3, 1] and parts[1][0] == WORDS[3:]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), vectors)


@pytest.mark.parametrize("binary", [False, True])
def test_gensim_reads_it(tmp_path, vectors, binary):
    models = pytest.importorskip("gensim.models")
    path = tmp_path / model_io.file_name("vectors", binary)
    model_io.write_vectors(path, WORDS, [vectors], 7, binary)
    found = models.KeyedVectors.load_word2vec_format(str(path), binary=binary)
    assert found.index_to_key == WORDS
    np.testing.assert_array_equal(found.vectors, vectors)


@pytest.mark.parametrize("binary", [False, True])
def test_a_failed_write_leaves_the_older_file(tmp_path, vectors, binary):
    path = tmp_path / model_io.file_name("vectors", binary)
    path.write_text("older")
    with pytest.raises(ValueError, match="3 vectors for 4 words"):
        model_io.write_vectors(path, WORDS, [vectors[:3]], 7, binary)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("binary", [False, True])
def test_a_truncated_file_is_an_error(tmp_path, vectors, binary):
    path = tmp_path / model_io.file_name("vectors", binary)
    model_io.write_vectors(path, WORDS, [vectors], 7, binary)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="vectors"):
        read_vectors(path)


def test_counts_are_read_back(tmp_path):
    path = tmp_path / "vocab.txt"
    model_io.write_counts(path, WORDS, np.array([4, 3, 2, 1]))
    assert model_io.read_counts(path) == dict(zip(WORDS, [4, 3, 2, 1], strict=True))


@pytest.mark.parametrize("header", [b"9999999999 9999999999", b"-1 5", b"x 5", b"5", b"3 100", b"9" * 30 + b" 5"])
@pytest.mark.parametrize("suffix", ["bin", "txt"])
def test_a_header_that_does_not_fit_the_file_takes_no_memory(tmp_path, header, suffix):
    path = tmp_path / f"vectors.{suffix}"
    path.write_bytes(header + b"\na 1 2 3 4 5\n")
    with pytest.raises(ValueError, match=path.name):
        read_vectors(path)
