"""The page of ``--report``: figures, shares and tables of what was recorded, read back; and in a browser."""

import numpy as np
import pytest

from lapse.apps._shared import charts, report
from lapse.apps._shared.job import AppError
from lapse.apps._shared.recording import HotKeys, Recording
from pages import Page, check_page, look_at

COUNTERS = {
    "pulled_keys": 100,
    "pulled_local": 70,
    "pulled_shared": 20,
    "pulled_in_transit": 10,
    "pushed_keys": 80,
    "pushed_local": 80,
    "pushed_shared": 0,
    "pushed_in_transit": 0,
    "sampled_keys": 20,
    "sampled_local": 10,
    "relocations_in": 5,
    "replica_keys_sent": 3,
}
RESULT = {"app": "kge", "ranks": 2, "resumed_from": None, "loss": 0.123456, "name": "a<b & </script>", "mrr": 1234.5}


def recorded(epochs=3):
    times = {"compute": 1.0, "waiting_for_values": 0.5, "rest": 0.25}
    recording = Recording(hot_keys=HotKeys.of([("<b>", 4), ("c", 7), ("d", 9)], np.array([7])))
    for epoch in range(1, epochs + 1):
        ranks = [{"counters": COUNTERS, "times": times, "bytes_sent_to": [0, 10 * epoch]}]
        ranks.append({"counters": COUNTERS, "times": times, "bytes_sent_to": [7, 0]})
        recording.epochs.append({"epoch": epoch, "ranks": ranks, "owners": [epoch % 2, 0, 1]})
    return recording


@pytest.fixture
def path(tmp_path):
    history = [
        {"epoch": n, "seconds": 0.1 * n, "loss": 1 / n, "local": 0.5, "is_partial": False, "mrr": None if n == 2 else n}
        for n in (1, 2, 3)
    ]
    report.write(tmp_path / "page.html", RESULT, history, recorded())
    return tmp_path / "page.html"


def test_the_page_shows_the_result_and_what_was_recorded(path):
    page = check_page(path, RESULT, ["loss", "mrr", "seconds", "messages of all epochs (bytes)", "the most used keys"])
    assert (
        page.titles[0] == "kge on 2 ranks" and "mrr, epoch 3: 3" in page.titles and "loss, epoch 2: 0.5" in page.titles
    )
    assert "mrr, epoch 2: none" not in page.titles
    assert "rank 1, computing: 3 s" in page.titles and "rank 0, on the rank: 70 %" in page.titles
    assert report.bytes_between(recorded()) == [[0, 60], [21, 0]]


def test_shares_are_of_all_accesses():
    assert report.shares_of(COUNTERS) == [70, 10, 5, 15]  # of 200: 160 local, 20 of them shared, 10 waited
    assert report.shares_of(dict.fromkeys(COUNTERS, 0)) == [0, 0, 0, 0]


def test_a_page_of_nothing(tmp_path):
    report.write(tmp_path / "page.html", {"app": "mf", "ranks": 1, "loss": None}, [], Recording())
    assert Page(tmp_path / "page.html").result == {"app": "mf", "ranks": "1", "loss": "none"}


@pytest.mark.parametrize("low, high", [(0, 0), (1, 1), (-3, 8), (0.1, 0.1001), (1e6, 5e9), (-2e-9, 1e-9)])
def test_marks_are_round_and_inside(low, high):
    drawn = charts.lines("x", {"x": [(1, low), (2, high), (3, float("nan"))]})
    assert drawn.count("<circle") == 2 and drawn.count('class="mark"') >= 2


def test_marks_between_epochs_are_none():
    drawn = charts.lines("x", {"x": [(1, 0.5), (2, 0.25), (3, 0.125)]})
    assert ">1<" in drawn and ">3<" in drawn and ">1.5<" not in drawn


def test_a_page_that_cannot_be_written_is_refused_before_the_training(tmp_path):
    report.require(tmp_path / "page.html")
    for wrong in (tmp_path, tmp_path / "none" / "page.html"):
        with pytest.raises(AppError, match="--report"):
            report.require(wrong)


def test_a_browser_draws_it(path):
    assert look_at(path) >= 9
