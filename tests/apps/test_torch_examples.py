"""The examples with PyTorch, as a user starts them: as good as PyTorch alone, and resumed."""

import gzip
import random
from pathlib import Path

import pytest

from app import result_of
from launch import mpirun

pytest.importorskip("torch", reason="needs PyTorch, which is not installed: pip install 'lapse[torch]'")

pytestmark = pytest.mark.deadline(200)  # every rank imports PyTorch first, seconds each on a busy machine
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CLICKS = ("--examples", 40_000, "--rows", 100_000)
LINKS = ("--entities", 300, "--triples", 12_000, "--epochs", 10)


def run(name, ranks, *options, memory="1"):
    args = [str(EXAMPLES / name / "train.py"), *map(str, options)]
    return mpirun(ranks, args, timeout=120, env={"OMP_NUM_THREADS": "1", "LAPSE_SHARED_MEMORY": memory})


@pytest.fixture(scope="module")
def plain():
    """What PyTorch alone reaches."""
    return {
        "click_through": result_of(run("click_through", 1, *CLICKS, "--plain")),
        "link_prediction": result_of(run("link_prediction", 1, *LINKS, "--plain")),
    }


@pytest.mark.parametrize("ranks, memory", [(1, "1"), (3, "0")])
def test_clicks_are_predicted_as_well_as_by_pytorch(ranks, memory, plain):
    result = result_of(run("click_through", ranks, *CLICKS, memory=memory))
    assert result["workers"] == ranks and result["examples_per_second"] > 0
    assert 0.7 < plain["click_through"]["auc"] < result["best_auc"]
    assert abs(result["auc"] - plain["click_through"]["auc"]) < 0.003, "of 40,000 examples; 0.0015 of more"
    assert 0 < result["log_loss"] < 0.69


def test_links_are_predicted_about_as_well_as_by_pytorch(plain):
    result = result_of(run("link_prediction", 3, *LINKS, memory="0"))
    assert result["workers"] == 3 and result["triples_per_second"] > 0
    assert plain["link_prediction"]["mrr"] > 0.2, "that of chance is 0.02"
    assert result["mrr"] > 0.8 * plain["link_prediction"]["mrr"], "so few triples give very different figures by seed"


def test_a_training_is_resumed_on_other_ranks(tmp_path):
    """That of either example: they share the loop."""
    options = [*LINKS, "--output", tmp_path / "model"]
    first = result_of(run("link_prediction", 2, *options, "--epochs", 1))
    assert first["resumed_from"] is None
    second = result_of(run("link_prediction", 1, *options, "--epochs", 2, "--resume"))
    assert second["resumed_from"] == 1
    again = result_of(run("link_prediction", 1, *options, "--epochs", 2, "--resume"))
    assert again["resumed_from"] == 2 and again["mrr"] == second["mrr"]


def write_log(path, lines, damaged=False):
    rng = random.Random(0)
    with gzip.open(path, "wt") as file:
        for _ in range(lines):
            category = rng.randrange(8)
            dense = [str(rng.randrange(100)) if rng.random() < 0.9 else "" for _ in range(13)]
            fields = [f"{category if field == 0 else rng.randrange(1000):08x}" for field in range(25)]
            last = "" if rng.random() < 0.5 else "68fd1e64"
            file.write("\t".join([str(int(category < 4)), *dense, *fields, last]) + "\n")
        file.write("0\t1\n" if damaged else "")
    return path


def test_clicks_are_read_in_the_format_of_criteo(tmp_path):
    options = ("--rows", 10_000, "--batch", 64, "--epochs", 2)
    job = run("click_through", 2, "--data", write_log(tmp_path / "log.gz", 3000), *options, "--loader-workers", 1)
    result = result_of(job)
    assert result["auc"] > 0.95 and result["best_auc"] is None
    job = run("click_through", 1, "--data", write_log(tmp_path / "bad.gz", 10, damaged=True))
    assert job.returncode != 0 and "bad.gz, line 11 has 2 columns, but needs 40" in job.output


def test_graphs_are_read_from_files(tmp_path):
    for split, numbers in (("train", range(2, 60)), ("test", range(2))):
        lines = (f"person{n % 20}\t{'likes' if n % 3 else 'knows'}\tthing{n % 5}\n" for n in numbers)
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    assert result_of(run("link_prediction", 2, "--graph", tmp_path, "--epochs", 2))["mrr"] > 0
    (tmp_path / "test.txt").write_text("person1 likes thing1\n")
    job = run("link_prediction", 1, "--graph", tmp_path)
    assert job.returncode != 0 and "test.txt, line 1 has 1 columns, but needs 3, separated by tabs" in job.output
