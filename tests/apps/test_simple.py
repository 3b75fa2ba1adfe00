"""The smallest application, end to end."""

import pytest

from app import result_of, run_app


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("management", ["lapse2", "lapse", "classic"])
def test_the_sums_are_exact(ranks, management):
    result = result_of(run_app("simple", ranks, "--management", management))
    assert result["app"] == "simple"
    assert result["ranks"] == ranks
    assert result["expected"] == ranks * 2 * 4
    assert result["exact"] is True


def test_options_and_output():
    job = run_app("simple", 2, "-k", 14, "-v", 5, "-i", 10, "-t", 3)
    assert result_of(job)["expected"] == 2 * 3 * 10
    assert "worker 5, iteration 9: " in job.stdout
    assert "accesses local to the rank: " in job.stdout


def test_no_progress_prints_the_result_only():
    job = run_app("simple", 2, "--no-progress")
    result_of(job)
    assert len(job.stdout.splitlines()) == 1
