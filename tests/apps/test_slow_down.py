"""`--slow-down`: computing takes so many times its CPU time, and nothing else does."""

import json

import pytest

from app import result_of, run_app, write_languages, write_topics

TIMES = 40


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options of each application by which an epoch computes for at least 5 ms."""
    folder = tmp_path_factory.mktemp("data")
    matrix = ("--rows", 2000, "--columns", 400, "--entries", 200_000, "--rank", 16)
    small = ("--no-progress", "--epochs", 2, "--dim", 16)
    return {
        "word2vec": ("--corpus", write_topics(folder / "topics.txt"), "--min-count", 1, *small),
        "kge": ("--dataset", write_languages(folder / "languages", people=600), "--batch-size", 16, *small),
        "mf": (*matrix, *small[:3]),
        "clicks": ("--examples", 65536, *small[:3]),
        "mf, plain": (*matrix, "--algorithm", "plain", *small[:3]),
    }


def times_of(app, ranks, options, folder):
    metrics = folder / "metrics.jsonl"
    job = run_app(app.partition(",")[0], ranks, *options[app], "--metrics", metrics, env={"LAPSE_SHARED_MEMORY": "0"})
    result_of(job)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {name: sum(line["time"][name] for line in lines) for name in lines[0]["time"]}, sum(
        line["seconds"] for line in lines
    )


@pytest.mark.parametrize("app", ["word2vec", "kge", "mf", "mf, plain", "clicks"])
def test_computing_takes_so_many_times_its_cpu_time(app, options, tmp_path):
    fast, _ = times_of(app, 1, options, tmp_path)
    slow, seconds = times_of(app, 1, {app: (*options[app], "--slow-down", TIMES)}, tmp_path)
    # a sleeping core may have a lower clock, and caches are cold after a sleep
    assert TIMES / 3 < slow["compute"] / fast["compute"] < 3 * TIMES
    # sleeps that are too long would be in the rest, and what is not computing is not stretched
    assert slow["compute"] > 0.85 * seconds
    assert slow["rest"] - fast["rest"] < 0.1 * seconds


@pytest.mark.parametrize("app", ["word2vec", "kge", "mf", "mf, plain", "clicks"])
def test_waiting_is_not_stretched(app, options, tmp_path):
    _, alone = times_of(app, 1, {app: (*options[app], "--slow-down", TIMES)}, tmp_path)
    split, together = times_of(app, 2, {app: (*options[app], "--slow-down", TIMES)}, tmp_path)
    assert together < 0.9 * alone
    assert split["compute"] > 0.4 * together
