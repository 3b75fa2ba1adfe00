"""Sparse logistic regression, the example and the application, as a user starts them."""

import json
from pathlib import Path

import numpy as np
import pytest

from app import TIMES, result_of, run_app
from launch import mpirun

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "clicks.py"


@pytest.mark.parametrize("management", ["classic", "localize", "replicate"])
@pytest.mark.parametrize("ranks, memory", [(1, "1"), (3, "0"), (3, "1")])
def test_clicks_are_predicted_better_than_by_their_frequency(ranks, memory, management):
    args = [str(PROGRAM), "--management", management, "--examples", "65536", "--epochs", "2"]
    result = result_of(mpirun(ranks, args, timeout=60, env={"LAPSE_SHARED_MEMORY": memory}))
    assert result["ranks"] == ranks
    assert result["examples_per_second"] > 0
    assert result["loss"] < 0.53, "0.684 is what the frequency of clicks alone gives"


QUICK = ("--examples", 65536, "--epochs", 2, "--no-progress")


@pytest.fixture(scope="module")
def loss_of_one_rank():
    return result_of(run_app("clicks", 1, *QUICK))["loss"]


@pytest.mark.parametrize(
    "options",
    [("--management", "classic"), ("--management", "lapse"), (), ("--replicate", 5000), ("--wire", "bfloat16")],
    ids=lambda options: " ".join(map(str, options)),
)
def test_ranks_learn_as_much_as_one(options, loss_of_one_rank):
    result = result_of(run_app("clicks", 3, *QUICK, *options, env={"LAPSE_SHARED_MEMORY": "0"}))
    assert loss_of_one_rank < 0.53
    assert result["loss"] < 1.01 * loss_of_one_rank


def test_what_an_epoch_reports(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    run_app("clicks", 2, *QUICK, "--metrics", metrics, "--workers", 2).check()
    for epoch, line in enumerate(map(json.loads, metrics.read_text().splitlines())):
        assert line["epoch"] == epoch + 1
        assert set(line["time"]) == TIMES and line["time"]["compute"] > 0
        assert 0 < line["test_loss"] < 0.7


def test_the_model_has_a_weight_for_each_key(tmp_path):
    run_app("clicks", 2, *QUICK, "--keys", 1000, "--output", tmp_path).check()
    weights = np.load(tmp_path / "weights.npy")
    assert weights.shape == (1000,) and np.abs(weights).max() > 0.1
