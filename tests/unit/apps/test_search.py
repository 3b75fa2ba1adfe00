"""Search: rounds of halving, ranges, results that go on, and what is refused."""

import argparse
import json

import numpy as np
import pytest

from lapse.apps._shared import options, search
from lapse.apps._shared.job import AppError
from lapse.apps._shared.search import Goal, Range
from mpi4py.MPI import COMM_SELF

RANGES = {"rate": Range(0.01, 1.0), "rank": Range(1, 9, is_integer=True), "kind": Range(choices=("a", "b"))}


def parsed(*given):
    parser = options.new_parser("test", "", "")
    options.add_shared_options(parser, epochs=9, dim=100)
    search.add_options(parser, "rate", "loss")
    for name, kind, default in (("rate", float, 0.1), ("rank", int, 2), ("kind", str, "a")):
        parser.add_argument(f"--{name}", type=kind, default=default)
    return options.parse(parser, [str(option) for option in given])


class Trainer:
    """The loss is least at a rate of 0.1, and less with more epochs."""

    def __init__(self):
        self.trained = []

    def __call__(self, args):
        assert args.output is None and args.metrics is None and not args.resume
        self.trained.append((args.rate, args.epochs))
        if args.kind == "b":
            raise AppError("diverged")
        return abs(np.log(args.rate / 0.1)) + 1 / args.epochs


def choose(args, train, ranges=RANGES):
    return search.choose("test", COMM_SELF, args, ranges, Goal("loss", True), train)


@pytest.mark.parametrize(
    "epochs, trials, expected",
    [(9, 9, [1, 3, 9]), (200, 30, [22, 66, 200]), (40, 5, [13, 40]), (9, 2, [9]), (2, 9, [2])],
)
def test_rounds_take_three_times_as_many_epochs(epochs, trials, expected):
    assert search.rounds(epochs, trials) == expected


def test_the_best_of_the_last_round_is_taken_and_results_are_not_repeated(tmp_path, caplog):
    path = tmp_path / "results.json"
    args = parsed("--search", 18, "--search-results", path, "--seed", 3, "--output", tmp_path / "model")
    train = Trainer()
    found = choose(args, train)
    by_epochs = {n: [rate for rate, epochs in train.trained if epochs == n] for n in (1, 3, 9)}
    assert [len(each) for each in by_epochs.values()] == [18, 6, 2]
    assert found.kind == "a" and isinstance(found.rank, int)
    assert found.rate == min(by_epochs[9], key=lambda rate: abs(np.log(rate / 0.1)))
    assert found.epochs == 9 and found.output == tmp_path / "model"
    content = json.loads(path.read_text())
    assert len(content["trials"]) == 26 and content["search"]["ranges"]["rate"] == "0.01:1"
    assert {each["error"] for each in content["trials"]} == {None, "diverged"}
    content["trials"] = content["trials"][:20]  # as if it had been ended there
    path.write_text(json.dumps(content))
    again = Trainer()
    assert vars(choose(args, again)) == vars(found) and again.trained == train.trained[20:]
    with pytest.raises(AppError, match="with other options"):
        choose(parsed("--search", 18, "--search-results", path, "--seed", 4), again)
    path.write_text("[]")
    with pytest.raises(AppError, match="no file of a search"):
        choose(args, again)


def test_options_that_are_given_are_fixed_unless_their_ranges_are():
    train = Trainer()
    found = choose(parsed("--search", 4, "--rate", 0.3, "--kind", "a"), train)
    assert {rate for rate, _ in train.trained} == {0.3} and found.kind == "a"
    found = choose(parsed("--search", 8, "--rate", 0.3, "--search-ranges", "rate=0.05:0.2 rank=3,5"), train)
    assert 0.05 <= found.rate <= 0.2 and found.rank in (3, 5) and found.kind == "a"
    with pytest.raises(AppError, match="all options that would be searched are given"):
        choose(parsed("--search", 4, "--rate", 0.3), train, {"rate": RANGES["rate"]})


@pytest.mark.parametrize("text", ["rate", "rate=", "none=1:2", "rate=2:1", "rate=x,y", "rank=1:inf", "rate=1:2:3"])
def test_ranges_that_are_none(text):
    with pytest.raises(AppError, match="--search-ranges"):
        search.parse_ranges(parsed(), text)


def test_draws_stay_in_their_range_and_are_even_by_logarithm():
    rng = np.random.default_rng(0)
    drawn = np.array([Range(0.001, 10).draw(rng) for _ in range(2000)])
    assert drawn.min() >= 0.001 and drawn.max() <= 10
    assert np.median(drawn) == pytest.approx(0.1, rel=0.2)
    linear = np.array([Range(0, 10).draw(rng) for _ in range(2000)])
    assert np.mean(linear) == pytest.approx(5, rel=0.1)


def test_what_cannot_be_searched():
    with pytest.raises(AppError, match="--search-results requires --search N"):
        search.is_wanted(parsed("--search-results", "x"))
    with pytest.raises(AppError, match="no training has succeeded; the first one: diverged"):
        choose(parsed("--search", 2, "--search-ranges", "kind=b"), Trainer())
    assert not search.is_wanted(parsed()) and search.is_wanted(parsed("--search", 3))
    assert isinstance(parsed("--search", 3), argparse.Namespace)
