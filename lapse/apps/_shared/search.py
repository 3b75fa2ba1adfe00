"""``--search N``: choose options by random search with successive halving on a validation set.

N combinations are drawn at random from the declared ranges (Bergstra & Bengio, *Random Search for Hyper-Parameter
Optimization*, JMLR 2012) and trained for a part of the epochs; the better third of them is trained for three times as
many, from the start, so that schedules that depend on the number of epochs are those of a training of this length, and
so on up to all epochs (Jamieson & Talwalkar, *Non-stochastic Best Arm Identification and Hyperparameter Optimization*,
AISTATS 2016). Each training has all ranks. What is chosen is the best of the last round.

A file of results is written after each training; a search that finds it does not repeat what is in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lapse.apps._shared import checkpoints, job
from lapse.apps._shared.files import write_text
from lapse.apps._shared.job import AppError
from lapse.apps._shared.options import Group, positive_int

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

log = logging.getLogger(__name__)

#: Of the combinations of a round the best one in so many is trained longer, so many times.
REDUCTION = 3
#: Rounds before the last one, at most.
MOST_ROUNDS = 2
#: Keeps the draws apart from the random streams of trainings.
DISTINCT = 0x5EA7C4
#: Options that a trial does without: it writes nothing.
_WITHOUT = ("output", "checkpoint_every", "metrics", "plot", "report", "predictions", "search")

Value = float | int | str


@dataclass(frozen=True)
class Range:
    """The values that an option may have: numbers between two, even by logarithm, or some values.

    Attributes
    ----------
    low, high
        The bounds.
    choices
        Instead: the values.
    is_integer
        Whether numbers are rounded.
    """

    low: float = 0.0
    high: float = 0.0
    choices: tuple[Value, ...] = ()
    is_integer: bool = False

    def draw(self, rng: np.random.Generator) -> Value:
        """A random value; of numbers above 0 the logarithm is uniform."""
        share = rng.random()
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        if self.low > 0:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        return round(value) if self.is_integer else float(f"{value:.4g}")

    def __str__(self) -> str:
        return ",".join(map(str, self.choices)) if self.choices else f"{self.low:g}:{self.high:g}"


@dataclass(frozen=True)
class Goal:
    """What is to be found.

    Attributes
    ----------
    figure
        The name of the figure on the validation set.
    is_least
        Whether the smallest is the best; otherwise the largest.
    """

    figure: str
    is_least: bool

    def key(self, score: float | None) -> float:
        """For sorting, the best first; no score comes last."""
        if score is None or not math.isfinite(score):
            return math.inf
        return score if self.is_least else -score


@dataclass
class Trial:
    """A combination, trained for so many epochs; `score` is None if that failed, for the reason `error`."""

    number: int
    epochs: int
    options: dict[str, Value]
    score: float | None = None
    seconds: float = 0.0
    error: str | None = None


def add_options(parser: argparse.ArgumentParser, ranges: str, validation: str) -> None:
    """Add ``--search`` and what belongs to it.

    Parameters
    ----------
    ranges
        What is searched by default, in words.
    validation
        What is measured.
    """
    group = Group(parser.add_argument_group("search"))
    group.add(
        "--search",
        positive_int,
        f"before the training, choose options: train N random combinations of {ranges} for a part of the epochs, the "
        f"better third of them longer, and so on, and take the best by {validation}. Options that are given are fixed",
    )
    group.add(
        "--search-ranges RANGES",
        str,
        "what to search instead: names of options with bounds or values, such as 'regularization=0.01:1 rank=16,32,64'",
    )
    group.add(
        "--search-results FILE",
        Path,
        "write all trials into this JSON file after each of them; a search of the same kind goes on from there",
    )


def check_options(args: argparse.Namespace) -> None:
    """Raise `AppError` for options of the search without a search."""
    for name in ("search_ranges", "search_results"):
        if args.search is None and getattr(args, name) is not None:
            raise AppError(f"--{name.replace('_', '-')} requires --search N")


def is_wanted(args: argparse.Namespace) -> bool:
    """Whether to search: not if a checkpoint has the options that were found."""
    check_options(args)
    if args.search is None:
        return False
    return not (args.resume and args.output is not None and (checkpoints.folder_of(args) / "CURRENT").exists())


def choose(
    app: str,
    comm: Intracomm,
    args: argparse.Namespace,
    ranges: Mapping[str, Range],
    goal: Goal,
    train: Callable[[argparse.Namespace], float | None],
) -> argparse.Namespace:
    """The options with the best values found. Collective.

    Parameters
    ----------
    ranges
        What the application searches; options that are given are left out.
    train
        Trains with the options that it is passed and returns the score. Collective; an `AppError` counts as no score.

    Raises
    ------
    AppError
        If nothing is to be searched, no training succeeds, or there is no time left (``--max-runtime``).
    """
    searched = dict(ranges) if args.search_ranges is None else parse_ranges(args, args.search_ranges)
    searched = {name: each for name, each in searched.items() if name not in args.given or args.search_ranges}
    if not searched:
        raise AppError("--search: all options that would be searched are given; name others by --search-ranges")
    search = _Search(app, comm, args, searched, goal, train)
    best = search.run()
    if comm.rank == 0:
        log.info("%s\nchosen: %s", search.table(), _show(best.options))
    return _with(args, best.options)


class _Search:
    """A search: its rounds, and the file of its results on rank 0."""

    def __init__(
        self,
        app: str,
        comm: Intracomm,
        args: argparse.Namespace,
        ranges: Mapping[str, Range],
        goal: Goal,
        train: Callable[[argparse.Namespace], float | None],
    ) -> None:
        self._comm, self._args, self._goal, self._train = comm, args, goal, train
        self._about = {
            "app": app,
            "figure": goal.figure,
            "ranges": {name: str(each) for name, each in ranges.items()},
            "options": _comparable(args),
        }
        rng = np.random.default_rng((args.seed, DISTINCT))
        self._drawn = [{name: each.draw(rng) for name, each in ranges.items()} for _ in range(args.search)]
        self._trials: list[Trial] = job.on_rank_0(comm, self._read)

    def run(self) -> Trial:
        """Train; returns the best of the last round."""
        left = list(range(len(self._drawn)))
        for epochs in rounds(self._args.epochs, len(left)):
            done = [self._trial(number, epochs) for number in left]
            done.sort(key=lambda trial: (self._goal.key(trial.score), trial.number))
            left = [trial.number for trial in done[: -(-len(done) // REDUCTION)]]
        if done[0].score is None:
            raise AppError(f"--search: no training has succeeded; the first one: {done[0].error or 'no score'}")
        return done[0]

    def _trial(self, number: int, epochs: int) -> Trial:
        for found in self._trials:
            if (found.number, found.epochs) == (number, epochs):
                return found
        trial = Trial(number, epochs, self._drawn[number])
        begin = time.perf_counter()
        try:
            trial.score = self._train(_trial_args(self._args, trial))
        except AppError as error:  # on all ranks
            trial.error = str(error)
        if any(self._comm.allgather(job.out_of_time(self._args.max_runtime))):
            raise AppError(
                f"--max-runtime has ended the search after {len(self._trials)} trainings"
                + ("; the same command goes on" if self._args.search_results else "")
            )
        trial.seconds = self._comm.bcast(time.perf_counter() - begin)
        self._trials.append(trial)
        job.on_rank_0(self._comm, self._write)
        if self._comm.rank == 0:
            log.info("trial %d, %d epochs: %s, %s", number, epochs, self._scored(trial), _show(trial.options))
        return trial

    def _scored(self, trial: Trial) -> str:
        return f"{self._goal.figure} {'failed' if trial.score is None else format(trial.score, '.4f')}"

    def table(self) -> str:
        """All trials, those of most epochs first, then by score."""
        order = sorted(self._trials, key=lambda trial: (-trial.epochs, self._goal.key(trial.score), trial.number))
        lines = [f"{'trial':>5} {'epochs':>6} {self._goal.figure:>8} {'seconds':>8}  options"]
        for trial in order:
            score = "failed" if trial.score is None else f"{trial.score:.4f}"
            shown = _show(trial.options)
            lines.append(f"{trial.number:>5} {trial.epochs:>6} {score:>8} {trial.seconds:>8.1f}  {shown}")
        return "\n".join(lines)

    # --- the file of results

    def _read(self) -> list[Trial]:
        path: Path | None = self._args.search_results
        if path is None or not path.exists():
            return []
        try:
            content = json.loads(path.read_bytes())
            about, trials = content["search"], [Trial(**each) for each in content["trials"]]
        except (ValueError, TypeError, KeyError):
            raise AppError(
                f"--search-results {path} is no file of a search: choose another one, or remove it"
            ) from None
        if about != self._about:
            different = [name for name in self._about if about.get(name) != self._about[name]]
            raise AppError(
                f"--search-results {path} is of a search with other {' and '.join(different)}: choose another file"
            )
        log.info("%d trainings of this search are in %s", len(trials), path)
        return trials

    def _write(self) -> None:
        if self._args.search_results is not None:
            content = {"search": self._about, "trials": [asdict(trial) for trial in self._trials]}
            write_text(self._args.search_results, json.dumps(content, indent=1) + "\n")


def rounds(epochs: int, trials: int) -> list[int]:
    """The epochs of each round; the last one has all."""
    count = 0
    while count < MOST_ROUNDS and trials >= REDUCTION ** (count + 1) and epochs >= REDUCTION ** (count + 1):
        count += 1
    return [max(epochs // REDUCTION ** (count - i), 1) for i in range(count)] + [epochs]


def parse_ranges(args: argparse.Namespace, text: str) -> dict[str, Range]:
    """The ranges that ``--search-ranges`` names.

    Raises
    ------
    AppError
        For an option that does not exist, or whose values are neither numbers nor names.
    """
    found: dict[str, Range] = {}
    for part in text.split():
        name, _, values = part.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not hasattr(args, name) or not values:
            raise AppError(f"--search-ranges: {part!r} is not NAME=LOW:HIGH or NAME=A,B,C with the name of an option")
        is_integer = isinstance(getattr(args, name), int)
        try:
            if ":" in values:
                low, high = map(float, values.split(":"))
                if not low < high or not math.isfinite(high - low):
                    raise ValueError
                found[name] = Range(low, high, is_integer=is_integer)
            else:
                kind = type(getattr(args, name))
                found[name] = Range(choices=tuple(kind(value) for value in values.split(",")))
        except (TypeError, ValueError):
            raise AppError(f"--search-ranges: {part!r} does not have two bounds in order, or values") from None
    return found


def _trial_args(args: argparse.Namespace, trial: Trial) -> argparse.Namespace:
    changed = _with(args, {**trial.options, "epochs": trial.epochs})
    for name in _WITHOUT:
        if hasattr(changed, name):
            setattr(changed, name, None)
    changed.resume, changed.no_progress = False, True
    return changed


def _with(args: argparse.Namespace, values: Mapping[str, Any]) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), **values})


def _comparable(args: argparse.Namespace) -> dict:
    """What must be the same if a search goes on: the options of a training, but where it writes to."""
    options = checkpoints.encode_options(args)
    return {name: value for name, value in options.items() if name not in _WITHOUT and not name.startswith("search")}


def _show(options: Mapping[str, Value]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
