"""Floor 5. Saving and loading a checkpoint: the steps of `checkpoint`, taken by all ranks together.

Every step ends with an exchange between the ranks, so that what fails on one rank raises on all of them and a
checkpoint is replaced only by one that every rank has written.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from lapse._store import Store
from lapse.base.checks import brief
from lapse.errors import CheckpointError
from lapse.options.tables import Tables
from lapse.server import checkpoint
from lapse.server.checkpoint import StrPath
from lapse.server.initialization import fill_rows
from lapse.server.metadata import check_metadata
from lapse.server.rank_calls import RankCalls
from lapse.server.shapes import Manifest, Optimizers, check_shape, new_rows, renumbering, shape_of
from lapse.worker.steps import Steps, most_steps
from lapse.worker.streams import Streams


@dataclasses.dataclass(frozen=True)
class Saved:
    """What of a server is saved and loaded.

    Attributes
    ----------
    store : Store
    streams : Streams
    steps : Steps
    tables : Tables or None
    optimizers : list of (int, Optimizer or None)
        See `lapse.server.arguments.Arguments`.
    seed : int
        Of initial values of rows that a checkpoint does not have.
    """

    store: Store
    streams: Streams
    steps: Steps
    tables: Tables | None
    optimizers: Optimizers
    seed: int


def save(calls: RankCalls, saved: Saved, path: StrPath, metadata: dict[str, Any] | None, state: bool) -> None:
    """Write the values of all ranks; see `Server.save`."""
    _check_arguments(calls, path, metadata, state)
    calls.come_to_rest("save")
    states = [state for states in calls.attempt("the random streams of save", saved.streams.state) for state in states]
    step = calls.attempt_on_rank_0("a new step", checkpoint.begin_step, path)
    try:
        _write(calls, saved, path, step, states, metadata or {}, state)
    except Exception:
        if calls.rank == 0:
            checkpoint.discard_step(path, step)
        raise
    calls.attempt_on_rank_0("the removal of other steps", checkpoint.delete_other_steps, path, step)


def _write(
    calls: RankCalls,
    saved: Saved,
    path: StrPath,
    step: str,
    states: list[dict],
    metadata: dict[str, Any],
    with_optimizers: bool,
) -> None:
    folder = os.path.join(path, step)
    optimizers = saved.optimizers if with_optimizers else []
    steps = most_steps(calls.attempt("the steps of save", saved.steps.state)) if optimizers else {}
    files = calls.attempt(
        "the values of save", checkpoint.write_values, folder, saved.store, calls.rank, bool(optimizers)
    )
    shape = shape_of(saved.store, saved.tables, optimizers)
    progress = checkpoint.Progress(states, steps)
    calls.attempt_on_rank_0("the end of save", checkpoint.commit_step, path, step, shape, files, metadata, progress)


def _check_arguments(calls: RankCalls, path: StrPath, metadata: dict[str, Any] | None, state: bool) -> None:
    calls.attempt("the arguments of save", _check_own_arguments, path, metadata, state)
    if len(set(calls.exchange("the state of save", bool(state), list))) > 1:
        raise ValueError("save needs the same state on all ranks, True or False")
    paths = sorted(set(calls.exchange("the path of save", os.fspath(path), list)))
    if len(paths) > 1:
        raise ValueError(f"save needs the same path on all ranks, not {', '.join(paths)}")


def _check_own_arguments(path: StrPath, metadata: dict[str, Any] | None, state: bool) -> None:
    pathlib.Path(path)  # a TypeError for what is not a path
    if not isinstance(state, (bool, np.bool_)):
        raise TypeError(f"state must be True or False, not {brief(state)}")
    check_metadata(metadata)
    checkpoint.check_parent(path)


def load(calls: RankCalls, saved: Saved, path: StrPath) -> dict[str, Any]:
    """Read the values of this rank and return the metadata; see `Server.load`."""
    manifest = calls.attempt_on_rank_0("the manifest of load", checkpoint.read_manifest, path)
    shape = shape_of(saved.store, saved.tables, saved.optimizers)
    calls.attempt("the checks of load", check_shape, path, manifest, shape)
    renumber = renumbering(manifest, shape)
    calls.attempt(
        "the checks of load", checkpoint.check_files, path, manifest, saved.store, renumber, calls.rank, calls.size
    )
    metadata: dict[str, Any] = {}
    states: list[Any] = []
    calls.attempt("the metadata of load", lambda: metadata.update(checkpoint.read_metadata(path, manifest)))
    calls.attempt("the random streams of load", lambda: states.extend(_restored(saved.streams, path, manifest)))
    calls.come_to_rest("load")
    calls.attempt("the values of load", _read, saved, path, manifest, renumber)
    saved.streams.adopt(states)
    saved.steps.adopt(manifest.get("steps", {}))
    return metadata


def _read(saved: Saved, path: StrPath, manifest: Manifest, renumber: checkpoint.Renumber) -> None:
    checkpoint.read_values(path, manifest, saved.store, renumber)
    for name, first in new_rows(manifest, saved.tables).items():
        assert saved.tables is not None
        fill_rows(saved.store, saved.tables[name], first, saved.seed)


def _restored(streams: Streams, path: StrPath, manifest: dict[str, Any]) -> list[Any]:
    try:
        return streams.restored(manifest.get("streams", []))
    except Exception as error:
        raise CheckpointError(f"{path}: the random streams in the manifest are damaged: {error!r}") from None
