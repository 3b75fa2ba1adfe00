"""Nothing grows while servers come and go; `make soak` runs longer."""

import pytest

import soak


@pytest.mark.parametrize("sharing", [1, 2])
def test_nothing_grows(sharing):
    assert soak.soak(3, 0.06, sharing) == []


@pytest.mark.parametrize("what, step", [("megabytes", 1.0), ("files", 1), ("segments", 1)])
def test_what_grows_is_named(what, step):
    laps = [{"megabytes": 70.0, "files": 20, "segments": 5} for _ in range(60)]
    assert soak.judge([laps]) == []
    for number, each in enumerate(laps):
        each[what] += number * step
    assert [line.split()[0:2] for line in soak.judge([laps])] == [["rank", "0"]]
    assert what in soak.judge([laps])[0]
