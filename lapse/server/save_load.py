"""Floor 5. Saving and loading a checkpoint: the steps of `checkpoint`, taken by all ranks together.

Every step ends with an exchange between the ranks, so that what fails on one rank raises on all of them and a
checkpoint is replaced only by one that every rank has written.
"""

import json
import os
import pathlib
from typing import Any

from lapse._store import Store
from lapse.errors import CheckpointError
from lapse.server import checkpoint
from lapse.server.checkpoint import StrPath
from lapse.server.rank_calls import RankCalls
from lapse.worker.streams import Streams


def save(calls: RankCalls, store: Store, streams: Streams, path: StrPath, metadata: dict[str, Any] | None) -> None:
    """Write the values of all ranks; see `Server.save`."""
    _check_arguments(calls, path, metadata)
    calls.come_to_rest("save")
    states = [state for states in calls.attempt("the random streams of save", streams.state) for state in states]
    step = calls.attempt_on_rank_0("a new step", checkpoint.begin_step, path)
    try:
        _write(calls, store, path, step, states, metadata or {})
    except Exception:
        if calls.rank == 0:
            checkpoint.discard_step(path, step)
        raise
    calls.attempt_on_rank_0("the removal of other steps", checkpoint.delete_other_steps, path, step)


def _write(
    calls: RankCalls, store: Store, path: StrPath, step: str, states: list[dict], metadata: dict[str, Any]
) -> None:
    folder = os.path.join(path, step)
    files = calls.attempt("the values of save", checkpoint.write_values, folder, store, calls.rank)
    shape = checkpoint.shape_of(store)
    calls.attempt_on_rank_0("the end of save", checkpoint.commit_step, path, step, shape, files, metadata, states)


def _check_arguments(calls: RankCalls, path: StrPath, metadata: dict[str, Any] | None) -> None:
    calls.attempt("the arguments of save", _check_own_arguments, path, metadata)
    paths = sorted(set(calls.exchange("the path of save", os.fspath(path), list)))
    if len(paths) > 1:
        raise ValueError(f"save needs the same path on all ranks, not {', '.join(paths)}")


def _check_own_arguments(path: StrPath, metadata: dict[str, Any] | None) -> None:
    pathlib.Path(path)  # a TypeError for what is not a path
    if not isinstance(metadata, (dict, type(None))):
        raise TypeError(f"metadata must be a dict that can be written as JSON, not {type(metadata).__name__}")
    for name, value in (metadata or {}).items():
        _check_entry(f"metadata[{name!r}]", name, value)
    checkpoint.check_parent(path)


def _check_entry(where: str, name: Any, value: Any) -> None:
    """Raise what is wrong with an entry of the metadata, or with the first one inside it."""
    if not isinstance(name, (str, int, float, type(None))):
        raise TypeError(f"{where} has a key of type {type(name).__name__}, but JSON has strings only: write str(key)")
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(value, dict):
            for inner, item in value.items():
                _check_entry(f"{where}[{inner!r}]", inner, item)
        if isinstance(value, (list, tuple)):
            for inner, item in enumerate(value):
                _check_entry(f"{where}[{inner}]", str(inner), item)
        raise TypeError(
            f"{where} is of type {type(value).__name__}, which cannot be written as JSON ({error}): convert it, "
            "as in float(x) or x.tolist()"
        ) from None


def load(calls: RankCalls, store: Store, streams: Streams, path: StrPath) -> dict[str, Any]:
    """Read the values of this rank and return the metadata; see `Server.load`."""
    manifest = calls.attempt_on_rank_0("the manifest of load", checkpoint.read_manifest, path)
    calls.attempt("the checks of load", _check_checkpoint, calls, store, path, manifest)
    states: list[Any] = []
    calls.attempt("the random streams of load", lambda: states.extend(_restored(streams, path, manifest)))
    calls.come_to_rest("load")
    calls.attempt("the values of load", checkpoint.read_values, path, manifest, store)
    streams.adopt(states)
    return manifest["metadata"]


def _check_checkpoint(calls: RankCalls, store: Store, path: StrPath, manifest: dict[str, Any]) -> None:
    checkpoint.check_shape(path, manifest, checkpoint.shape_of(store))
    checkpoint.check_files(path, manifest, store, calls.rank, calls.size)


def _restored(streams: Streams, path: StrPath, manifest: dict[str, Any]) -> list[Any]:
    try:
        return streams.restored(manifest.get("streams", []))
    except Exception as error:
        raise CheckpointError(f"{path}: the random streams in the manifest are damaged: {error!r}") from None
