"""Knowledge-graph embeddings, end to end: a small graph with a known answer, errors, output, managements."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from app import result_of, run_app, write_languages
from lapse.apps.kge import Model, data
from pages import check_page

SMALL = ("--dim", 16, "--epochs", 40, "--batch-size", 16, "--num-negs-per-pos", 32, "--eval-every", 10, "--no-progress")
KEYS = {
    "app",
    "ranks",
    "workers",
    "epochs",
    "resumed_from",
    "seconds_per_epoch",
    "loss",
    "mrr",
    "hits1",
    "hits3",
    "hits10",
    "mean_rank",
    "mrr_raw",
}
#: Ranks share no memory, as if each had a host of its own.
APART = {"LAPSE_SHARED_MEMORY": "0"}
REAL = os.environ.get("LAPSE_DATA")


@pytest.fixture(scope="module")
def languages(tmp_path_factory):
    return write_languages(tmp_path_factory.mktemp("languages"))


@pytest.mark.parametrize(
    "ranks, workers, management, model",
    [
        (1, 1, "lapse2", "complex"),
        (1, 2, "classic", "rescal"),
        (2, 1, "classic", "transe"),
        (2, 2, "lapse2", "rescal"),
        (3, 1, "classic", "complex"),
        (3, 2, "lapse", "distmult"),
        (3, 1, "lapse2", "complex"),
    ],
)
def test_people_speak_the_language_of_their_country(languages, ranks, workers, management, model):
    result = result_of(
        run_app(
            "kge",
            ranks,
            "--dataset",
            languages,
            *SMALL,
            "--workers",
            workers,
            "--management",
            management,
            "--model",
            model,
        )
    )
    assert set(result) >= KEYS
    assert (result["ranks"], result["workers"], result["epochs"]) == (ranks, workers, 40)
    assert result["mrr"] > 0.7  # at random: 0.04
    assert result["hits1"] <= result["hits3"] <= result["hits10"] <= 1
    assert result["mrr_raw"] < result["mrr"]
    assert result["mrr_pessimistic"] <= result["mrr"] <= result["mrr_optimistic"]
    assert list(result["categories"]) == ["n-1"]  # many people of a country
    assert np.mean([side["mrr"] for side in result["categories"]["n-1"].values()]) == pytest.approx(result["mrr"])


@pytest.mark.parametrize(
    "options",
    [
        ("--sampling-scheme", "naive", "--replicate", 20),
        ("--sampling-scheme", "pool", "--sampling-reuse", 4, "--sampling-postpone", "--replicate", 0),
        ("--sampling-scheme", "local", "--partition", "relation", "--lookahead", 3),
    ],
)
def test_sampling_schemes_and_placements(languages, options):
    result = result_of(run_app("kge", 3, "--dataset", languages, *SMALL, *options))
    assert result["mrr"] > 0.7


@pytest.mark.parametrize(
    "options",
    [
        ("--loss", "margin", "--model", "transe", "--norm", 2, "--entity-dropout", 0.1, "--relation-dropout", 0.1),
        ("--preset", "lapse", "--lr", 0.2),
    ],
)
def test_losses_dropout_and_the_preset(languages, options):
    result = result_of(run_app("kge", 1, "--dataset", languages, *SMALL, *options))
    assert result["mrr"] > 0.5


def test_a_wanted_number_of_triples_decides_on_the_epochs(languages):
    triples = len(data.read(languages).train)
    wanted = ("--epochs", 3, "--min-triples", 7 * triples - 1)
    result = result_of(run_app("kge", 2, "--dataset", languages, *SMALL, *wanted))
    assert result["epochs"] == 7


def test_one_worker_repeats_itself(languages):
    one, other = (result_of(run_app("kge", 1, "--dataset", languages, *SMALL)) for _ in range(2))
    assert (one["loss"], one["mrr"]) == (other["loss"], other["mrr"])


ALL = ("--num-negs-per-pos", "all", "--epochs", 12)


def test_all_entities_as_negatives_give_the_same_on_any_ranks_and_workers(languages):
    """But for rounding; those of one rank repeat themselves to the last bit."""
    more = ("--relation-weight", 0.5, "--entity-dropout", 0.1, "--relation-dropout", 0.1)
    jobs = [(1, 2, {}), (1, 2, {}), (1, 1, {}), (3, 2, APART), (2, 1, {})]
    results = [
        result_of(run_app("kge", ranks, "--dataset", languages, *SMALL, *ALL, *more, "--workers", workers, env=env))
        for ranks, workers, env in jobs
    ]
    figures = [(result["loss"], result["mrr"]) for result in results]
    assert figures[0] == figures[1]
    assert figures[0][1] > 0.7
    for loss, mrr in figures:
        assert loss == pytest.approx(figures[0][0], rel=1e-4) and mrr == pytest.approx(figures[0][1], abs=0.02)


ADAM = ("--optimizer", "adam", "--lr", 0.02)


@pytest.mark.parametrize(
    "ranks, options",
    [
        (1, ("--model", "rescal", "--output", "model")),  # values of several lengths
        (3, ("--management", "classic", "--workers", 2)),
        (3, ("--management", "lapse2", "--workers", 2)),
        (2, ("--replicate", 20, "--sync-triples", 32)),
    ],
)
def test_adam_by_the_server(languages, ranks, options, tmp_path):
    options = [tmp_path / each if each == "model" else each for each in options]
    result = result_of(run_app("kge", ranks, "--dataset", languages, *SMALL, *ADAM, *options, env=APART))
    assert result["mrr"] > 0.7
    if tmp_path / "model" in options:
        shapes = [np.load(tmp_path / "model" / f"{name}.npy").shape[1:] for name in ("entities", "relations")]
        assert shapes == [(16,), (16, 16)]


def test_adam_with_all_entities_gives_the_same_on_any_ranks_and_workers(languages):
    jobs = [(1, 1, {}), (1, 2, {}), (3, 2, APART), (2, 1, {})]
    results = [
        result_of(run_app("kge", ranks, "--dataset", languages, *SMALL, *ALL, *ADAM, "--workers", workers, env=env))
        for ranks, workers, env in jobs
    ]
    assert results[0]["mrr"] > 0.7
    for result in results:
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-3)
        assert result["mrr"] == pytest.approx(results[0]["mrr"], abs=0.02)


def test_a_run_that_was_cut_goes_on_with_the_best_model_so_far(languages, tmp_path):
    """By another number of ranks; that there are more epochs than `--epochs` says is known again."""
    part = ("--dataset", languages, *SMALL, "--epochs", 2, "--min-triples", 10**10, "--output", tmp_path)
    cut = result_of(run_app("kge", 1, *part, "--checkpoint-every", 10, "--max-runtime", 3))
    assert (tmp_path / "checkpoint-best" / "CURRENT").exists()
    resumed = result_of(run_app("kge", 2, *part, "--resume", "--max-runtime", 4))
    assert resumed["resumed_from"] == cut["epochs"] > 0
    assert resumed["epochs"] > cut["epochs"]
    assert cut["mrr"] > 0.7 < resumed["mrr"]


def test_a_search_takes_the_best_on_the_validation_triples(languages, tmp_path):
    results = tmp_path / "results.json"
    job = run_app("kge", 2, "--dataset", languages, *SMALL, "--epochs", 6, "--search", 3, "--search-results", results)
    trials = json.loads(results.read_text())["trials"]
    assert [trial["epochs"] for trial in trials] == [2, 2, 2, 6]
    best = max(trials[:3], key=lambda trial: trial["score"])
    assert (
        trials[3]["options"] == best["options"] and f"--lr {best['options']['lr']} " in job.stderr.split("chosen: ")[1]
    )
    assert result_of(job)["epochs"] == 6


def test_metrics_split_the_time_and_tell_the_quality(languages, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    page = tmp_path / "report.html"
    # Without a lookahead every epoch has to wait for values.
    files = ("--metrics", metrics, "--report", page)
    job = run_app("kge", 2, "--dataset", languages, *SMALL, "--replicate", 10, "--lookahead", 0, *files, env=APART)
    result = result_of(job)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 41))
    assert [line["epoch"] for line in lines if "mrr" in line] == [10, 20, 30, 40]
    check_page(page, result, ["loss", "mrr", "the most used keys"])
    assert lines[-1]["loss"] == result["loss"] < lines[0]["loss"]
    for line in lines:
        assert line["time"]["compute"] > 0 and line["time"]["waiting_for_values"] > 0
        assert (line["time"]["evaluation"] > 0) == ("mrr" in line)
        assert line["stats"]["pushed_keys"] == line["stats"]["pulled_keys"] > 0
    assert "accesses local to the rank" in job.stderr


def test_classic_does_not_localize_and_one_rank_does_not_replicate(languages, tmp_path):
    for ranks, management, name in ((2, "classic", "localize_keys"), (1, "lapse2", "replica_syncs")):
        metrics = tmp_path / f"{ranks}.jsonl"
        result_of(
            run_app(
                "kge",
                ranks,
                "--dataset",
                languages,
                "--metrics",
                metrics,
                *SMALL,
                "--epochs",
                2,
                "--management",
                management,
            )
        )
        assert json.loads(metrics.read_text().splitlines()[0])["stats"][name] == 0


@pytest.mark.parametrize(
    "options", [("--combine", "adagrad"), ("--combine", "sum", "--wire", "exact", "--sync-triples", 48)]
)
def test_ranks_that_share_no_memory_have_replicas_of_all_values(languages, tmp_path, options):
    metrics = tmp_path / "metrics.jsonl"
    result = result_of(run_app("kge", 3, "--dataset", languages, *SMALL, "--metrics", metrics, *options, env=APART))
    assert result["mrr"] > 0.7
    for stats in (json.loads(line)["stats"] for line in metrics.read_text().splitlines()):
        assert stats["localize_keys"] == 0 and stats["pulled_keys"] == stats["pulled_local"]
        assert stats["replica_syncs"] > 0


@pytest.mark.parametrize(
    "model, env, more",
    [("complex", {}, ()), ("complex", APART, ()), ("rescal", {}, ()), ("rescal", APART, ("--num-negs-per-pos", "all"))],
)
def test_the_output_scores_as_the_model_does(languages, tmp_path, model, env, more):
    """Plain NumPy on the files ranks the test triples as the RESULT line says; replicas are equal by then."""
    options = ("--dataset", languages, *SMALL, "--eval-every", 0, "--output", tmp_path / "m", "--model", model, *more)
    result = result_of(run_app("kge", 2, *options, env=env))
    entities, relations = (np.load(tmp_path / "m" / f"{name}.npy") for name in ("entities", "relations"))
    ids = {
        stem: {name: int(i) for i, name in (line.split("\t") for line in path.read_text().splitlines())}
        for stem in ("entities", "relations")
        for path in [tmp_path / "m" / f"{stem}.tsv"]
    }
    dataset = data.read(languages)
    assert list(ids["entities"]) == dataset.entities and list(ids["relations"]) == dataset.relations
    assert json.loads((tmp_path / "m" / "model.json").read_text())["mrr"] == result["mrr"]
    assert not list((tmp_path / "m").glob("*.part"))
    has_inverse = (tmp_path / "m" / "inverse_relations.npy").exists()
    assert has_inverse == (model == "complex" or bool(more))
    inverse = np.load(tmp_path / "m" / "inverse_relations.npy") if has_inverse else relations

    def answers(entity, relation, is_inverse):
        vector, matrix = entities[entity], (inverse if is_inverse else relations)[relation]
        if model == "rescal":
            return entities @ (matrix @ vector if is_inverse and not has_inverse else vector @ matrix)
        vector, matrix, all_vectors = (a[..., :8] + 1j * a[..., 8:] for a in (vector, matrix, entities))
        return ((vector * matrix) @ all_vectors.conj().T).real

    everything = {tuple(triple) for triple in dataset.everything().tolist()}
    reciprocals = []
    trained = Model.load(tmp_path / "m")
    for s, r, o in dataset.test.tolist():
        np.testing.assert_allclose(trained.scores([s], [r], [o]), [answers(s, r, False)[o]], rtol=1e-4, atol=1e-5)
        assert trained.subjects([r], [o], 1)[0].scores[0] == pytest.approx(answers(o, r, True).max(), rel=1e-4)
        for given, target, is_inverse in ((s, o, False), (o, s, True)):
            scores = answers(given, r, is_inverse)
            better = sum(
                scores[e] > scores[target]
                for e in range(len(scores))
                if e != target and ((e, r, o) if is_inverse else (s, r, e)) not in everything
            )
            reciprocals.append(1 / (1 + better))
    assert np.mean(reciprocals) == pytest.approx(result["mrr"], abs=1e-3)


def test_the_best_model_is_kept_and_patience_ends_early(languages, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    job = run_app(
        "kge",
        3,
        "--dataset",
        languages,
        *SMALL,
        "--epochs",
        400,
        "--eval-every",
        2,
        "--patience",
        2,
        "--metrics",
        metrics,
        "--lr",
        0.3,
        "--output",
        tmp_path,
    )
    result = result_of(job)
    assert not (tmp_path / "checkpoint-best").exists()
    found = [line for line in map(json.loads, metrics.read_text().splitlines()) if "mrr" in line]
    best = max(range(len(found)), key=lambda i: found[i]["mrr"])
    assert result["epochs"] < 400 and best == len(found) - 3
    assert f"the best model is that of epoch {found[best]['epoch']}" in job.stderr


def test_max_runtime_ends_early_and_saves(languages, tmp_path):
    result = result_of(
        run_app(
            "kge", 2, "--dataset", languages, *SMALL, "--epochs", 1_000_000, "--max-runtime", 3, "--output", tmp_path
        )
    )
    assert result["epochs"] < 1_000_000
    assert (tmp_path / "entities.npy").exists()


@pytest.mark.parametrize("negatives", [32, "all"])
def test_more_workers_than_triples(tmp_path, negatives):
    for name, text in (("train", "a\tr\tb\n"), ("valid", ""), ("test", "")):
        (tmp_path / f"{name}.txt").write_text(text)
    options = ("--dataset", tmp_path, *SMALL, "--epochs", 2, "--num-negs-per-pos", negatives)
    result = result_of(run_app("kge", 2, *options, "--workers", 2))
    assert result["mrr"] is None and result["loss"] > 0


@pytest.mark.parametrize("ranks", [1, 3])
def test_errors_are_said_once_and_end_the_job(tmp_path, ranks):
    missing = run_app("kge", ranks, "--dataset", tmp_path / "none", timeout=30)
    (tmp_path / "train.txt").write_text("a\tr\tb\na\tb\n")
    for name in ("valid", "test"):
        (tmp_path / f"{name}.txt").write_text("")
    bad = run_app("kge", ranks, "--dataset", tmp_path, timeout=30)
    for job, text in ((missing, "not a folder"), (bad, "train.txt:2:")):
        assert job.returncode != 0 and not job.timed_out
        assert job.stderr.count(text) == 1
        assert "Traceback" not in job.stderr


def test_an_odd_dimension_of_complex_vectors(languages):
    job = run_app("kge", 1, "--dataset", languages, "--dim", 7)
    assert job.returncode != 0 and "even number" in job.stderr and "Traceback" not in job.stderr


@pytest.mark.deadline(150)
def test_the_default_graph_is_extracted_once_and_cached(tmp_path):
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    options = ("--dim", 32, "--eval-every", 0, "--no-progress")
    first = run_app("kge", 2, *options, "--epochs", 6, env=env)
    rule = float(first.stderr.partition("has MRR ")[2].partition(" ")[0])
    assert result_of(first)["mrr"] > 0.1 and 0.05 < rule < 0.5
    assert first.stderr.count("extracted the graph") == 1
    assert "json imports ?" in first.stdout
    second = run_app("kge", 1, *options, "--epochs", 1, env=env)
    result_of(second)
    assert "extracted earlier" in second.stderr


@pytest.mark.skipif(not REAL, reason="LAPSE_DATA names no folder with fb15k-237 in it")
@pytest.mark.deadline(1000)
@pytest.mark.parametrize("model, target", [("complex", 0.32), ("rescal", 0.30)])
def test_fb15k_237(model, target):
    result = result_of(
        run_app("kge", 2, "--dataset", Path(REAL) / "fb15k-237", "--model", model, "--no-progress", timeout=950)
    )
    assert result["mrr"] >= target
