"""Word vectors, end to end: a small world with a known answer, errors, formats, the benchmark."""

import gzip
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app import NUM_TOPICS, TOPIC_WORDS, result_of, run_app, write_topics
from lapse.apps._shared.metrics import local_share
from lapse.apps.word2vec import model_io
from lapse.apps.word2vec.synthetic import Recipe
from lapse.apps.word2vec.trained import Model
from lapse.base.word_vectors import read_vectors
from pages import check_page

SMALL = ("--dim", 16, "--epochs", 5, "--sample", 0, "--alpha", 0.05, "--no-progress")
KEYS = {"app", "ranks", "workers", "epochs", "resumed_from", "seconds_per_epoch", "loss", "vocab", "words_per_second"}
OBJECTIVE = Path(__file__).parents[2] / "benchmarks" / "sgns_objective.py"


@pytest.fixture(scope="module")
def topics(tmp_path_factory):
    return write_topics(tmp_path_factory.mktemp("corpus") / "topics.txt")


def share_of_neighbours_of_the_same_topic(folder):
    words, vectors = read_vectors(next(folder.glob("vectors.[bt]*")))
    model = Model.load(folder)
    assert list(model.words) == words
    np.testing.assert_array_equal(model.vectors, vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = similarity.argmax(axis=1)
    same = [words[i].split("w")[0] == words[j].split("w")[0] for i, j in enumerate(nearest)]
    return np.mean(same)


@pytest.mark.parametrize(
    "ranks, workers, management, sg",
    [
        (1, 1, "lapse", 0),
        (1, 2, "classic", 1),
        (3, 1, "classic", 0),
        (3, 2, "lapse", 1),
        (8, 1, "lapse2", 1),
        (2, 3, "lapse2", 0),
    ],
)
def test_words_of_a_topic_end_up_together(topics, tmp_path, ranks, workers, management, sg):
    result = result_of(
        run_app(
            "word2vec",
            ranks,
            "--corpus",
            topics,
            "--output",
            tmp_path,
            *SMALL,
            "--workers",
            workers,
            "--management",
            management,
            "--sg",
            sg,
        )
    )
    assert set(result) >= KEYS
    assert (result["ranks"], result["workers"], result["epochs"]) == (ranks, workers, 5)
    assert result["vocab"] == NUM_TOPICS * TOPIC_WORDS
    assert result["resumed_from"] is None
    assert share_of_neighbours_of_the_same_topic(tmp_path) > 0.95


def test_the_loss_hardly_depends_on_the_number_of_ranks(topics):
    losses = [result_of(run_app("word2vec", n, "--corpus", topics, *SMALL))["loss"] for n in (1, 3, 8)]
    assert max(losses) / min(losses) < 1.03


def test_one_worker_repeats_itself(topics):
    one, other = (result_of(run_app("word2vec", 1, "--corpus", topics, *SMALL))["loss"] for _ in range(2))
    assert one == other


def test_metrics_have_a_line_per_epoch_with_its_counters(topics, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    result = result_of(
        run_app(
            "word2vec",
            3,
            "--corpus",
            topics,
            "--metrics",
            metrics,
            *SMALL,
            "--replicate",
            60,
            "--report",
            tmp_path / "report.html",
            env={"LAPSE_SHARED_MEMORY": "0"},
        )
    )
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[1]["loss"] < lines[0]["loss"]
    assert lines[-1]["loss"] == result["loss"]
    for line in lines:
        assert line["seconds"] > 0
        assert line["stats"]["localize_keys"] > 0
        assert line["stats"]["pushed_keys"] == line["stats"]["pulled_keys"] > 0
        assert 0 < line["stats"]["sampled_keys"] < 5 * line["pairs"]  # pairs of a word share their negatives
    captions = ["loss", "words per second", "share of accesses, by rank", "messages of all epochs (bytes)"]
    page = check_page(tmp_path / "report.html", result, [*captions, "the most used keys"])
    for line, epoch in zip(lines, page.data["epochs"], strict=True):
        total = {name: sum(rank["counters"][name] for rank in epoch["ranks"]) for name in line["stats"]}
        assert total["pulled_keys"] == line["stats"]["pulled_keys"]
        assert total["relocations_in"] == pytest.approx(line["stats"]["relocations_in"], rel=0.01)  # some arrive late
        between = np.array([rank["bytes_sent_to"] for rank in epoch["ranks"]])
        assert between.shape == (3, 3) and not between.diagonal().any() and (between.sum(0) > 0).all()
        assert between.sum() == pytest.approx(line["stats"]["bytes_sent"], rel=0.01)  # counting sends messages, too
        assert len(epoch["owners"]) == 24 and set(epoch["owners"]) <= {0, 1, 2}


def test_each_pair_can_have_negatives_of_its_own(topics, tmp_path):
    line = stats_of_one_epoch(tmp_path, 2, "--corpus", topics, "--negatives-per", "pair")
    assert line["stats"]["sampled_keys"] == 5 * line["pairs"]


def test_classic_does_not_localize(topics, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    result_of(run_app("word2vec", 2, "--corpus", topics, "--metrics", metrics, *SMALL, "--management", "classic"))
    assert json.loads(metrics.read_text().splitlines()[0])["stats"]["localize_keys"] == 0


def write_parts(path, has_own_words, words=40, sentences=600):
    """A text in three parts, each with words of its own, or all with the same ones."""
    rng = np.random.default_rng(1)
    lines = []
    for part in range(3):
        names = [f"{'abc'[part] if has_own_words else 'x'}{i}" for i in range(words)]
        lines += [" ".join(rng.choice(names, 10)) for _ in range(sentences)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("has_own_words", [True, False])
def test_without_replicas_what_one_rank_uses_is_relocated_and_what_all_use_is_not(tmp_path, has_own_words):
    text = write_parts(tmp_path / "text", has_own_words)
    options = ("--corpus", text, "--management", "lapse", "--negative", 0, "--dim", 8)
    stats = stats_of_one_epoch(tmp_path, 3, *options, env={"LAPSE_SHARED_MEMORY": "0"})["stats"]
    if has_own_words:
        assert stats["relocations_in"] >= 0.5 * 2 * 3 * 40  # a third of the vectors are at home already
        assert share(stats, "pulled") > 0.95
    else:
        assert stats["localize_keys"] == 0 and share(stats, "pulled") < 0.5


def stats_of_one_epoch(tmp_path, ranks, *options, env=None):
    metrics = tmp_path / "metrics.jsonl"
    job = run_app("word2vec", ranks, "--metrics", metrics, "--no-progress", "--epochs", 1, *options, env=env)
    result_of(job)
    assert job.stderr.count("accesses local to the rank: ") == 1
    return json.loads(metrics.read_text().splitlines()[0])


def share(stats, name):
    return stats[f"{name}_local"] / stats[f"{name}_keys"]


@pytest.mark.deadline(150)
def test_the_default_text_is_almost_always_local(tmp_path):
    """Each rank its own memory, 4 ranks, by the defaults; and no more than a tenth is replicated."""
    env = {"LAPSE_SHARED_MEMORY": "0"}
    classic, ours = (
        stats_of_one_epoch(tmp_path, 4, "--management", management, env=env) for management in ("classic", "lapse2")
    )
    assert classic["pairs"] == ours["pairs"]
    classic, ours = classic["stats"], ours["stats"]
    assert local_share(ours) > 0.99
    assert local_share(classic) < 0.4
    assert 5 * ours["messages_sent"] < classic["messages_sent"]
    assert 2 * ours["bytes_sent"] < classic["bytes_sent"]


@pytest.mark.parametrize("scheme", ["naive", "preloc", "pool", "local"])
def test_every_sampling_scheme_trains(topics, tmp_path, scheme):
    result = result_of(
        run_app(
            "word2vec",
            3,
            "--corpus",
            topics,
            "--output",
            tmp_path,
            *SMALL,
            "--sampling-scheme",
            scheme,
            "--sampling-reuse",
            4,
            "--sampling-postpone",
            "--replicate",
            60,
        )
    )
    assert result["loss"] > 0
    assert share_of_neighbours_of_the_same_topic(tmp_path) > 0.95


def test_samples_of_the_local_scheme_are_local_and_replicas_are_synchronized_by_work(topics, tmp_path):
    line = stats_of_one_epoch(
        tmp_path,
        3,
        "--corpus",
        topics,
        "--sample",
        0,
        "--replicate",
        60,
        "--sync-words",
        2000,
        "--sampling-scheme",
        "local",
        env={"LAPSE_SHARED_MEMORY": "0"},
    )
    stats = line["stats"]
    assert stats["sampled_local"] > 0.9 * stats["sampled_keys"] > 0  # a rank may own none of so few
    # 20,000 words: in each 2,000 at least one round of each rank
    assert stats["replica_syncs"] > 0.9 * 3 * 20_000 / 2000
    seldom = stats_of_one_epoch(
        tmp_path, 3, "--corpus", topics, "--sample", 0, "--replicate", 60, "--sync-words", 8000
    )["stats"]
    assert seldom["replica_syncs"] < stats["replica_syncs"] / 2


def test_the_loss_does_not_depend_on_the_speed_of_the_kernel(topics):
    fast, slow = (
        result_of(run_app("word2vec", 4, "--corpus", topics, *SMALL, "--slow-down", times))["loss"] for times in (1, 5)
    )
    assert abs(slow / fast - 1) < 0.02


def test_gzip_and_plain_text_give_the_same_vocabulary(topics, tmp_path):
    packed = tmp_path / "topics.txt.gz"
    packed.write_bytes(gzip.compress(topics.read_bytes()))
    for path, folder in ((topics, tmp_path / "plain"), (packed, tmp_path / "packed")):
        result_of(run_app("word2vec", 2, "--corpus", path, "--output", folder, "--binary", *SMALL))
    counts = [model_io.read_counts(tmp_path / name / "vocab.txt") for name in ("plain", "packed")]
    assert counts[0] == counts[1]
    written = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert written == ["context.bin", "vectors.bin", "vectors.npy", "vocab.txt"]


def test_a_folder_is_trained_as_one_text_with_phrases(topics, tmp_path):
    folder, model = tmp_path / "texts", tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    lines = topics.read_text().replace("t0w1 ", "new york ").splitlines(keepends=True)
    (folder / "a.txt").write_text("".join(lines[:500]))
    (folder / "more" / "b.gz").write_bytes(gzip.compress("".join(lines[500:]).encode()))
    options = ("--output", model, "--checkpoint-every", 2, "--phrases", "--phrases-threshold", 50)
    job = run_app("word2vec", 3, "--corpus", folder / "a.txt", folder / "more", *SMALL, *options)
    assert result_of(job)["vocab"] == NUM_TOPICS * TOPIC_WORDS + 1  # t0w1 remains at the end of lines
    counts = model_io.read_counts(model / "vocab.txt")
    assert "york" not in counts and counts["new_york"] == "".join(lines).count("new york")
    again = run_app("word2vec", 2, "--output", model, "--resume")
    assert result_of(again) == result_of(job)


@pytest.fixture(scope="module")
def trained(topics, tmp_path_factory):
    """A model and its result."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, result_of(run_app("word2vec", 1, "--corpus", topics, "--output", folder, *SMALL, "--binary"))


@pytest.mark.parametrize("ranks, kind", [(3, "folder"), (1, "vectors.bin"), (2, "vectors.npy")])
def test_a_training_continues_from_vectors(topics, trained, tmp_path, ranks, kind):
    """The text of the second training lacks the first words and has a new one."""
    (first, result), second = trained, tmp_path / "second"
    text = tmp_path / "text.txt"
    lines = topics.read_text().replace("t0w5", "new").splitlines(keepends=True)
    text.write_text("".join(line for line in lines if not line.startswith("t1")))
    start = first if kind == "folder" else first / kind
    options = ("--epochs", 1, "--no-progress", "--sample", 0, "--output", second, "--start-vectors", start)
    job = run_app("word2vec", ranks, "--corpus", text, *options)
    found = result_of(job)
    old, new = Model.load(first), Model.load(second)
    assert set(new.words) == {*old.words, "new"}
    absent = [word for word in old.words if word.startswith("t1w") or word == "t0w5"]
    assert len(absent) == TOPIC_WORDS + 1
    for word in absent:
        np.testing.assert_array_equal(new.vector(word), old.vector(word))
    assert not np.array_equal(new.vector("t2w1"), old.vector("t2w1"))
    assert new.similarity("t2w1", "t2w2") > 0.5
    if kind == "folder":  # the context vectors, too; from the start the loss of an epoch is twice as large
        assert found["loss"] < 1.3 * result["loss"]
    if kind == "vectors.npy":
        wrong = run_app("word2vec", ranks, "--corpus", text, *options, "--dim", 8)
        assert wrong.returncode == 1 and wrong.stderr.count("have 16 numbers: omit --dim") == 1


def test_more_workers_than_sentences(tmp_path):
    corpus = tmp_path / "tiny.txt"
    corpus.write_text("a b a b a b a b\n")
    result = result_of(run_app("word2vec", 3, "--corpus", corpus, "--workers", 2, *SMALL, "--min-count", 1))
    assert result["vocab"] == 2
    assert result["loss"] > 0


def test_a_text_without_pairs_has_no_loss(tmp_path):
    corpus = tmp_path / "single.txt"
    corpus.write_text("a\nb\na\n")
    result = result_of(run_app("word2vec", 2, "--corpus", corpus, *SMALL, "--min-count", 1))
    assert result["loss"] is None


def test_bad_bytes_are_reported_once(tmp_path):
    corpus = tmp_path / "bad.txt"
    corpus.write_bytes(b"a b c\n" * 20 + b"a \xff b\n" + b"a b c\n" * 20)
    job = run_app("word2vec", 3, "--corpus", corpus, *SMALL, "--min-count", 1)
    result_of(job)
    assert job.stderr.count(f"{corpus}:21: bytes that are not UTF-8") == 1


def test_max_runtime_ends_early_and_saves(topics, tmp_path):
    result = result_of(
        run_app(
            "word2vec", 2, "--corpus", topics, "--output", tmp_path, *SMALL, "--epochs", 100_000, "--max-runtime", 4
        )
    )
    assert result["epochs"] < 100_000
    assert (tmp_path / "vectors.txt").exists()


@pytest.mark.parametrize("ranks", [1, 3])
def test_errors_are_said_once_and_end_the_job(tmp_path, ranks):
    missing = run_app("word2vec", ranks, "--corpus", tmp_path / "none.txt", timeout=30)
    assert missing.returncode != 0 and not missing.timed_out
    assert missing.stderr.count("none.txt") == 1
    (tmp_path / "empty.txt").write_text("")
    empty = run_app("word2vec", ranks, "--corpus", tmp_path / "empty.txt", timeout=30)
    assert empty.returncode != 0 and not empty.timed_out
    assert empty.stderr.count("empty.txt is empty") == 1
    assert "Traceback" not in missing.stderr + empty.stderr


def test_an_output_folder_that_cannot_be_made(topics, tmp_path):
    (tmp_path / "file").write_text("")
    job = run_app("word2vec", 2, "--corpus", topics, "--output", tmp_path / "file" / "x", *SMALL)
    assert job.returncode != 0 and not job.timed_out
    assert "epoch 1" not in job.output


@pytest.mark.deadline(150)
def test_the_default_text_is_extracted_once_and_cached(tmp_path):
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    first = run_app("word2vec", 2, "--epochs", 1, "--no-progress", env=env)
    assert result_of(first)["vocab"] > 2000
    assert first.stderr.count("extracted the Python documentation") == 1
    second = run_app("word2vec", 2, "--epochs", 1, "--no-progress", env=env)
    assert result_of(second)["vocab"] == result_of(first)["vocab"]
    assert "extracted earlier" in second.stderr


@pytest.mark.deadline(150)
def test_the_demo_shows_neighbours_and_a_table():
    job = run_app("word2vec.demo", 2, "--epochs", 1, timeout=140)
    result_of(job)
    for word in ("thread", "socket", "exception", "float", "directory", "classic", "lapse", "lapse2"):
        assert f"\n  {word} " in job.stdout


def test_objective_prefers_the_trained_model(topics, tmp_path, capsys):
    held_out = write_topics(tmp_path / "held_out.txt", sentences=100, seed=1)
    values = []
    for epochs in (1, 20):
        folder = tmp_path / f"{epochs}"
        result_of(run_app("word2vec", 1, "--corpus", topics, "--output", folder, *SMALL, "--epochs", epochs))
        runpy.run_path(str(OBJECTIVE))["main"]([str(folder), str(held_out)])
        values.append(json.loads(capsys.readouterr().out))
    assert values[0]["pairs"] == values[1]["pairs"] > 0
    assert values[1]["objective"] < values[0]["objective"]
    assert 0 < values[1]["standard_error"] < 0.1


def test_the_techniques_are_compared(topics, tmp_path):
    """The script, on a small text: each technique has an objective near that of one rank."""
    script = OBJECTIVE.with_name("compare_techniques.py")
    options = (
        "--corpus",
        topics,
        "--ranks",
        2,
        "--epochs",
        2,
        "--only",
        "classic",
        "lapse",
        "--json",
        tmp_path / "rows",
    )
    subprocess.run([sys.executable, script, *map(str, options)], check=True, timeout=60)
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["technique"] for row in rows[-2:]] == ["classic", "lapse"]
    assert max(row["objective"] for row in rows) < 1.1 * min(row["objective"] for row in rows)


def test_many_ranks_do_not_diverge_at_a_high_rate(topics):
    """Without regard for what is late, and with a curvature from few values, it was 15 times as bad as one rank."""
    script = OBJECTIVE.with_name("many_ranks.py")
    options = ("--ranks", 16, "--alpha", 0.1, "--sample", 0, "--dim", 32, "--epochs", 3, "--sync-words", 100_000)
    command = [sys.executable, script, topics, *map(str, options)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    worse = [float(line.split()[-1].removesuffix("%")) for line in shown.splitlines()]
    assert len(worse) == 2 and worse[1] < 15


def test_synthetic_text_is_the_same_on_any_number_of_ranks_and_is_learnt(tmp_path):
    made = ("--synthetic-words", 500, "--synthetic-length", 60_000, "--min-count", 5, "--dim", 16, "--no-progress")
    folders = [tmp_path / str(ranks) for ranks in (1, 3)]
    for ranks, folder in zip((1, 3), folders):
        result = result_of(run_app("word2vec", ranks, *made, "--epochs", 3, "--output", folder))
        assert 450 < result["vocab"] <= 500
    counts = [model_io.read_counts(folder / "vocab.txt") for folder in folders]
    assert counts[0] == counts[1]
    for folder in folders:
        words, vectors = read_vectors(folder / "vectors.txt")
        number = {int(word[1:]): i for i, word in enumerate(words)}
        recipe = Recipe(words=500, length=60_000)
        topical = [word for word in range(recipe.common, 200) if word in number]
        topics = recipe.topic_of(np.array(topical))
        unit = vectors[[number[word] for word in topical]]
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        alike = unit @ unit.T
        same = topics[:, None] == topics[None, :]
        assert alike[same & ~np.eye(len(topical), dtype=bool)].mean() > alike[~same].mean() + 0.2


@pytest.mark.parametrize(
    "options, message",
    [
        (("--corpus", "x", "--synthetic-words", 5), "exclude each other"),
        (("--synthetic-length", 5), "requires --synthetic-words"),
        (("--synthetic-words", 5, "--synthetic-length", 3), "choose a lower --min-count"),
    ],
)
def test_synthetic_text_has_options_that_belong_together(options, message):
    job = run_app("word2vec", 1, *options)
    assert job.returncode == 1 and message in job.stderr
