"""A trained factorization recommends: by slow computations, and by the solver of training for rows that are new."""

import io
import json
import sys

import numpy as np
import pytest

import launch
from lapse.apps import mf
from lapse.apps._shared import top
from lapse.apps._shared.job import AppError
from lapse.apps.mf import __main__ as command

USERS = ["1", "u 2", 'quo"te', "ü", "C:\\temp"]
ITEMS = ["Star Wars (1977)", "item, 2", "tab", "1", "5", "ß", "back\\n"]
RANK = 3


def write(folder, biases=True, implicit=False, **others):
    rng = np.random.default_rng(2)
    arrays = {"rows": rng.standard_normal((len(USERS), RANK)), "columns": rng.standard_normal((len(ITEMS), RANK))}
    if biases:
        arrays |= {"row_biases": rng.standard_normal(len(USERS)), "column_biases": rng.standard_normal(len(ITEMS))}
    arrays = {stem: array.astype(np.float32) for stem, array in arrays.items()}
    for stem, array in arrays.items():
        np.save(folder / f"{stem}.npy", array)
    for side, names in (("row", USERS), ("column", ITEMS)):
        (folder / f"{side}_ids.txt").write_text("".join(f"{name}\n" for name in names))
    about = dict(mean=3.0 if biases else 0.0, low=1.0, high=5.0, rank=RANK, biases=biases, implicit=implicit)
    (folder / "model.json").write_text(json.dumps(about | others))
    return arrays


def predictions(arrays, mean):
    scores = arrays["rows"] @ arrays["columns"].T + mean
    if "row_biases" in arrays:
        scores = scores + arrays["row_biases"][:, None] + arrays["column_biases"]
    return scores


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("biases", [True, False])
def test_recommendations_are_the_highest_predictions(tmp_path, monkeypatch, biases, block):
    monkeypatch.setattr(top, "ELEMENTS", block)
    scores = predictions(write(tmp_path, biases), 3.0 * biases)
    model = mf.Model.load(tmp_path)
    left_out = [[0], [1, 2], [], [], []]
    for user, answers in enumerate(model.recommend(USERS, 4, left_out)):
        mine = scores[user].copy()
        mine[left_out[user]] = -np.inf
        np.testing.assert_array_equal(answers.ids, np.argsort(-mine, kind="stable")[:4])
        np.testing.assert_allclose(answers.scores, mine[answers.ids], rtol=1e-5)
        assert answers.names == [ITEMS[i] for i in answers.ids]
    pairs = np.indices(scores.shape).reshape(2, -1).tolist()
    np.testing.assert_allclose(model.predict(*pairs), np.clip(scores, 1, 5).reshape(-1), rtol=1e-5)


