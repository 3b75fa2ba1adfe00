"""A trained model answers as the kernels of training score, and says what it does not know."""

import io
import json
import sys

import lapse.apps.kge._ranking as _ranking
import numpy as np
import pytest

import launch
from lapse.apps import kge
from lapse.apps._shared import top
from lapse.apps._shared.job import AppError
from lapse.apps.kge import __main__ as command
from lapse.apps.kge import predict

ENTITIES = ["a", "New York", "tab\there", 'quote"d', "?", "C:\\temp", "ü", "b"]
RELATIONS = ["likes", "is in", "r\t1"]
DIM = 6
MODELS = [("complex", 2, False), ("complex", 2, True), ("distmult", 2, False), ("rescal", 2, False),
          ("rescal", 2, True), ("transe", 1, False), ("transe", 2, False), ("transe", 2, True)]  # fmt: skip


def write(folder, name="complex", norm=2, reciprocal=False, **others):
    rng = np.random.default_rng(1)
    shape = (len(RELATIONS), DIM, DIM) if name == "rescal" else (len(RELATIONS), DIM)
    arrays = {"entities": rng.standard_normal((len(ENTITIES), DIM)), "relations": rng.standard_normal(shape)}
    if reciprocal:
        arrays["inverse_relations"] = rng.standard_normal(shape)
    arrays = {stem: array.astype(np.float32) for stem, array in arrays.items()}
    for stem, array in arrays.items():
        np.save(folder / f"{stem}.npy", array)
    for stem, names in (("entities", ENTITIES), ("relations", RELATIONS)):
        (folder / f"{stem}.tsv").write_text("".join(f"{i}\t{each}\n" for i, each in enumerate(names)), newline="\n")
    about = dict(name=name, dim=DIM, norm=norm, reciprocal=reciprocal)
    about |= dict(num_entities=len(ENTITIES), num_relations=len(RELATIONS), mrr=0.5)
    (folder / "model.json").write_text(json.dumps(about | others))
    return arrays


def kernel_scores(arrays, name, norm, asked):
    """By the kernels of evaluation: the scores of all entities for (given entity, relation); shape (e, r, e)."""
    relations = arrays["relations"]
    if asked == _ranking.SUBJECT and "inverse_relations" in arrays:
        relations, asked = arrays["inverse_relations"], _ranking.OBJECT
    padded = np.zeros((16, _ranking.padded(DIM)), np.float32)
    padded[: len(ENTITIES), :DIM] = arrays["entities"]
    given, kinds = (grid.reshape(-1) for grid in np.indices((len(ENTITIES), len(RELATIONS))))
    flat = np.ascontiguousarray(relations.reshape(len(RELATIONS), -1))
    queries = _ranking.queries(name, asked, padded[given], flat, kinds, DIM)
    scores = np.asarray(_ranking.scores(name, norm, queries, padded)).reshape(len(ENTITIES), len(RELATIONS), -1)
    return scores[:, :, : len(ENTITIES)]


@pytest.mark.parametrize("block", [1, 3 * DIM, 1 << 20])
@pytest.mark.parametrize("name, norm, reciprocal", MODELS)
def test_answers_are_those_of_the_kernels(tmp_path, monkeypatch, block, name, norm, reciprocal):
    monkeypatch.setattr(top, "ELEMENTS", block)
    arrays = write(tmp_path, name, norm, reciprocal)
    model = kge.Model.load(tmp_path)
    given, kinds = (grid.reshape(-1).tolist() for grid in np.indices((len(ENTITIES), len(RELATIONS))))
    for asked, answers in (
        (_ranking.OBJECT, model.objects(given, kinds, 3)),
        (_ranking.SUBJECT, model.subjects(kinds, given, 3)),
    ):
        scores = kernel_scores(arrays, name, norm, asked)
        for e, r, (ids, found, names) in zip(given, kinds, answers, strict=True):
            np.testing.assert_array_equal(ids, np.argsort(-scores[e, r], kind="stable")[:3])
            np.testing.assert_allclose(found, scores[e, r, ids], rtol=1e-4, atol=1e-5)
            assert names == [ENTITIES[i] for i in ids]
    triples = np.indices((len(ENTITIES), len(RELATIONS), len(ENTITIES))).reshape(3, -1).tolist()
    expected = kernel_scores(arrays, name, norm, _ranking.OBJECT).reshape(-1)
    np.testing.assert_allclose(model.scores(*triples), expected, rtol=1e-4, atol=1e-5)


