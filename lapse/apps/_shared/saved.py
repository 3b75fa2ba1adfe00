"""The files of a trained model, mapped: what is not asked for is not read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lapse.apps._shared.job import AppError
from lapse.apps._shared.names import Names


def check_folder(folder: Path, app: str, needed: str) -> None:
    """Raise unless `folder` may be a model of this application."""
    if not folder.exists():
        raise AppError(f"{folder} does not exist: give the folder that a training wrote with --output")
    if not folder.is_dir():
        raise AppError(f"{folder} is not a folder: give the folder that a training wrote with --output")
    if not (folder / needed).is_file():
        raise AppError(
            f"{folder / needed} is missing: {folder} is not a complete model of python -m lapse.apps.{app} --output"
        )


def read_about(path: Path, keys: dict[str, type | tuple[type, ...]]) -> dict:
    """Read a ``model.json``, which must have these keys, with values of these types."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AppError(f"{path}: cannot be read: {error}") from None
    if not isinstance(about, dict):
        raise AppError(f"{path}: is not an object of JSON")
    for key, kind in keys.items():
        if not isinstance(about.get(key), kind):
            found = f"is {about[key]!r}" if key in about else "is missing"
            raise AppError(f"{path}: {key!r} {found}: is this a model of another application?")
    return about


def map_array(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """Map an array of float32 with this shape (None: any number)."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise AppError(f"{path} is missing: the model is not complete") from None
    except (OSError, ValueError, EOFError) as error:
        raise AppError(f"{path}: cannot be read as an array of NumPy: {error}") from None
    fits = isinstance(array, np.ndarray) and len(array.shape) == len(shape)
    if not fits or not all(want in (None, have) for want, have in zip(shape, array.shape)):
        shown = ", ".join("any" if want is None else str(want) for want in shape)
        raise AppError(
            f"{path}: has the shape {getattr(array, 'shape', None)}, but the model's other files say ({shown})"
        )
    if array.dtype != np.float32:
        raise AppError(f"{path}: has the type {array.dtype}, but must have float32")
    return array


def map_names(path: Path, count: int, kind: str, before: bytes = b"", after: bytes = b"") -> Names:
    """Map a file of `count` names."""
    try:
        names = Names(path, kind, before, after)
    except FileNotFoundError:
        raise AppError(f"{path} is missing: the model is not complete") from None
    except OSError as error:
        raise AppError(f"{path}: cannot be read: {error}") from None
    if len(names) != count:
        raise AppError(f"{path}: has {len(names):,} lines, but there are {count:,} vectors")
    return names
