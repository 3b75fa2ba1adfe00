"""What all applications share: options, progress, metrics, the ``RESULT`` line, leaving together.

Nothing here is imported from MPI or from the compiled modules at import time, so that ``--help``
answers at once and outside of MPI.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

#: When this process started, for ``--max-runtime`` (the imports before this one take 0.1 s).
PROCESS_START = time.monotonic()

log = logging.getLogger(__name__)


class AppError(Exception):
    """Something the user can mend; raised on all ranks, shown once and without a traceback."""


# --- options ---------------------------------------------------------------------------------


def positive_int(text: str) -> int:
    """For `argparse`: an integer from 1 on."""
    return _bounded(int, text, 1)


def natural_int(text: str) -> int:
    """For `argparse`: an integer from 0 on."""
    return _bounded(int, text, 0)


def positive_float(text: str) -> float:
    """For `argparse`: a finite number above 0."""
    value = _bounded(float, text, 0.0)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _bounded(kind: type, text: str, low: float):
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not value >= low:
        raise argparse.ArgumentTypeError(f"{text} is less than {low}")
    return value


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The options of a command line, and in ``given`` the names of those that were on it.

    Options with ``action="append"`` are not supported.
    """
    args = parser.parse_args(argv)
    unset = object()  # argparse leaves alone what a namespace has already, unless it is on the command line
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    args.given = frozenset(name for name, value in vars(given).items() if value is not unset)
    return args


def add_shared_options(parser: argparse.ArgumentParser, *, epochs: int | None, dim: int | None,
                       dim_names: tuple[str, ...] = ("--dim", "--vector-size"),
                       dim_help: str | None = None):
    """Add the options that every training application has; `epochs` and `dim` are defaults, None: by model.

    Where the field calls the length of a vector by another name, `dim_names` are the option's.

    Returns
    -------
    system, output
        The groups of options on the parameter server and on output, for an application's own.
    """
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive_int, default=epochs, metavar="N",
                          help=f"passes over the data (default: {epochs or 'by model'})")
    training.add_argument(*dim_names, type=positive_int, default=dim, metavar="N",
                          help=dim_help or f"length of each vector (default: {dim or 'by model'})")
    training.add_argument("--seed", type=natural_int, default=1, metavar="N",
                          help="seed of every random stream (default: %(default)s)")
    training.add_argument("--max-runtime", type=positive_float, metavar="SECONDS",
                          help="end the training at the next block when the process has run for "
                               "so long; the model is saved as usual")
    system = add_system_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, metavar="DIR",
                        help="folder for the model and for checkpoints (made where it is missing)")
    add_checkpoint_options(output)
    add_report_options(output)
    return system, output


def add_system_options(parser: argparse.ArgumentParser):
    """Add what concerns the parameter server; returns the group."""
    system = parser.add_argument_group("parameter server")
    system.add_argument("--workers", type=positive_int, default=1, metavar="N",
                        help="worker threads on each rank (default: %(default)s)")
    system.add_argument("--management", choices=("lapse2", "lapse", "classic"), default="lapse2",
                        help="how parameters are placed. classic: each stays on its home rank; "
                             "lapse: parameters move to the rank that is about to use them; "
                             "lapse2: as lapse, but those that all ranks use all the time are "
                             "replicated, and samples are drawn near (default: %(default)s)")
    return system


def add_checkpoint_options(group) -> None:
    """Add what concerns the continuation of a run."""
    group.add_argument("--checkpoint-every", type=positive_int, metavar="N",
                       help="save a checkpoint under --output every N epochs and at the end (default: only "
                            "where SIGINT, SIGTERM or --max-runtime ends the training before)")
    group.add_argument("--resume", action="store_true",
                       help="continue from the newest complete checkpoint under --output, with the options of "
                            "that run; start anew where there is none")


def add_report_options(group) -> None:
    """Add what concerns reporting."""
    group.add_argument("--metrics", type=Path, metavar="FILE",
                       help="write one JSON object per epoch, with the time and the server's counters of it")
    group.add_argument("--plot", type=Path, metavar="FILE",
                       help="draw loss, quality and locality over epochs (needs matplotlib)")
    group.add_argument("--no-progress", action="store_true", help="show no progress")


# --- leaving together ------------------------------------------------------------------------


def collectively(comm, fn: Callable, *args) -> Any:
    """Call `fn` on this rank; where it fails on any rank, raise on all of them.

    Without it, the ranks on which all went well would wait for the others forever.

    Raises
    ------
    AppError
        On every rank, with the error of the first rank that had one.
    """
    result = error = None
    try:
        result = fn(*args)
    except Exception as raised:
        log.debug("failed", exc_info=True)
        of_all = isinstance(raised, AppError) or comm.size == 1  # says itself what is wrong, wherever
        error = describe(raised) if of_all else f"rank {comm.rank}: {describe(raised)}"
    for message in comm.allgather(error):
        if message is not None:
            raise AppError(message)
    return result


def on_rank_0(comm, fn: Callable, *args) -> Any:
    """Call `fn` on rank 0 only and give its result to all; errors as in `collectively`."""
    result = collectively(comm, lambda: fn(*args) if comm.rank == 0 else None)
    return comm.bcast(result)


