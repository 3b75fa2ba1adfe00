"""Trained word vectors answer: nearest words, analogies, and tests of them."""

import io
import sys

import numpy as np
import pytest

import launch
from lapse.apps import word2vec
from lapse.apps._shared.job import AppError
from lapse.apps.word2vec import __main__ as command
from lapse.apps.word2vec import evaluation, model_io
from lapse.apps.word2vec.query import parse

#: Two directions: gender, and royalty; and other words.
WORDS = {"man": (1, 0, 0), "woman": (-1, 0, 0.1), "king": (1, 1, 0), "queen": (-1, 1, 0.1), "naïve": (0, 0.1, 5),
         "+": (0, 0.2, 4), '"': (0, -1, 0)}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    vectors = np.array(list(WORDS.values()), np.float32)
    np.save(tmp_path / model_io.MAPPED, vectors)
    model_io.write_counts(tmp_path / model_io.COUNTS, list(WORDS), np.arange(len(WORDS), 0, -1))
    model_io.write_vectors(tmp_path / "vectors.txt", list(WORDS), [vectors], 3)
    model_io.write_vectors(tmp_path / "vectors.bin", list(WORDS), [vectors], 3, binary=True)
    return tmp_path


@pytest.fixture(params=["", "vectors.txt", "vectors.bin"])
def model(folder, request):
    return word2vec.Model.load(folder / request.param)


def ask(monkeypatch, capsys, *argv, stdin=""):
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    command.main(["query", *map(str, argv)])
    return capsys.readouterr()


def test_analogies(model):
    ids, scores, words = model.nearest(["king", "woman"], ["man"], k=2)
    assert words[0] == "queen" and ids[0] == 3 and ids.dtype == np.int64 and scores.dtype == np.float32
    assert not {"king", "woman", "man"} & set(words)


def test_the_nearest_words_have_the_largest_cosines(model):
    vectors = np.array(list(WORDS.values()))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for i, word in enumerate(WORDS):
        cosines = unit @ unit[i]
        cosines[i] = -np.inf
        found = model.nearest(word, k=3)
        np.testing.assert_array_equal(found.ids, np.argsort(-cosines, kind="stable")[:3])
        np.testing.assert_allclose(found.scores, cosines[found.ids], atol=1e-6)
        assert model.similarity(word, i) == pytest.approx(1)
        np.testing.assert_array_equal(model.vector(word), np.float32(vectors[i]))


@pytest.mark.parametrize("word", ["kings", 7, -1])
def test_an_unknown_word_is_an_error(model, word):
    with pytest.raises(LookupError, match=str(word)):
        model.nearest(word)


@pytest.mark.parametrize("text, plus, minus", [
    ("king", ["king"], []), ("king - man + woman", ["king", "woman"], ["man"]), ("-", ["-"], []),
    ("a b", ["a", "b"], []), ("- a + b", ["b"], ["a"]), ("\\+ - \\-", ["+"], ["-"]), ("a + +", ["a", "+"], []),
])  # fmt: skip
def test_questions(text, plus, minus):
    assert parse(text) == (plus, minus)


@pytest.mark.parametrize("text", ["king -", "- man", "+ - "])
def test_what_is_no_question(text):
    if text == "+ - ":
        text = "- -"  # subtracts the word "-" from nothing
    with pytest.raises(AppError, match="no sum of words"):
        parse(text)


def test_one_question_on_the_command_line(folder, monkeypatch, capsys):
    shown = ask(monkeypatch, capsys, folder, "king", "-", "man", "+", "woman", "-k", "1")
    word, score = shown.out.rstrip("\n").split("\t")
    assert word == "queen" and float(score) > 0.9
    assert ask(monkeypatch, capsys, folder, "-k", "1", "naïve").out.startswith("+\t")


def test_questions_from_standard_input(folder, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="1"):
        ask(monkeypatch, capsys, folder, "-k", "1", stdin="naïve\nquen\n\n\\+\n")
    shown = capsys.readouterr()
    assert [line.split("\t")[0] for line in shown.out.splitlines()] == ["+", "", "naïve", ""]
    assert shown.err == "error: the model has no word 'quen'; did you mean 'queen'?\n"


def test_analogies_of_a_file_by_section(folder, tmp_path, monkeypatch, capsys):
    questions = tmp_path / "questions.txt"
    questions.write_text(
        ": royal\nman king woman queen\nMan King Woman Queen\nman king woman woman\n: other\na b c d\n"
    )
    result = evaluation.evaluate(word2vec.Model.load(folder), questions)
    assert [vars(each) for each in result.sections] == [
        dict(name="royal", right=2, known=3, total=3), dict(name="other", right=0, known=0, total=1)]  # fmt: skip
    shown = ask(monkeypatch, capsys, folder, "--evaluate", questions).out
    assert (
        shown
        == "royal\t66.7%\t2 of 3 (0 unknown)\nother\tnone known\t0 of 0 (1 unknown)\nall\t66.7%\t2 of 3 (1 unknown)\n"
    )


def test_word_pairs_of_a_file(folder, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("Word 1,Word 2,Human (mean)\nman,king,7.5\nman,woman,1\nking,queen,3\nman,tiger,2\n")
    result = evaluation.evaluate(word2vec.Model.load(folder), pairs)
    assert (result.pairs, result.known_pairs) == (4, 3)
    assert result.spearman == pytest.approx(1)


def test_the_rank_correlation_with_equal_values():
    # of the ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4, whose deviations from 2.5 have the sums of squares 4.5 and 5
    assert evaluation.spearman(np.array([1, 2, 2, 3]), np.array([1, 3, 2, 9])) == pytest.approx(4.5 / 22.5**0.5)
    assert evaluation.spearman(np.ones(3), np.arange(3)) is None


@pytest.mark.parametrize("line", ["a b", "a b c", "a b c d e"])
def test_other_lines_are_errors_that_name_them(tmp_path, line):
    (tmp_path / "file").write_text(f"a b c d\n{line}\n")
    with pytest.raises(AppError, match="file:2: "):
        evaluation.read(tmp_path / "file")


@pytest.mark.parametrize("name, content, message", [
    (model_io.MAPPED, None, r"vectors.npy is missing: the model was written by an older version"),
    (model_io.MAPPED, b"text", r"vectors.npy: cannot be read as an array"),
    (model_io.COUNTS, None, r"vocab.txt is missing"),
    (model_io.COUNTS, b"a 1\n", r"vocab.txt: has 1 lines, but there are 7 vectors"),
])  # fmt: skip
def test_a_bad_folder_is_an_error_that_names_the_file(folder, name, content, message, monkeypatch, capsys):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(AppError, match=message):
        word2vec.Model.load(folder)
    with pytest.raises(SystemExit, match="1"):
        ask(monkeypatch, capsys, folder, "king")
    assert capsys.readouterr().err.startswith(f"error: {folder}")


def test_the_help_names_the_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["query", "--help"])
    assert "python -m lapse.apps.word2vec query" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    assert "python -m lapse.apps.word2vec query" in capsys.readouterr().out


def test_no_mpi_is_loaded(folder):
    code = (
        "import sys; from lapse.apps.word2vec.__main__ import main; main(sys.argv[1:]); "
        "print([name for name in sys.modules if name.startswith('mpi4py')])"
    )
    command = [sys.executable, "-c", code, "query", folder, "naïve"]
    job = launch.run(command, env={"LC_ALL": "C"}).check()
    assert job.stdout.splitlines()[-1] == "[]" and "king" in job.stdout
