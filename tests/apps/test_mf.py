"""Matrix factorization, end to end: planted matrices, every management and algorithm, files, errors, resuming."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from app import TIMES, result_of, run_app
from lapse.apps.mf import Model
from lapse.apps.mf import options as mf_options
from pages import check_page

KEYS = {"app", "ranks", "workers", "epochs", "resumed_from", "seconds_per_epoch", "loss", "rmse", "train_rmse"}
#: Of the planted matrix; a prediction cannot be better, and after 20 epochs is not much worse.
NOISE = 0.1
SMALL = ("--rows", 300, "--columns", 60, "--entries", 9000, "--planted-rank", 3, "--epochs", 20, "--no-progress")
MOVIELENS = Path(os.environ.get("LAPSE_DATA", "/nonexistent"), "ml-100k", "u.data.gz")


def train(ranks, *options, small=SMALL):
    return result_of(run_app("mf", ranks, *small, *options))


def write_ratings(path, separator="\t", rows=80, columns=30, count=1500, seed=0, noise=0.0):
    """Ratings that are biases and a product of factors of length 1, and noise, of users with names."""
    rng = np.random.default_rng(seed)
    p, q, b = rng.normal(size=rows), rng.normal(size=columns), rng.normal(size=rows)
    cells = rng.permutation(rows * columns)[:count]
    errors = noise * rng.normal(size=count)
    lines = [
        separator.join((f"user {r}", f"{c}", f"{3 + b[r] + p[r] * q[c] + error:.4f}"))
        for r, c, error in zip(cells // columns, cells % columns, errors)
    ]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


@pytest.mark.parametrize(
    "ranks, management, algorithm",
    [
        (1, "lapse2", "plain"),
        (2, "classic", "dsgd"),
        (3, "lapse", "dsgd"),
        (2, "lapse2", "dsgd"),
        (3, "classic", "columnwise"),
        (2, "lapse", "columnwise"),
        (3, "lapse2", "columnwise"),
        (2, "classic", "plain"),
        (2, "lapse", "plain"),
        (3, "lapse2", "plain"),
    ],
)
def test_planted_factors_are_found(ranks, management, algorithm):
    result = train(ranks, "--management", management, "--algorithm", algorithm, "--batch", 256)
    assert result.keys() >= KEYS
    assert result["ranks"] == ranks and result["epochs"] == 20 and result["resumed_from"] is None
    assert 0.8 * NOISE < result["rmse_covered"] < 1.25 * NOISE
    assert result["train_rmse"] < result["rmse"] < 0.4


def test_dsgd_is_exact_wherever_parameters_are():
    """Four workers on one rank or on two, with parameters that move or stay: bit by bit the same."""
    results = [
        train(ranks, "--workers", 4 // ranks, "--management", management, "--epochs", 3)
        for ranks, management in ((1, "lapse"), (2, "lapse"), (2, "classic"))
    ]
    assert len({result["train_rmse"] for result in results}) == 1
    np.testing.assert_allclose([result["rmse"] for result in results], results[0]["rmse"], rtol=1e-12)


@pytest.mark.parametrize("step", ["adagrad", "bold-driver"])
def test_other_steps(step):
    """From factors far from 0, where AdaGrad may stay until its steps are small."""
    result = train(
        2,
        "--step",
        step,
        "--learning-rate",
        0.1 if step == "adagrad" else 0.04,
        "--algorithm",
        "plain",
        "--batch",
        256,
        "--replicate",
        5,
        "--init-std",
        0.3,
    )
    assert result["rmse_covered"] < 1.5 * NOISE


def test_more_workers_than_columns():
    result = train(3, "--workers", 2, "--rows", 40, "--columns", 4, "--entries", 120, small=("--epochs", 2))
    assert result["rmse"] > 0


def test_the_same_ratings_are_held_out_for_any_number_of_ranks(tmp_path):
    ratings = write_ratings(tmp_path / "ratings.tsv")
    plain = (
        "--ratings",
        ratings,
        "--no-biases",
        "--rank",
        1,
        "--epochs",
        1,
        "--learning-rate",
        1e-9,
        "--init-std",
        1e-6,
        "--no-progress",
    )
    results = [train(ranks, small=plain) for ranks in (1, 3)]
    assert results[0]["rmse"] == pytest.approx(results[1]["rmse"], rel=1e-4)


def test_the_model_predicts_what_the_program_says(tmp_path):
    ratings, test = write_ratings(tmp_path / "ratings.csv", ","), tmp_path / "test.csv.gz"
    lines = ratings.read_bytes().splitlines(keepends=True)
    ratings.write_bytes(b"user,item,rating\n" + b"".join(lines[150:]))
    test.write_bytes(gzip.compress(b"".join(lines[:150])))
    metrics, folder = tmp_path / "metrics.jsonl", tmp_path / "model"
    result = train(
        2,
        "--ratings",
        ratings,
        "--test",
        test,
        "--output",
        folder,
        "--metrics",
        metrics,
        "--report",
        tmp_path / "report.html",
        "--epochs",
        30,
        "--rank",
        4,
        "--regularization",
        0.01,
        small=("--no-progress",),
    )
    about = json.loads((folder / "model.json").read_text())
    p, q, b, c = (np.load(folder / f"{name}.npy") for name in ("rows", "columns", "row_biases", "column_biases"))
    row, column = (
        {name: i for i, name in enumerate((folder / f"{side}_ids.txt").read_text().splitlines())}
        for side in ("row", "column")
    )
    errors = []
    for line in lines[:150]:
        user, item, rating = line.decode().split(",")
        i, j = row[user], column[item]
        errors.append(float(rating) - np.clip(about["mean"] + b[i] + c[j] + p[i] @ q[j], about["low"], about["high"]))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(result["rmse"], rel=1e-5)
    assert result["rmse"] < 0.6 and p.shape == (80, 4)
    users, items, numbers = zip(*(line.decode().split(",") for line in lines[:150]), strict=True)
    predictions = Model.load(folder).predict(users, items)
    assert np.sqrt(np.mean(np.square(predictions - np.float64(numbers)))) == pytest.approx(result["rmse"], rel=1e-4)
    written = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["epoch"] for line in written] == list(range(1, 31))
    assert written[-1]["rmse"] == result["rmse"] and written[-1]["stats"]["pulled_keys"] > 0
    assert written[-1]["time"].keys() == TIMES
    check_page(tmp_path / "report.html", result, ["loss", "rmse", "the most used keys"])


def test_a_run_that_was_ended_and_resumed_goes_on_as_if_it_had_not_been(tmp_path):
    common = ("--step", "bold-driver", "--epochs", 8)
    whole = train(2, *common)
    first = train(2, *common, "--output", tmp_path, "--checkpoint-every", 3, "--max-runtime", 0.01)
    assert first["epochs"] == 0
    part = train(2, *common, "--output", tmp_path, "--resume")
    assert part["resumed_from"] == 0 and part["epochs"] == 8
    assert part["loss"] == pytest.approx(whole["loss"], rel=0.01)
    assert train(2, *common, "--output", tmp_path, "--resume") == part


@pytest.mark.parametrize("ranks, options", [(1, ()), (3, ("--workers", 2)), (2, ("--management", "classic"))])
def test_least_squares_finds_planted_factors(ranks, options):
    result = train(ranks, "--solver", "als", "--epochs", 6, *options)
    assert result.keys() >= {*KEYS, "mae"} and result["epochs"] == 6
    assert 0.8 * NOISE < result["rmse_covered"] < 1.25 * NOISE


def test_a_sampler_predicts_better_than_its_draws_and_alike_for_any_number_of_ranks(tmp_path):
    options = ("--solver", "gibbs", "--epochs", 30, "--burn-in", 10)
    alone = train(1, *options, "--metrics", tmp_path / "metrics", "--predictions", tmp_path / "1.tsv")
    together = train(3, *options, "--workers", 2, "--predictions", tmp_path / "3.tsv")
    last = json.loads((tmp_path / "metrics").read_text().splitlines()[-1])
    assert alone["rmse"] < last["sample_rmse"] and last["noise"] == pytest.approx(NOISE, rel=0.2)
    assert together["rmse"] == pytest.approx(alone["rmse"], rel=1e-3)
    tables = [np.loadtxt(tmp_path / f"{n}.tsv", skiprows=1) for n in (1, 3)]
    np.testing.assert_array_equal(tables[0][:, :3], tables[1][:, :3])
    np.testing.assert_allclose(tables[0][:, 3:], tables[1][:, 3:], rtol=0.02, atol=0.01)
    errors = tables[0][:, 2] - tables[0][:, 3]
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(alone["rmse"], rel=1e-3)
    covered = np.abs(errors) < 2 * np.hypot(tables[0][:, 4], NOISE)
    assert 0.85 < covered.mean() < 1  # the deviations are those of the errors


@pytest.mark.parametrize("size, options", [(1, ()), (3, ("--no-biases",))])
def test_a_model_of_draws_predicts_as_well_as_was_measured(tmp_path, size, options):
    options = ("--solver", "gibbs", "--rank", 3, "--epochs", 60, *options)
    options = (*options, "--ratings", write_ratings(tmp_path / "r", noise=1.0))
    found, shapes = {}, {}
    for kept in (1, 15):
        out = ("--output", tmp_path / "model", "--kept-draws", kept, "--predictions", tmp_path / "held_out")
        measured = train(size, *options, *out, small=())["rmse"]
        rows, columns, ratings = zip(*(line.split("\t")[:3] for line in (tmp_path / "held_out").open().readlines()[1:]))
        model = Model.load(tmp_path / "model")
        errors = model.predict(rows, columns) - np.array(ratings, float)
        found[kept] = np.sqrt(np.mean(errors**2)) / measured
        shapes[kept] = np.load(tmp_path / "model" / "columns.npy").shape
        assert model.about["draws"] == kept and model.about["rank"] == 3 * kept
    assert shapes == {1: (30, 3), 15: (30, 45)}
    assert abs(found[15] - 1) < 0.03 and found[1] > found[15] + 0.02


def write_popular(path, rows=100, columns=500, seed=0):
    """Ratings that say little, of columns that are the better the more there are, and the more of them by experts."""
    rng = np.random.default_rng(seed)
    is_expert = np.arange(rows) % 3 == 0
    quality = rng.normal(size=columns)
    chance = np.where(is_expert[:, None], 0.15 * np.exp(0.8 * quality), 0.03)
    cells = np.argwhere(rng.random((rows, columns)) < chance)
    ratings = 3 + quality[cells[:, 1]] + 3 * rng.normal(size=len(cells))
    path.write_text("".join(f"{row}\t{column}\t{r:.3f}\n" for (row, column), r in zip(cells.tolist(), ratings)))
    return path


@pytest.mark.parametrize("size", [1, 3])
def test_who_has_rated_something_says_what_it_is(tmp_path, size):
    ratings = write_popular(tmp_path / "ratings.tsv")
    small = ("--ratings", ratings, "--solver", "gibbs", "--rank", 2, "--epochs", 60, "--test-fraction", 0.3)
    found = {
        which: train(size, "--side-information", which, small=small)["rmse"] for which in ("none", "columns", "both")
    }
    assert found["columns"] < 0.99 * found["none"] and found["both"] < 0.99 * found["none"]


def write_plays(path, rows=200, columns=40, seed=0):
    """Counts of two kinds of users, who mostly play the items of their own kind."""
    rng = np.random.default_rng(seed)
    lines = []
    for row in range(rows):
        likes = np.where(np.arange(columns) % 2 == row % 2, 0.4, 0.02)
        lines += [f"{row}\t{column}\t{rng.integers(1, 6)}\n" for column in np.flatnonzero(rng.random(columns) < likes)]
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("management", ["classic", "lapse", "lapse2"])
def test_pairwise_ranking_on_any_number_of_ranks(tmp_path, management):
    plays = write_plays(tmp_path / "plays.tsv")
    options = ("--ratings", plays, "--solver", "bpr", "--rank", 2, "--epochs", 30, "--top", 5, "--batch", 64)
    options += ("--management", management, "--no-progress", "--learning-rate", 0.1)
    env = {"LAPSE_SHARED_MEMORY": "0"}
    if management == "lapse2":  # the same on one rank by the seed, ended and resumed, too
        metrics = tmp_path / "metrics"
        alone = result_of(run_app("mf", 1, *options, "--metrics", metrics))
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [line["epoch"] for line in lines if "auc" in line] == [5, 10, 15, 20, 25, 30]
        assert lines[-1]["stats"]["sampled_keys"] == lines[-1]["ratings"]
        assert alone.items() >= {name: lines[-1][name] for name in ("auc", "ndcg", "loss")}.items()
        again = result_of(run_app("mf", 1, *options, "--output", tmp_path / "model", "--evaluate-every", 9))
        assert all(again[name] == alone[name] for name in ("auc", "ndcg", "loss"))
        assert Model.load(tmp_path / "model").recommend(["1"], k=3)
    together = result_of(run_app("mf", 3, *options, env=env))
    assert together["auc"] > 0.65 and "rmse" not in together
    assert together["loss"] < 0.5  # of two items in random order: 0.69


def test_a_search_finds_options_without_the_held_out_ratings(tmp_path):
    plays = write_plays(tmp_path / "plays.tsv")
    options = ("--ratings", plays, "--solver", "bpr", "--rank", 2, "--epochs", 6, "--no-progress")
    results = tmp_path / "results.json"
    search = ("--search", 4, "--search-results", results, "--output", tmp_path / "model", "--checkpoint-every", 6)
    job = run_app("mf", 2, *options, *search)
    found = result_of(job)
    content = json.loads(results.read_text())
    assert [trial["epochs"] for trial in content["trials"]] == [2, 2, 2, 2, 6, 6]
    last = max(content["trials"][4:], key=lambda trial: trial["score"])
    assert f"chosen: --regularization {last['options']['regularization']}" in job.stderr
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert about["regularization"] == last["options"]["regularization"] and about["rank"] == 2
    names = [f"--{name.replace('_', '-')}" for name in last["options"]]
    chosen = [text for pair in zip(names, last["options"].values(), strict=True) for text in pair]
    assert result_of(run_app("mf", 2, *options, *chosen))["loss"] == pytest.approx(found["loss"], rel=0.05)
    assert result_of(run_app("mf", 2, *options, *search, "--resume")) == found  # does not search again


def test_implicit_feedback_is_ranked_alike_for_any_number_of_ranks(tmp_path):
    plays = write_plays(tmp_path / "plays.tsv")
    options = ("--ratings", plays, "--implicit", "--rank", 2, "--epochs", 8, "--top", 5)
    alone, together = (result_of(run_app("mf", ranks, *options)) for ranks in (1, 3))
    assert alone["auc"] > 0.65 and "rmse" not in alone
    for name in ("ndcg", "recall", "map", "auc", "loss"):
        assert together[name] == pytest.approx(alone[name], rel=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--solver", "als", "--learning-rate", 0.1), "--learning-rate: has no effect with --solver als"),
        (("--solver", "gibbs", "--regularization", 0.1), "--regularization: has no effect with --solver gibbs"),
        (("--solver", "sgd", "--implicit"), "only --solver als and bpr are for counts"),
        (("--implicit", "--no-biases"), "--no-biases: has no effect with --implicit"),
        (("--solver", "bpr", "--alpha", 3), "--alpha: has no effect with --solver bpr"),
        (("--sampling-scheme", "pool"), "--sampling-scheme: has no effect with --solver sgd"),
        (("--top", 3), "--top: has no effect with --solver sgd"),
        (("--solver", "als", "--side-information", "rows"), "--side-information: has no effect with --solver als"),
        (("--solver", "gibbs", "--burn-in", 300), "--burn-in: 300 of 200 --epochs"),
    ],
)
def test_options_without_an_effect_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        mf_options.parse([str(option) for option in options])
    assert message in capsys.readouterr().err


def test_matrix_market(tmp_path):
    path = tmp_path / "ratings.mtx.gz"
    cells = np.random.default_rng(0).permutation(20 * 10)[:100]
    entries = "".join(f"{i // 10 + 1} {i % 10 + 1} {i % 5}\n" for i in cells)
    path.write_bytes(gzip.compress(f"%%MatrixMarket matrix coordinate integer general\n20 10 100\n{entries}".encode()))
    small = ("--ratings", path, "--epochs", 2, "--output", tmp_path / "model")
    assert train(2, small=small)["rmse"] > 0
    assert np.load(tmp_path / "model" / "columns.npy").shape == (10, 40)
    assert (tmp_path / "model" / "column_ids.txt").read_text().split() == [str(i) for i in range(1, 11)]
    path.write_bytes(gzip.compress(f"%%MatrixMarket matrix coordinate integer general\n20 10 101\n{entries}".encode()))
    job = run_app("mf", 2, *small)
    assert job.returncode != 0 and job.stderr.count("100 entries, but the size line declares 101") == 1


def test_without_held_out_ratings(tmp_path):
    result = train(2, "--ratings", write_ratings(tmp_path / "r"), "--test-fraction", 0, small=("--epochs", 1))
    assert result["rmse"] is None and result["train_rmse"] > 0


@pytest.mark.parametrize(
    "text, options, message",
    [
        (None, (), "none.txt"),
        ("a b 1\n" * 9 + "a b\n", (), "r:10: 'a b' has 2 fields"),
        ("\n", (), "has no rating"),
        ("a b 1\nc d 2\n" * 9, ("--learning-rate", 1e30, "--epochs", 2), "diverged"),
        ("a b 1\n", ("--test", "none.txt"), "none.txt"),
    ],
)
def test_errors_are_said_once_and_end_the_job(tmp_path, text, options, message):
    path = tmp_path / "none.txt"
    if text is not None:
        path = tmp_path / "r"
        path.write_text(text)
    job = run_app("mf", 2, "--ratings", path, *options, timeout=30)
    assert job.returncode != 0 and not job.timed_out
    assert job.stderr.count(message) == 1, job.output
    assert "Traceback" not in job.stderr


def test_the_standard_library():
    result = train(2, "--ratings", "stdlib", small=("--epochs", 3, "--no-progress"))
    assert 0 < result["rmse"] < 1.5


@pytest.mark.skipif(not MOVIELENS.exists(), reason="LAPSE_DATA does not name a folder with ml-100k/u.data.gz")
@pytest.mark.parametrize("options, most", [((), 0.915), (("--no-biases",), 0.93)])
def test_movielens(options, most):
    results = [
        train(2, "--ratings", MOVIELENS, *options, "--seed", seed, small=("--no-progress",)) for seed in (1, 2, 3)
    ]
    assert np.mean([result["rmse"] for result in results]) < most


@pytest.mark.parametrize("options", [("--solver", "als"), ("--implicit",)])
def test_a_row_that_is_fitted_to_its_ratings_is_the_one_of_the_training(tmp_path, options):
    rng = np.random.default_rng(0)
    p, q = rng.standard_normal((100, 2)), rng.standard_normal((40, 2))
    cells = [(i, j) for i in range(100) for j in range(40) if rng.random() < 0.3 and p[i] @ q[j] > -1]
    ratings = [(f"u {i}", f"item {j}", round(float(3 + p[i] @ q[j]), 3)) for i, j in cells]
    path = tmp_path / "ratings.tsv"
    path.write_text("".join("\t".join(map(str, each)) + "\n" for each in ratings))
    train(2, "--ratings", path, "--test-fraction", 0, "--epochs", 60, "--rank", 2, "--output", tmp_path / "m",
          *options, small=("--no-progress",))  # fmt: skip
    model = Model.load(tmp_path / "m")
    for user in model.rows[:30]:
        items, values = zip(*(each[1:] for each in ratings if each[0] == user), strict=True)
        row = model.fold_in(items, values)
        np.testing.assert_allclose(
            model.predict([row] * 40, range(40)), model.predict([user] * 40, range(40)), atol=0.01
        )