def describe(error: BaseException) -> str:
    """An error in a line; the kind is left out where the text speaks for itself."""
    text = str(error)
    plain = isinstance(error, OSError) or type(error).__module__.startswith("lapse.")
    return text if plain and text else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def job(comm) -> Iterator[None]:
    """Run an application's body: one message for an error, and no rank left waiting.

    An `AppError` is raised on all ranks alike, and a `lapse.RemoteError` means that another rank
    has failed and ends the job: each can end by itself. After any other error the ranks may not
    know of it: this one prints it and ends them all.
    """
    from lapse import RemoteError

    configure_logging(comm.rank)
    try:
        yield
    except AppError as error:
        if comm.rank == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except RemoteError as error:
        print(f"[{comm.rank}] ended by an error elsewhere: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception:
        print(f"error on rank {comm.rank}:\n{traceback.format_exc()}", end="", file=sys.stderr,
              flush=True)
        if comm.size == 1:
            sys.exit(1)
        time.sleep(0.5)  # time for the launcher to pass the message on
        comm.Abort(1)


def configure_logging(rank: int) -> None:
    """Rank 0 tells what it does; the others only what is wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"[{rank}] %(message)s"))
    root = logging.getLogger("lapse")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)


# --- time ------------------------------------------------------------------------------------


def out_of_time(max_runtime: float | None) -> bool:
    """Whether this process has run for `max_runtime` seconds."""
    return max_runtime is not None and time.monotonic() - PROCESS_START >= max_runtime


# --- reporting -------------------------------------------------------------------------------


class Metrics:
    """The file of ``--metrics``: one JSON object per line and epoch, written by rank 0.

    Parameters
    ----------
    path
        The file; None: write nothing.
    epoch
        Keep the lines of the epochs up to this one, which a resumed run goes on from; None: start anew.
    """

    def __init__(self, path: Path | None, epoch: int | None = None) -> None:
        self._path = path
        if path is not None:
            kept = _lines_up_to(path, epoch) if epoch is not None and path.exists() else []
            path.write_text("".join(kept), encoding="utf-8")

    def write(self, **figures) -> None:
        """Append a line; it is on disk when this returns, should the job end early."""
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")


def _lines_up_to(path: Path, epoch: int) -> list[str]:
    """The lines of complete epochs; one that a kill has cut in two is none."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            figures = json.loads(line)
        except ValueError:
            break
        if figures["epoch"] > epoch:
            break
        kept.append(line + "\n")
    return kept


def result_line(app: str, server_size: int, workers: int, **figures) -> str:
    """The last line of an application's output."""
    result = {"app": app, "ranks": server_size, "workers": workers, "resumed_from": None, **figures}
    return "RESULT " + json.dumps(result)


def local_share(stats: dict) -> float:
    """Which part of all keys pulled, pushed and sampled was there without leaving the rank."""
    keys = sum(stats[name] for name in ("pulled_keys", "pushed_keys", "sampled_keys"))
    local = sum(stats[name] for name in ("pulled_local", "pushed_local", "sampled_local"))
    return local / keys if keys else 1.0


def sum_stats(parts: Iterable[dict]) -> dict:
    """Counters of several periods, together."""
    total = Counter()
    for part in parts:
        total.update(part)
    return total


def locality_report(stats: dict, epochs: int) -> str:
    """Where parameters were found, and what was sent to have them there: what an application prints at its end.

    Parameters
    ----------
    stats
        The counters of all ranks over all epochs.
    epochs
        How many these are.
    """
    shares = ", ".join(
        f"{100 * stats[f'{name}_local'] / stats[f'{name}_keys']:.2f}% of {stats[f'{name}_keys']:,} keys {name}"
        for name in ("pulled", "pushed", "sampled") if stats[f"{name}_keys"]) or "nothing was accessed"
    each = max(epochs, 1)
    return (f"local without leaving the rank: {shares}; per epoch {stats['relocations_in'] / each:,.0f} relocations, "
            f"{stats['replica_keys_sent'] / each:,.0f} values sent for replicas, "
            f"{stats['messages_sent'] / each:,.0f} messages, {stats['bytes_sent'] / each / 1e6:,.1f} MB")


class Progress:
    """How far an epoch has come: a bar on a terminal, else a line now and then.

    (Under ``mpirun`` the standard error is a pipe, where a bar would become a heap of lines.)

    Parameters
    ----------
    title
        What is being done.
    total
        Words, or whatever is counted, of the whole epoch.
    unit
        The name of what is counted.
    enabled
        Show anything at all.
    """

    LINE_INTERVAL = 10.0  # seconds between two lines

    def __init__(self, title: str, total: int, unit: str, enabled: bool) -> None:
        from tqdm import tqdm

        self._title, self._total, self._unit = title, total, unit
        self._start = self._last_line = time.monotonic()
        self._lines = enabled and not sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=title, unit=f" {unit}", unit_scale=True, leave=False,
                         disable=not enabled or self._lines)

    def show(self, done: float, **figures: str) -> None:
        """Say that `done` of the total is behind us, with some figures beside it."""
        if self._lines:
            self._show_line(done, figures)
        elif not self._bar.disable:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(min(done, self._total) - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()

    def _show_line(self, done: float, figures: dict[str, str]) -> None:
        now = time.monotonic()
        if now - self._last_line < self.LINE_INTERVAL:
            return
        self._last_line = now
        rate = done / max(now - self._start, 1e-9)
        shown = "".join(f", {name} {value}" for name, value in figures.items())
        log.info("%s: %3.0f%%, %s %s/s%s", self._title, 100 * done / max(self._total, 1),
                 f"{rate:,.0f}", self._unit, shown)
