"""What a resumed run takes over from the one that it continues: options, epochs, metrics, the result if there was one.

DIR/checkpoint/             what `lapse.Server.save` writes; its metadata is a `Saved`
DIR/checkpoint/result.json  the RESULT of a finished run, and the name of the step that it belongs to
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lapse.apps._shared.job import AppError

log = logging.getLogger(__name__)

FOLDER, RESULT = "checkpoint", "result.json"
#: Options of this process alone: neither stored nor compared.
_OF_PROCESS = {
    "output",
    "resume",
    "max_runtime",
    "no_progress",
    "given",
    "search",
    "search_ranges",
    "search_results",
}
#: Options that a resumed run takes over unless they are given again.
_FREE = {"metrics", "plot", "report", "checkpoint_every", "slow_down"}


@dataclass
class Saved:
    """How far a run has come; kept as the metadata of its checkpoint.

    Attributes
    ----------
    app
        Which application.
    options
        What the run was started with, in JSON.
    epoch
        Number of complete epochs.
    is_over
        Whether the training is finished.
    history
        The figures of each of these epochs.
    state
        The application's own; see `Training.end_epoch`.
    """

    app: str
    options: dict
    epoch: int = 0
    is_over: bool = False
    history: list[dict] = field(default_factory=list)
    state: dict | None = None

    def check(self) -> None:
        """Raise `TypeError` for what no application has written."""
        kinds: dict[str, type | tuple[type, ...]] = dict(
            app=str, options=dict, epoch=int, is_over=bool, history=list, state=(dict, type(None))
        )
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise TypeError(f"{name} is {value!r}")
        if isinstance(self.epoch, bool) or self.epoch < 0:
            raise TypeError(f"epoch is {self.epoch!r}")
        if not all(isinstance(figures, dict) and isinstance(figures.get("epoch"), int) for figures in self.history):
            raise TypeError(f"history is {self.history!r}")

    def as_metadata(self) -> dict:
        """For `lapse.Server.save`."""
        return asdict(self)


def folder_of(args: argparse.Namespace) -> Path:
    """The folder of checkpoints."""
    return args.output / FOLDER


def find(app: str, args: argparse.Namespace) -> tuple[Saved | None, dict | None]:
    """The newest complete checkpoint under ``--output`` and the RESULT of that run; None for what does not exist.

    Raises
    ------
    AppError
        If it belongs to another application.
    lapse.CheckpointError
        If it cannot be read.
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
        saved.check()
    except TypeError:
        raise CheckpointError(f"{folder} is a checkpoint, but was not written by an application of Lapse") from None
    if saved.app != app:
        raise AppError(f"{folder} is a checkpoint of {saved.app}, not of {app}: choose another --output")
    return saved, _read_result(folder, manifest["step"])


def _read_result(folder: Path, step: str) -> dict | None:
    try:
        content = json.loads((folder / RESULT).read_bytes())
        found, result = content["step"], content["result"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        log.warning("%s is damaged: the run is taken for one that is not finished", folder / RESULT)
        return None
    return result if found == step and isinstance(result, dict) else None  # else: of an earlier run


def write_result(folder: Path, result: dict) -> None:
    """Store what a finished run printed."""
    from lapse.server import checkpoint

    content = {"step": checkpoint.current_step(folder), "result": result}
    checkpoint.write_atomically(folder / RESULT, json.dumps(content).encode())


# --- options -----------------------------------------------------------------------------------------------------


def encode_options(args: argparse.Namespace) -> dict:
    """The options that belong to a run, in JSON."""
    return {name: _encode(value) for name, value in vars(args).items() if name not in _OF_PROCESS}


def take_over(args: argparse.Namespace, stored: dict) -> argparse.Namespace:
    """The options of a checkpoint, and those given now that may change.

    Raises
    ------
    AppError
        If an option given now contradicts a stored one.
    """
    merged = argparse.Namespace(**vars(args))
    for name, value in stored.items():
        if not hasattr(args, name):
            raise AppError(
                f"the checkpoint in {folder_of(args)} has the option --{name.replace('_', '-')}, which this version "
                "does not know: continue with the version that wrote it, or start from scratch with another --output"
            )
        _check_kind(args, name, value)
        given = _encode(getattr(args, name)) if name in args.given else value
        if name in _FREE and name in args.given:
            continue
        if given != value:
            raise AppError(
                f"--{name.replace('_', '-')} is {_show(given)} now, but {_show(value)} in the checkpoint in "
                f"{folder_of(args)}: omit it to continue, or start from scratch with another --output"
            )
        setattr(merged, name, _decode(value))
    return merged


def _check_kind(args: argparse.Namespace, name: str, value: Any) -> None:
    """Raise for a value that no option has, or not this one."""
    ours = _encode(getattr(args, name))
    is_path = all(map(_is_path, value)) if isinstance(value, list) else _is_path(value)
    is_scalar = value is None or isinstance(value, (str, int, float, bool))
    kinds = {type(value), type(ours)}
    fits = ours is None or value is None or len(kinds) == 1 or kinds <= {int, float} or kinds <= {dict, list}
    if not (is_path or is_scalar) or not fits:
        raise AppError(
            f"the checkpoint in {folder_of(args)} is damaged: --{name.replace('_', '-')} is {str(value)[:80]}; start "
            "from scratch with another --output"
        )


def _is_path(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"path"} and isinstance(value["path"], str)


def _encode(value: Any) -> Any:
    """For JSON; of several paths that are one, that one: an option may have taken no more when a run was started."""
    if isinstance(value, list):
        return [_encode(each) for each in value] if len(value) != 1 else _encode(value[0])
    return {"path": str(value)} if isinstance(value, Path) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(each) for each in value]
    return Path(value["path"]) if isinstance(value, dict) else value


def _show(value: Any) -> str:
    return " ".join(_show(each) for each in value) if isinstance(value, list) else str(_decode(value))
