"""Figures of a training: the file of ``--metrics``, counters of the server, the locality report."""

from __future__ import annotations

import json
from pathlib import Path


class Metrics:
    """The file of ``--metrics``: one JSON object per line and epoch, written by rank 0.

    Parameters
    ----------
    path
        The file; None: write nothing.
    epoch
        Keep the lines up to this epoch, after which a resumed run continues; None: start a new file.
    """

    def __init__(self, path: Path | None, epoch: int | None = None) -> None:
        self._path = path
        if path is not None:
            kept = _lines_up_to(path, epoch) if epoch is not None and path.exists() else []
            path.write_text("".join(kept), encoding="utf-8")

    def write(self, **figures: object) -> None:
        """Append a line; it is on disk when this returns, in case the job is terminated early."""
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")


def _lines_up_to(path: Path, epoch: int) -> list[str]:
    """The lines of complete epochs, without one that was cut off when the process was killed."""
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
