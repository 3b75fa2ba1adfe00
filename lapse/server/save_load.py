"""Floor 5. Saving and loading a checkpoint: the steps of `checkpoint`, taken by all ranks together.

Every step ends with an exchange between the ranks, so that what fails on one rank raises on all of them and a
checkpoint is replaced only by one that every rank has written.
"""

import os
import pathlib
from typing import Any

from lapse._store import Store
from lapse.server import checkpoint
from lapse.server.checkpoint import StrPath
from lapse.server.rank_calls import RankCalls


def save(calls: RankCalls, store: Store, path: StrPath, metadata: dict[str, Any] | None) -> None:
    """Write the values of all ranks; see `Server.save`."""
    _check_arguments(calls, path, metadata)
    calls.come_to_rest("save")
    step = calls.attempt_on_rank_0("a new step", checkpoint.begin_step, path)
    try:
        _write(calls, store, path, step, metadata or {})
    except Exception:
        if calls.rank == 0:
            checkpoint.discard_step(path, step)
        raise
    calls.attempt_on_rank_0("the removal of other steps", checkpoint.delete_other_steps, path, step)


def _write(calls: RankCalls, store: Store, path: StrPath, step: str, metadata: dict[str, Any]) -> None:
    folder = os.path.join(path, step)
    files = calls.attempt("the values of save", checkpoint.write_values, folder, store, calls.rank)
    shape = checkpoint.shape_of(store)
    calls.attempt_on_rank_0("the end of save", checkpoint.commit_step, path, step, shape, files, metadata)


def _check_arguments(calls: RankCalls, path: StrPath, metadata: dict[str, Any] | None) -> None:
    calls.attempt("the arguments of save", _check_own_arguments, path, metadata)
    paths = sorted(set(calls.exchange("the path of save", os.fspath(path), list)))
    if len(paths) > 1:
        raise ValueError(f"save needs the same path on all ranks, not {', '.join(paths)}")


def _check_own_arguments(path: StrPath, metadata: dict[str, Any] | None) -> None:
    pathlib.Path(path)  # a TypeError for what is not a path
    if not isinstance(metadata, (dict, type(None))):
        raise TypeError(f"metadata must be a dict that can be written as JSON, not {type(metadata).__name__}")


def load(calls: RankCalls, store: Store, path: StrPath) -> dict[str, Any]:
    """Read the values of this rank and return the metadata; see `Server.load`."""
    manifest = calls.attempt_on_rank_0("the manifest of load", checkpoint.read_manifest, path)
    calls.attempt("the checks of load", _check_checkpoint, calls, store, path, manifest)
    calls.come_to_rest("load")
    calls.attempt("the values of load", checkpoint.read_values, path, manifest, store)
    return manifest["metadata"]


def _check_checkpoint(calls: RankCalls, store: Store, path: StrPath, manifest: dict[str, Any]) -> None:
    checkpoint.check_shape(path, manifest, checkpoint.shape_of(store))
    checkpoint.check_files(path, manifest, store, calls.rank, calls.size)
