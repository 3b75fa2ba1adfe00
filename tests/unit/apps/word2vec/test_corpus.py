"""The reader: shares that neither lose nor repeat a word, whatever the file looks like."""

import gzip
import random

import pytest

from lapse.apps._shared.inputs import InputError
from lapse.apps.word2vec import corpus
from lapse.apps.word2vec.corpus import Share, describe_bad_lines


@pytest.fixture
def write(tmp_path):
    """Write a corpus and return its path."""

    def write_file(data, compressed=False):
        path = tmp_path / ("text.gz" if compressed else "text.txt")
        data = data.encode() if isinstance(data, str) else data
        path.write_bytes(gzip.compress(data) if compressed else data)
        return path

    return write_file


def words_of_all_shares(path, count):
    return [w for i in range(count) for s in Share(path, i, count).sentences() for w in s]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 50])
def test_shares_partition_the_sentences(write, compressed, count):
    lines = [f"a{i} b{i} c{i}" for i in range(40)]
    path = write("\n".join(lines), compressed)
    found = [" ".join(s) for i in range(count) for s in Share(path, i, count).sentences()]
    assert sorted(found) == sorted(lines)


@pytest.mark.parametrize("seed", range(20))
def test_no_word_is_lost_or_cut_in_random_files(write, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr(corpus, "LINE_SEARCH", rng.choice([100, 1 << 18]))
    monkeypatch.setattr(corpus, "MAX_PIECE", rng.choice([100, 1 << 20]))
    text = "".join(rng.choices("abc  \t" + "\n" * (seed % 3), k=rng.randrange(3000)))
    path = write(text)
    for count in (1, 2, 7, 100):
        assert words_of_all_shares(path, count) == text.split()


def test_a_corpus_of_one_line_is_shared_out(write):
    path = write(" ".join(str(i) for i in range(200_000)))
    sizes = [sum(map(len, Share(path, i, 4).sentences())) for i in range(4)]
    assert sum(sizes) == 200_000
    assert min(sizes) > 40_000


@pytest.mark.parametrize("compressed", [False, True])
def test_long_sentences_are_split_not_truncated(write, compressed):
    words = [str(i) for i in range(25_001)]
    sentences = list(Share(write(" ".join(words), compressed)).sentences())
    assert max(map(len, sentences)) == corpus.MAX_SENTENCE
    assert [w for s in sentences for w in s] == words


@pytest.mark.parametrize("data", [b"", b"\n\n \n", b"\r\n\t\n"])
@pytest.mark.parametrize("compressed", [False, True])
def test_empty_files_have_no_sentences(write, data, compressed):
    path = write(data, compressed)
    for count in (1, 3):
        assert words_of_all_shares(path, count) == []


def test_windows_line_ends_and_byte_order_mark(write):
    path = write(b"\xef\xbb\xbfone two\r\nthree\r\n")
    assert list(Share(path).sentences()) == [["one", "two"], ["three"]]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_bytes_that_are_not_utf8_are_reported_by_line_and_replaced(write, compressed, count):
    lines = [b"good line %d" % i for i in range(60)]
    lines[3] = b"bad \xff\xfe word"
    lines[41] = b"caf\xe9 au lait"
    path = write(b"\n".join(lines) + b"\n", compressed)
    shares = [Share(path, i, count) for i in range(count)]
    surveys = [share.survey() for share in shares]
    messages = describe_bad_lines("f", surveys, not shares[0].source.is_direct)
    assert [m.split(": ")[0] for m in messages] == ["f:4", "f:42", "f"]
    assert messages[-1].startswith("f: 2 line(s)")
    assert "caf\ufffd" in {word for survey in surveys for word in survey.counts}


def test_warnings_about_bad_bytes_are_bounded(write):
    survey = Share(write(b"\xff\n" * 1000)).survey()
    messages = describe_bad_lines("f", [survey], False)
    assert len(messages) == corpus.MAX_REPORTED + 1
    assert "1000" in messages[-1]


def test_survey_counts_words(write):
    survey = Share(write("a b a\n\nb a\n")).survey()
    assert survey.counts == {"a": 3, "b": 2}
    assert (survey.words, survey.lines) == (5, 3)


def test_a_damaged_gzip_file_is_named(write):
    path = write("one two three\n" * 1000, compressed=True)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="text.gz: damaged"):
        list(Share(path).sentences())


def test_missing_file_and_missing_share(tmp_path):
    with pytest.raises(FileNotFoundError):
        Share(tmp_path / "none")
    with pytest.raises(ValueError, match="share 2 of 2"):
        Share(tmp_path / "none", 2, 2)
