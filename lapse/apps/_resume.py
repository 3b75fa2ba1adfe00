"""What a run finds of the one that it continues: options, epochs, metrics, the result if there was one.

    DIR/checkpoint/             what `lapse.Server.save` writes; its metadata are those of `Progress`
    DIR/checkpoint/result.json  the RESULT of a finished run, with the name of the step that it belongs to
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lapse.apps._base import AppError

FOLDER, RESULT = "checkpoint", "result.json"
#: Options of one process: neither stored nor compared.
_OWN = {"output", "resume", "max_runtime", "no_progress", "given"}
#: Options that a resumed run takes over, but may change.
_FREE = {"metrics", "plot", "checkpoint_every"}


@dataclass
class Saved:
    """How far a run has come; kept as the metadata of its checkpoint.

    Attributes
    ----------
    app
        Which application.
    options
        What it was started with, in JSON.
    epoch
        Epochs that are complete.
    is_over
        No more will follow.
    history
        The figures of each of these epochs.
    state
        What the application gave along.
    """

    app: str
    options: dict
    epoch: int = 0
    is_over: bool = False
    history: list[dict] = field(default_factory=list)
    state: dict | None = None

    def as_metadata(self) -> dict:
        """For `lapse.Server.save`."""
        return asdict(self)


def folder_of(args: argparse.Namespace) -> Path:
    """Where checkpoints are."""
    return args.output / FOLDER


def find(app: str, args: argparse.Namespace) -> tuple[Saved | None, dict | None]:
    """The newest complete checkpoint under ``--output`` and the RESULT of that run; None for what there is not.

    Raises
    ------
    AppError
        Where it is another application's.
    lapse.CheckpointError
        Where it cannot be read.
    """
    from lapse import CheckpointError
    from lapse.server import checkpoint

    folder = folder_of(args)
    try:
        manifest = checkpoint.read_manifest(folder)
    except FileNotFoundError:
        return None, None
    try:
        saved = Saved(**manifest["metadata"])
    except TypeError:
        raise CheckpointError(f"{folder} has values, but was not written by an application") from None
    if saved.app != app:
        raise AppError(f"{folder} is a checkpoint of {saved.app}, not of {app}: choose another --output")
    return saved, _read_result(folder, manifest["step"])


def _read_result(folder: Path, step: str) -> dict | None:
    try:
        content = json.loads((folder / RESULT).read_text())
    except FileNotFoundError:
        return None
    return content["result"] if content["step"] == step else None  # else: of an earlier run


def write_result(folder: Path, result: dict) -> None:
    """Note what a finished run printed."""
    from lapse.server import checkpoint

    content = {"step": checkpoint.current_step(folder), "result": result}
    checkpoint.write_atomically(folder / RESULT, json.dumps(content).encode())


# Options --------------------------------------------------------------------------------------


def encode_options(args: argparse.Namespace) -> dict:
    """The options that belong to a run, in JSON."""
    return {name: _encode(value) for name, value in vars(args).items() if name not in _OWN}


def take_over(args: argparse.Namespace, stored: dict) -> argparse.Namespace:
    """The options of a checkpoint, with those given now where these are free.

    Raises
    ------
    AppError
        Where a given option contradicts a stored one.
    """
    merged = argparse.Namespace(**vars(args))
    for name, value in stored.items():
        given = _encode(getattr(args, name)) if name in args.given else value
        if name in _FREE and name in args.given:
            continue
        if given != value:
            raise AppError(
                f"--{name.replace('_', '-')} is {_show(given)} now, but {_show(value)} in the checkpoint in "
                f"{folder_of(args)}: leave it out to continue, or start anew with another --output")
        setattr(merged, name, _decode(value))
    return merged


def _encode(value):
    return {"path": str(value)} if isinstance(value, Path) else value


def _decode(value):
    return Path(value["path"]) if isinstance(value, dict) else value


def _show(value) -> str:
    return str(_decode(value))
