"""The example of sparse logistic regression, as a user starts it."""

from pathlib import Path

import pytest

from app import result_of
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