def test_names_and_numbers_ask_the_same_and_known_ones_are_left_out(tmp_path):
    write(tmp_path)
    model = kge.Model.load(tmp_path)
    by_name = model.objects(["tab\there", "?"], ["is in", "r\t1"], k=8)
    by_number = model.objects([2, 4], [1, 2], k=8)
    for one, other in zip(by_name, by_number, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
    fewer = model.objects([2, 4], [1, 2], k=8, left_out=[by_name[0].ids[:3], []])
    np.testing.assert_array_equal(fewer[0].ids, by_name[0].ids[3:])
    np.testing.assert_array_equal(fewer[1].ids, by_name[1].ids)


def test_unknown_names_and_lists_that_do_not_fit_are_errors(tmp_path):
    write(tmp_path)
    model = kge.Model.load(tmp_path)
    with pytest.raises(LookupError, match="no entity 'new york'; did you mean 'New York'"):
        model.objects(["new york"], ["likes"])
    with pytest.raises(LookupError, match="no relation 'like'; did you mean 'likes'"):
        model.subjects(["like"], ["a"])
    with pytest.raises(ValueError, match="2 entities and 1 relations"):
        model.objects(["a", "b"], ["likes"])


# --- the command ---------------------------------------------------------------------------------------------------


def ask(monkeypatch, capsys, *argv, stdin=""):
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    command.main(["predict", *map(str, argv)])
    return capsys.readouterr()


def rows(text):
    return [line.split("\t") for line in text.splitlines()]


def test_one_question_on_the_command_line(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    model = kge.Model.load(tmp_path)
    found = rows(ask(monkeypatch, capsys, tmp_path, "New York", "is in", "?", "-k", 2).out)
    (_, scores, names) = model.objects(["New York"], ["is in"], 2)[0]
    assert [row[:3] for row in found] == [["New York", "is in", predict_field(name)] for name in names]
    np.testing.assert_allclose([float(row[3]) for row in found], scores, rtol=1e-5)
    found = rows(ask(monkeypatch, capsys, tmp_path, "-k", "1", "?", "r\\t1", "\\?").out)
    assert found[0][1:3] == ["r\\t1", "?"]
    assert found[0][0] == predict_field(model.subjects(["r\t1"], ["?"], 1)[0].names[0])
    found = rows(ask(monkeypatch, capsys, tmp_path, "a", "likes", "b").out)
    assert found == [["a", "likes", "b", f"{model.scores(['a'], ['likes'], ['b'])[0]:.6g}"]]


def predict_field(name):
    return name.replace("\\", "\\\\").replace("\t", "\\t")


def test_a_file_of_questions_and_one_of_answers(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    (tmp_path / "in.tsv").write_text("a\tlikes\tb\n\nC:\\temp\tis in\t?\n?\tlikes\ttab\\there\n")
    (tmp_path / "known.tsv").write_text("a\tlikes\tb\nC:\\temp\tis in\tü\nb\tlikes\ta\n")
    shown = ask(monkeypatch, capsys, tmp_path, "--input", tmp_path / "in.tsv", "--output", tmp_path / "out.tsv",
                "--known", tmp_path / "known.tsv", "-k", "100")  # fmt: skip
    assert shown.out == ""
    found = rows((tmp_path / "out.tsv").read_text())
    assert len(found) == 1 + 7 + 8 and found[0][:3] == ["a", "likes", "b"]
    assert "ü" not in [row[2] for row in found[1:8]] and {row[0] for row in found[1:8]} == {"C:\\\\temp"}
    assert {row[2] for row in found[8:]} == {"tab\\there"}
    marked = rows(ask(monkeypatch, capsys, tmp_path, "--input", tmp_path / "in.tsv", "--known", tmp_path / "known.tsv",
                      "--mark-known", "-k", 100).out)  # fmt: skip
    assert len(marked) == 1 + 8 + 8
    assert [row[:3] for row in marked if row[4] == "known"] == [["a", "likes", "b"], ["C:\\\\temp", "is in", "ü"]]


def test_known_triples_of_a_data_set(tmp_path):
    write(tmp_path)
    (tmp_path / "graph").mkdir()
    for split, text in (("train", "a\tlikes\tb\nq\tlikes\tb\n"), ("valid", "ü\tlikes\tb\n"), ("test", "a\tis in\tb\n")):
        (tmp_path / "graph" / f"{split}.txt").write_text(text)
    model = kge.Model.load(tmp_path)
    questions = [predict.read_question(model, ["?", "likes", "b"]), predict.read_question(model, ["a", "is in", "?"])]
    assert predict.find_known(model, questions, [tmp_path / "graph"]) == dict(
        zip(questions, [{0, 6}, {7}], strict=True)
    )


def test_questions_from_standard_input(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    questions = "a\tlikes\t?\nA\tlikes\t?\na likes ?\n?\tlikes\t?\na\tlikes\tb\n"
    with pytest.raises(SystemExit, match="1"):
        ask(monkeypatch, capsys, tmp_path, "-k", 1, stdin=questions)
    shown = capsys.readouterr()
    assert [row[0] for row in rows(shown.out)] == ["a", "a"]
    errors = shown.err.splitlines()
    assert "did you mean 'a'" in errors[0] and "tabs between" in errors[1] and "one entity" in errors[2]


def test_a_bad_line_of_a_file_is_named_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    (tmp_path / "in.tsv").write_text("a\tlikes\tb\na\tlikes\tx\n")
    with pytest.raises(SystemExit, match="1"):
        ask(monkeypatch, capsys, tmp_path, "--input", tmp_path / "in.tsv", "--output", tmp_path / "out.tsv")
    assert "in.tsv:2: the model has no entity 'x'" in capsys.readouterr().err
    assert not (tmp_path / "out.tsv").exists()


@pytest.mark.parametrize("name, content, message", [
    ("model.json", None, "model.json is missing"),
    ("model.json", b"{", "model.json: cannot be read"),
    ("model.json", b"[]", "model.json: is not an object"),
    ("model.json", b'{"mean": 1}', "model.json: 'name' is missing"),
    ("entities.npy", None, "entities.npy is missing"),
    ("entities.npy", b"", "entities.npy: cannot be read"),
    ("relations.tsv", b"0\ta\n", "relations.tsv: has 1 lines, but there are 3 vectors"),
    ("entities.tsv", None, "entities.tsv is missing"),
])  # fmt: skip
def test_a_bad_folder_is_an_error_that_names_the_file(tmp_path, name, content, message):
    write(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError, match=message):
        kge.Model.load(tmp_path)


def test_files_that_do_not_fit_together_are_errors(tmp_path):
    write(tmp_path, num_entities=9)
    with pytest.raises(AppError, match=r"entities.npy: has the shape \(8, 6\), but .* \(9, 6\)"):
        kge.Model.load(tmp_path)
    write(tmp_path, name="hole")
    with pytest.raises(AppError, match="the model is 'hole'"):
        kge.Model.load(tmp_path)
    write(tmp_path)
    np.save(tmp_path / "entities.npy", np.zeros((8, 6)))
    with pytest.raises(AppError, match="float64, but must have float32"):
        kge.Model.load(tmp_path)
    with pytest.raises(AppError, match="does not exist"):
        kge.Model.load(tmp_path / "none")


def test_the_help_names_the_command(capsys):
    for argv in (["predict", "--help"], ["--help"]):
        with pytest.raises(SystemExit, match="0"):
            command.main(argv)
        assert "python -m lapse.apps.kge predict" in capsys.readouterr().out


def test_no_mpi_is_loaded(tmp_path):
    write(tmp_path)
    code = (
        "import sys; from lapse.apps.kge.__main__ import main; main(sys.argv[1:]); "
        "print([name for name in sys.modules if name.startswith('mpi4py')])"
    )
    command = [sys.executable, "-c", code, "predict", tmp_path, "ü", "likes", "?"]
    job = launch.run(command, env={"LC_ALL": "C"}).check()
    assert job.stdout.splitlines()[-1] == "[]" and "New York" in job.stdout
