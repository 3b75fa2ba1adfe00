"""Encoding: the numbers that training sees are the words of the text, kept in memory or read again."""

from collections import Counter

import numpy as np
import pytest
from lapse.apps.word2vec._encoder import Encoder

from lapse.apps.word2vec import corpus, text
from lapse.apps.word2vec.corpus import Share
from lapse.apps.word2vec.survey import survey
from lapse.apps.word2vec.vocabulary import Selection

LINES = ["a b a c", "", "  caf\u00e9 a\u2003b ", "\x1cc\x1fa\x0b", "d " * 25, "\ufeffa", "e"]


class OneRank:
    """As much of a communicator as a survey on one rank needs."""

    rank, size = 0, 1

    def allgather(self, value):
        return [value]

    def bcast(self, value):
        return value

    reduce = allreduce = lambda self, value, op=None: value


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_SENTENCE", 10)
    file = tmp_path / "text.txt"
    file.write_text("\n".join(LINES * 30), encoding="utf-8")
    return str(file)


def words_of(blocks, words):
    found = []
    for block in blocks:
        starts = [0, *block.ends[:-1]]
        found += [[words[i] for i in block.words[start:end]] for start, end in zip(starts, block.ends, strict=True)]
    return found


def test_the_encoder_cuts_words_as_python_does(path):
    encoder = Encoder()
    for _ in Share(path).feed(encoder):
        pass
    words, counts = encoder.words(), encoder.counts()
    ids, ends = encoder.take()
    expected = list(Share(path).sentences())
    assert [words[i] for i in ids] == [word for sentence in expected for word in sentence]
    assert np.diff(ends, prepend=0).tolist() == [len(sentence) for sentence in expected]
    assert dict(zip(words, counts.tolist(), strict=True)) == Counter(word for sentence in expected for word in sentence)


def test_many_words_are_told_apart():
    encoder = Encoder()
    encoder.add_text(" ".join(f"w{i}" for i in range(20_000)).encode() + b"\n" + b"w7 w19999", 10**6)
    ids, ends = encoder.take()
    assert ids.tolist() == [*range(20_000), 7, 19_999]
    assert ends.tolist() == [20_000, 20_002]


def test_only_known_words_have_numbers():
    encoder = Encoder(["b", "caf\u00e9"])
    encoder.add_text(b"a b\nb", 10)
    encoder.add_sentence(["caf\u00e9", "c"])
    assert encoder.take()[0].tolist() == [-1, 0, 0, 1, -1]


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_kept_and_what_is_read_again_are_the_same(path, monkeypatch, workers):
    monkeypatch.setattr(text, "BLOCK_WORDS", 40)
    kept = survey(OneRank(), [path], workers, Selection(20))
    monkeypatch.setattr(corpus, "MAX_KEPT_WORDS", 0)
    again = survey(OneRank(), [path], workers, Selection(20))
    assert len(kept.kept) == workers and not again.kept
    assert kept.share_words == again.share_words and sum(kept.share_words) == kept.words
    for worker in range(workers):
        expected = [
            [word for word in sentence if word in kept.vocabulary.index]
            for sentence in Share(path, worker, workers).sentences()
        ]
        for one in (kept, again):
            blocks = list(one.blocks(worker))
            assert words_of(blocks, one.vocabulary.words) == expected
            assert sum(block.read for block in blocks) == one.share_words[worker]
        assert all(block.read < 40 + 10 for block in kept.blocks(worker))


@pytest.mark.parametrize(
    "content, min_count, doubt",
    [
        ("a a a\n" * 9, 1, "only one word is trained, 'a'"),
        ("a\nb\n" * 9, 1, "no sentence has two words"),
        (f"{'x' * 50} {'y' * 70}\n" * 9, 1, "words have 60 characters"),
        ("a b\n" * 9 + " ".join(f"w{i}" for i in range(99)), 2, "--min-count leaves 15.4% of the words"),
        (b"caf\xe9 noir\n" * 9, 1, "most lines are not UTF-8"),
        ('{"text": "a b"}\n' * 9, 1, "looks like JSON"),
        ("<!DOCTYPE html>\n<p>a b</p>\n", 1, "looks like HTML"),
        (" ".join("ab" * 40), 1, "all words are in one line"),
    ],
)
def test_what_looks_wrong_is_said_in_a_line(tmp_path, monkeypatch, caplog, content, min_count, doubt):
    monkeypatch.setattr(corpus, "MAX_SENTENCE", 60)
    path = tmp_path / "text.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    survey(OneRank(), [path], 2, Selection(min_count))
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    said = [message for message in said if "were replaced" not in message and "in total" not in message]
    assert len(said) == 1 and doubt in said[0] and said[0].startswith(str(path)), said