def test_similar_items_have_the_largest_cosines(tmp_path):
    columns = write(tmp_path)["columns"]
    unit = columns / np.linalg.norm(columns, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    for item, answers in enumerate(mf.Model.load(tmp_path).similar(ITEMS, 3)):
        np.testing.assert_array_equal(answers.ids, np.argsort(-cosines[item], kind="stable")[:3])
        np.testing.assert_allclose(answers.scores, cosines[item, answers.ids], atol=1e-6)


def loss_of(arrays, items, ratings, factors, bias, about):
    """Of a row: what the solver minimizes."""
    columns = arrays["columns"].astype(float)
    if about["implicit"]:
        cells, confidence = np.zeros(len(ITEMS)), np.ones(len(ITEMS))
        cells[items], confidence[items] = 1, 1 + about["alpha"] * np.array(ratings)
        return (confidence * (cells - columns @ factors) ** 2).sum() + about["regularization"] * factors @ factors
    errors = np.array(ratings) - columns[items] @ factors - about["mean"]
    penalty = len(items) * about["regularization"] * factors @ factors
    if about["biases"]:
        errors -= arrays["column_biases"][items] + bias
        penalty += len(items) * about["bias_regularization"] * bias**2
    return errors @ errors + penalty


@pytest.mark.parametrize("biases, implicit", [(True, False), (False, False), (False, True)])
def test_a_new_row_is_the_minimum_of_the_loss(tmp_path, biases, implicit):
    arrays = write(tmp_path, biases, implicit, alpha=0.5, regularization=0.2, bias_regularization=0.05)
    model = mf.Model.load(tmp_path)
    items, ratings = [0, 3, 4, 6], [5.0, 1.0, 2.0, 4.0]
    row = model.fold_in([ITEMS[i] for i in items], ratings)
    best = loss_of(arrays, items, ratings, row.factors.astype(float), row.bias, model.about)
    rng = np.random.default_rng(0)
    for _ in range(50):
        step = 0.01 * rng.standard_normal(RANK + 1)
        other = loss_of(arrays, items, ratings, row.factors + step[:RANK], row.bias + step[-1] * biases, model.about)
        assert other > best - 1e-9
    assert model.recommend([row], 2)[0].ids.shape == (2,)
    assert row.factors.dtype == np.float32


def test_a_new_row_needs_ratings(tmp_path):
    write(tmp_path)
    model = mf.Model.load(tmp_path)
    for items, ratings in (([], []), ([0], [1, 2]), ([0], [np.nan])):
        with pytest.raises(ValueError, match="rating"):
            model.fold_in(items, ratings)
    with pytest.raises(ValueError, match="regularization is -1"):
        model.fold_in([0], [1], regularization=-1)


# --- the command ---------------------------------------------------------------------------------------------------


def ask(monkeypatch, capsys, *argv, stdin=""):
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    command.main(["recommend", *map(str, argv)])
    shown = capsys.readouterr()
    return [line.split("\t") for line in shown.out.splitlines()], shown.err


def test_users_on_the_command_line_and_what_they_have_seen(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    (tmp_path / "seen.csv").write_text(
        'user,item,rating\n1,Star Wars (1977),5\n1,"item, 2",3\nu 2,tab,3\n1,unknown,3\n'
    )
    found, _ = ask(monkeypatch, capsys, tmp_path, "1", "C:\\temp", "-k", 100, "--seen", tmp_path / "seen.csv")
    assert [row[0] for row in found] == ["1"] * 5 + ["C:\\temp"] * 7
    assert {row[1] for row in found[:5]} == {"tab", "1", "5", "ß", "back\\\\n"}
    assert all(1 <= float(row[2]) <= 5 for row in found)
    with pytest.raises(SystemExit, match="1"):
        ask(monkeypatch, capsys, tmp_path, "-k", 2, stdin="1\nu2\nü\n")
    shown = capsys.readouterr()
    assert [line[0] for line in shown.out.splitlines()] == ["1", "1", "ü", "ü"]
    assert "no user 'u2'; did you mean 'u 2'" in shown.err


def test_similar_items_on_the_command_line(tmp_path, monkeypatch, capsys):
    write(tmp_path)
    found, _ = ask(
        monkeypatch, capsys, tmp_path, "--similar", "Star Wars (1977)", "-k", "3", "--output", tmp_path / "out"
    )
    assert found == []
    assert [line.split("\t")[0] for line in (tmp_path / "out").read_text().splitlines()] == ["Star Wars (1977)"] * 3


def test_new_users_in_a_file(tmp_path, monkeypatch, capsys):
    write(tmp_path, regularization=0.1, bias_regularization=0.02)
    (tmp_path / "new.tsv").write_text("me\tStar Wars (1977)\t5\nme\ttab\t1\nyou\tß\t4\nyou\tnever seen\t4\n")
    found, errors = ask(monkeypatch, capsys, tmp_path, "--new-users", tmp_path / "new.tsv", "-k", 100)
    assert [row[0] for row in found] == ["me"] * 5 + ["you"] * 6
    assert "1 items are unknown to the model, such as 'never seen'" in errors
    model = mf.Model.load(tmp_path)
    answers = model.recommend([model.fold_in(["Star Wars (1977)", "tab"], [5, 1])], 100, [[0, 2]])[0]
    assert [row[1] for row in found[:5]] == [name.replace("\\", "\\\\") for name in answers.names]
    (tmp_path / "new.tsv").write_text("me\tnever seen\t4\n")
    with pytest.raises(SystemExit, match="1"):
        ask(monkeypatch, capsys, tmp_path, "--new-users", tmp_path / "new.tsv")
    assert "new.tsv: none of its items is known" in capsys.readouterr().err


@pytest.mark.parametrize("name, content, message", [
    ("model.json", None, "model.json is missing"),
    ("model.json", b'{"name": "complex"}', "model.json: 'mean' is missing"),
    ("columns.npy", None, "columns.npy is missing"),
    ("row_biases.npy", None, "row_biases.npy is missing"),
    ("column_ids.txt", b"a\n", "column_ids.txt: has 1 lines, but there are 7 vectors"),
])  # fmt: skip
def test_a_bad_folder_is_an_error_that_names_the_file(tmp_path, name, content, message):
    write(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError, match=message):
        mf.Model.load(tmp_path)


def test_the_help_names_the_command(capsys):
    for argv in (["recommend", "--help"], ["--help"]):
        with pytest.raises(SystemExit, match="0"):
            command.main(argv)
        assert "python -m lapse.apps.mf recommend" in capsys.readouterr().out


def test_no_mpi_is_loaded(tmp_path):
    write(tmp_path)
    code = (
        "import sys; from lapse.apps.mf.__main__ import main; main(sys.argv[1:]); "
        "print([name for name in sys.modules if name.startswith('mpi4py')])"
    )
    command = [sys.executable, "-c", code, "recommend", tmp_path, "ü"]
    job = launch.run(command, env={"LC_ALL": "C"}).check()
    assert job.stdout.splitlines()[-1] == "[]" and "ß" in job.stdout
