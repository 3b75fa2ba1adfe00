"""Figures of a training: the file of ``--metrics``, counters of the server, the locality report."""

from __future__ import annotations

import json
from pathlib import Path

from lapse.apps._shared.files import write_text
from lapse.apps._shared.job import AppError

#: What every line begins with.
BEGIN = b'{"epoch": '


class Metrics:
    """The file of ``--metrics``: one JSON object per line and epoch, written by rank 0.

    Parameters
    ----------
    path
        The file; None: write nothing.
    epoch
        Keep the lines up to this epoch, after which a resumed run continues; None: start a new file.

    Raises
    ------
    AppError
        If there is a file of another kind, which would be lost.
    """

    def __init__(self, path: Path | None, epoch: int | None = None) -> None:
        self._path = path
        if path is None:
            return
        if path.is_file():
            _check_kind(path)
            write_text(path, "".join(_lines_up_to(path, epoch) if epoch is not None else []))
        else:  # a new file, or a pipe or device
            with open(path, "a", encoding="utf-8"):
                pass

    def write(self, **figures: object) -> None:
        """Append a line; it is on disk when this returns, in case the job is terminated early."""
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")


def _check_kind(path: Path) -> None:
    with open(path, "rb") as file:
        first = file.readline(1 << 20)
    is_torn = not first.endswith(b"\n") and BEGIN.startswith(first[: len(BEGIN)])  # by a killed run
    if _epoch_of(first) is None and not is_torn:
        raise AppError(f"--metrics {path} is a file that is no metrics of a training: choose another one, or remove it")


def _lines_up_to(path: Path, epoch: int) -> list[str]:
    """The lines of complete epochs, without one that was cut off when the process was killed."""
    kept = []
    for line in path.read_bytes().split(b"\n"):
        number = _epoch_of(line)
        if number is None or number > epoch:
            break
        kept.append(line.decode() + "\n")
    return kept


def _epoch_of(line: bytes) -> int | None:
    """The epoch of a line; None if it is none of ours."""
    try:
        number = json.loads(line)["epoch"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return number if isinstance(number, int) else None


def local_share(stats: dict) -> float:
    """The share of all pulled, pushed and sampled keys that were local to the rank."""
    keys = sum(stats[name] for name in ("pulled_keys", "pushed_keys", "sampled_keys"))
    local = sum(stats[name] for name in ("pulled_local", "pushed_local", "sampled_local"))
    return local / keys if keys else 1.0


def locality_report(stats: dict, epochs: int) -> str:
    """Where parameters were found, and how much was sent to have them there; logged at the end of a run.

    Parameters
    ----------
    stats
        The counters of all ranks over all epochs.
    epochs
        The number of these epochs.
    """
    shares = (
        ", ".join(
            f"{100 * stats[f'{name}_local'] / stats[f'{name}_keys']:.2f}% of {stats[f'{name}_keys']:,} keys {name}"
            for name in ("pulled", "pushed", "sampled")
            if stats[f"{name}_keys"]
        )
        or "nothing was accessed"
    )
    each = max(epochs, 1)
    return (
        f"accesses local to the rank: {shares}; per epoch {stats['relocations_in'] / each:,.0f} relocations, "
        f"{stats['replica_keys_sent'] / each:,.0f} values sent for replicas, "
        f"{stats['messages_sent'] / each:,.0f} messages, {stats['bytes_sent'] / each / 1e6:,.1f} MB"
    )
