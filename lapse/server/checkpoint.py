"""Floor 5. Checkpoints: all values of a server in a folder, written and read by all ranks together.

    path/CURRENT                        the name of the newest complete step
    path/step-000012/manifest.json      what the step contains, with a checksum for each file
    path/step-000012/rank-00003-00000.safetensors
    path/step-000012/metadata.safetensors       the arrays of the metadata, if there are any

The manifest also has the random streams of all workers (`lapse.worker.streams`), the tables, the optimizers whose
states are saved, and how many steps were made with each table (`lapse.worker.steps`).

A file holds some keys of one rank: `keys`, int64 of shape (n,), ascending, and their `values`, of shape (n, L)
if all values of the server have one length; else 1-D, one after another, with `lengths`, int64 of shape (n,).
With optimizers there are their `states`, of shape (n, S) if all have one length; else 1-D, with `state_lengths`.
Any reader of the safetensors format can read them (https://huggingface.co/docs/safetensors). Values that were never
written are left out: they are zero.

A save has two phases, as in PyTorch-BigGraph's `train_cpu.py`: a step is written into a folder of its own and brought
to disk; when all ranks have confirmed that, CURRENT is replaced by `rename`, which is atomic. Whatever is killed at
whatever moment, CURRENT names a complete step. This module has the format and what one rank does with it;
`save_load` has the order of the steps and the exchanges between the ranks.
"""

import contextlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from lapse._store import Store
from lapse.base.disk import sync
from lapse.errors import CheckpointError
from lapse.server._states import fill_states, read_states, state_lengths
from lapse.server.metadata import divide, join, names_in
from lapse.server.shapes import Manifest, Shape, is_optimizers, is_tables
from lapse.worker.steps import is_steps

VERSION = 1
VERSION_WITH_STATES = 2
CURRENT, MANIFEST, METADATA = "CURRENT", "manifest.json", "metadata.safetensors"
FILE_BYTES = 64 << 20  # of keys and values in one file, and in memory while it is written
BLOCK_BYTES = 4 << 20  # of values that are read at a time

StrPath = str | os.PathLike[str]
Renumber = Callable[[np.ndarray], np.ndarray]

_STEP = re.compile(r"step-(\d{6,})")
_OURS = re.compile(r"rank-\d{5,}-\d{5,}\.safetensors|manifest\.json|metadata\.safetensors")


class Progress(NamedTuple):
    """How far a training has come.

    Attributes
    ----------
    streams : list of dict
        Where the random streams of all workers are, by worker.
    steps : dict of str to int
        How many steps were made with each table.
    """

    streams: list[dict[str, Any]]
    steps: dict[str, int]


# Writing ----------------------------------------------------------------------------------------------


def check_parent(path: StrPath) -> None:
    """Raise when the folder of a checkpoint neither exists nor can be made because its parent is missing.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        They name the folder that is missing, or the file that is in its place.
    """
    path = Path(path).absolute()
    if path.is_dir():
        return
    if path.exists():
        raise NotADirectoryError(f"{path} is a file, but a checkpoint is a folder: choose another path")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} is missing: make it before a checkpoint is saved in {path}")


def begin_step(path: StrPath) -> str:
    """Make the folder of the next step, and `path` itself if it is missing; returns the step's name.

    Raises
    ------
    FileNotFoundError
        When the parent of `path` is missing.
    """
    path = Path(path)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        sync(path.absolute().parent)
    step = f"step-{max(_steps(path), default=0) + 1:06d}"
    (path / step).mkdir()
    return step


def write_values(folder: StrPath, store: Store, rank: int, with_states: bool = False) -> list[dict[str, Any]]:
    """Write the values that are this rank's to save; returns a description of each file for the manifest."""
    described: list[dict[str, Any]] = []
    key = 0
    while key < store.num_keys:
        keys, key = store.written_keys(key, FILE_BYTES)
        if len(keys):
            name = f"rank-{rank:05d}-{len(described):05d}.safetensors"
            described.append(_write_file(Path(folder) / name, store, keys, with_states))
    sync(folder)
    return described


def _write_file(path: Path, store: Store, keys: np.ndarray, with_states: bool) -> dict[str, Any]:
    values = store.read(keys)
    if store.length >= 0:
        tensors = {"keys": keys, "values": values.reshape(len(keys), -1)}
    else:
        tensors = {"keys": keys, "values": values, "lengths": store.value_length(keys)}
    if with_states:
        tensors |= _tensors_of_states(store, keys)
    version = VERSION_WITH_STATES if with_states else VERSION
    data = safetensors.numpy.save(tensors, {"format": "lapse", "version": str(version)})
    _write(path, data)
    return {"name": path.name, "bytes": len(data), "crc32": zlib.crc32(data), "keys": len(keys)}


def _tensors_of_states(store: Store, keys: np.ndarray) -> dict[str, np.ndarray]:
    states, lengths = read_states(store, keys), state_lengths(store, keys)
    if (lengths == lengths[0]).all():
        return {"states": states.reshape(len(keys), -1)}
    return {"states": states, "state_lengths": lengths}


def commit_step(
    path: StrPath,
    step: str,
    shape: Shape,
    files: list[list[dict[str, Any]]],
    metadata: dict[str, Any],
    progress: Progress,
) -> None:
    """Make `step`, whose files are all on disk, the newest complete one.

    Parameters
    ----------
    files : list of list of dict
        By rank, what `write_values` returned.
    metadata : dict
        Anything that the caller wants to find again: what JSON can hold, and arrays.
    progress : Progress
    """
    folder = Path(path) / step
    plain, arrays = divide(metadata)
    manifest = {
        "format": "lapse checkpoint",
        "version": VERSION if shape.optimizers is None else VERSION_WITH_STATES,
        **shape.as_manifest(),
        "ranks": len(files),
        "files": [file for rank in files for file in rank],
        "metadata": plain,
        "metadata_file": _write_arrays(folder / METADATA, arrays) if arrays else None,
        "streams": progress.streams,
        "steps": progress.steps,
    }
    _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    sync(folder)
    write_atomically(Path(path) / CURRENT, f"{step}\n".encode())


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    data = safetensors.numpy.save(arrays)
    _write(path, data)
    return {"name": path.name, "bytes": len(data), "crc32": zlib.crc32(data)}


def write_atomically(path: StrPath, data: bytes) -> None:
    """Write a file that has either its old content or the new one, at any moment, and bring it to disk."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.new")
    _write(temporary, data)
    os.replace(temporary, path)
    sync(path.parent)


def discard_step(path: StrPath, step: str) -> None:
    """Delete a step whose save has failed, unless it is the newest complete one all the same."""
    with contextlib.suppress(OSError, CheckpointError):
        if current_step(path) == step:
            return
    _delete_step(path, step)


def _delete_step(path: StrPath, step: str) -> None:
    """Delete what Lapse wrote of a step; a folder with other files in it stays, with these."""
    folder = Path(path) / step
    with contextlib.suppress(OSError):
        # The manifest first: a step without one was never complete.
        for file in sorted(folder.iterdir(), key=lambda file: file.name != MANIFEST):
            if _OURS.fullmatch(file.name):
                file.unlink()
        folder.rmdir()


def delete_other_steps(path: StrPath, step: str) -> None:
    """Delete all steps but one, complete or not."""
    for number in _steps(path):
        if (other := f"step-{number:06d}") != step:
            _delete_step(path, other)


def _steps(path: StrPath) -> list[int]:
    """The numbers of the folders that look like steps."""
    matches = (_STEP.fullmatch(entry.name) for entry in os.scandir(path) if entry.is_dir())
    return [int(match[1]) for match in matches if match]


def _write(path: StrPath, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# Reading ----------------------------------------------------------------------------------------------


def current_step(path: StrPath) -> str:
    """The name of the newest complete step.

    Raises
    ------
    FileNotFoundError
        When there is none.
    CheckpointError
        When CURRENT does not name a step.
    """
    path = Path(path)
    try:
        text = (path / CURRENT).read_text(errors="replace").strip()
    except FileNotFoundError:
        raise FileNotFoundError(f"no complete checkpoint in {path}: it has no file {CURRENT}") from None
    if not _STEP.fullmatch(text):
        raise CheckpointError(f"{path / CURRENT} has {text[:40]!r}, not the name of a step")
    return text


def read_manifest(path: StrPath, step: str | None = None) -> Manifest:
    """What a checkpoint contains. A job may save to the same folder meanwhile.

    Parameters
    ----------
    path : path-like
        The folder that was saved to.
    step : str, optional
        By default the newest complete one.

    Returns
    -------
    dict
        As in the file, and the `step`.

    Raises
    ------
    FileNotFoundError, CheckpointError
        When there is no checkpoint; when it is damaged or of another version.
    """
    found = step or current_step(path)
    file = Path(path) / found / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        if step is None and current_step(path) != found:  # a job has saved again, and removed that step
            return read_manifest(path)
        raise CheckpointError(f"{file} is missing, though {CURRENT} names this step") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != "lapse checkpoint":
        raise CheckpointError(f"{file} is not the manifest of a Lapse checkpoint")
    if manifest.get("version") not in (VERSION, VERSION_WITH_STATES):
        raise CheckpointError(
            f"{file}: version {manifest.get('version')!r} of the format, but this Lapse reads versions {VERSION} and "
            f"{VERSION_WITH_STATES}"
        )
    _check_fields(file, manifest)
    return {**manifest, "step": found}


def _check_fields(file: Path, manifest: Manifest) -> None:
    kinds: dict[str, type | tuple[type, ...]] = {
        "num_keys": int,
        "dtype": str,
        "value_lengths": (int, str),
        "files": list,
        "metadata": dict,
    }
    for name, kind in kinds.items():
        value = manifest.get(name)
        if not isinstance(value, kind) or (isinstance(value, int) and not _is_count(value)):
            raise CheckpointError(f"{file}: {name} is {_cut(value)}")
    if "tables" in manifest and not is_tables(manifest["tables"]):
        raise CheckpointError(f"{file}: tables is {_cut(manifest['tables'])}")
    if "optimizers" in manifest and not is_optimizers(manifest["optimizers"], manifest["num_keys"]):
        raise CheckpointError(f"{file}: optimizers is {_cut(manifest['optimizers'])}")
    if "steps" in manifest and not is_steps(manifest["steps"]):
        raise CheckpointError(f"{file}: steps is {_cut(manifest['steps'])}")
    for entry in manifest["files"]:
        if not _describes_a_file(entry):
            raise CheckpointError(f"{file}: not the description of a file: {_cut(entry)}")
    names = [entry["name"] for entry in manifest["files"]]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{file}: a file is listed twice: {_cut(sorted(names))}")


def _describes_a_file(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and _OURS.fullmatch(entry["name"]) is not None
        and all(_is_count(entry.get(name)) for name in ("bytes", "crc32", "keys"))
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _cut(value: Any) -> str:
    """A value for a message, which must not be as long as a file."""
    shown = repr(value)
    return shown if len(shown) <= 200 else shown[:197] + "..."


def read_metadata(path: StrPath, manifest: Manifest) -> dict[str, Any]:
    """The metadata of a checkpoint, with its arrays.

    Raises
    ------
    CheckpointError
        When the file of the arrays is missing or damaged.
    """
    names, entry = names_in(manifest["metadata"]), manifest.get("metadata_file")
    if not names:
        return manifest["metadata"]
    folder = Path(path) / manifest["step"]
    if not isinstance(entry, dict) or entry.get("name") != METADATA:
        raise CheckpointError(f"{folder / MANIFEST}: metadata has arrays, but metadata_file is {_cut(entry)}")
    _check_bytes(folder / METADATA, entry)
    with _opened(folder / METADATA) as file:
        if not names <= set(file.keys()):
            raise CheckpointError(f"{folder / METADATA} has arrays {sorted(file.keys())}, not {sorted(names)}")
        return join(manifest["metadata"], {name: file.get_tensor(name) for name in names})


def check_files(path: StrPath, manifest: Manifest, store: Store, renumber: Renumber, share: int, shares: int) -> None:
    """Read the files number `share`, `share` + `shares`, ... and compare them with the manifest and the store."""
    folder = Path(path) / manifest["step"]
    for entry in manifest["files"][share::shares]:
        _check_file(folder / entry["name"], entry, manifest, store, renumber)


def _check_file(path: Path, entry: dict[str, Any], manifest: Manifest, store: Store, renumber: Renumber) -> None:
    _check_bytes(path, entry)
    with _opened(path) as file:
        _check_tensors(path, file, entry, manifest, store, renumber)


def _check_bytes(path: Path, entry: dict[str, Any]) -> None:
    """Compare size and checksum of a file with those of the manifest."""
    crc, size = 0, 0
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                crc, size = zlib.crc32(block, crc), size + len(block)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, though the manifest lists it") from None
    if size != entry.get("bytes"):
        raise CheckpointError(f"{path} has {size} bytes, but {entry.get('bytes')} were written")
    if crc != entry.get("crc32"):
        raise CheckpointError(f"{path} is damaged: its checksum is {crc}, but was {entry.get('crc32')}")


def _check_tensors(
    path: Path, file: Any, entry: dict[str, Any], manifest: Manifest, store: Store, renumber: Renumber
) -> None:
    """Compare names, dtypes, shapes and keys with the manifest: checksums find damage only."""
    uniform = isinstance(manifest["value_lengths"], int)
    names = {"keys", "values"} if uniform else {"keys", "values", "lengths"}
    if "optimizers" in manifest:
        names |= {"states"} | (set(file.keys()) & {"state_lengths"})
    if set(file.keys()) != names:
        raise CheckpointError(f"{path} has tensors {sorted(file.keys())}, not {sorted(names)}")
    keys = file.get_tensor("keys")
    if keys.dtype != np.int64 or keys.shape != (entry["keys"],):
        raise CheckpointError(f"{path}: keys are {keys.dtype} of shape {keys.shape}, not int64 of ({entry['keys']},)")
    if len(keys) and not (keys[0] >= 0 and keys[-1] < manifest["num_keys"] and (np.diff(keys) > 0).all()):
        raise CheckpointError(f"{path}: keys are not ascending numbers below {manifest['num_keys']}")
    values = file.get_slice("values")
    own = renumber(keys)
    rows = (len(keys), manifest["value_lengths"]) if uniform else (_total_length(path, file, own, store),)
    dtype = {"F32": "float32", "F64": "float64"}.get(values.get_dtype(), values.get_dtype())
    if dtype != manifest["dtype"] or tuple(values.get_shape()) != rows:
        raise CheckpointError(
            f"{path}: values are {dtype} of shape {tuple(values.get_shape())}, not {manifest['dtype']} of {rows}"
        )

    if "optimizers" in manifest:
        _check_states(path, file, own, store)


def _check_states(path: Path, file: Any, keys: np.ndarray, store: Store) -> None:
    """Whether there is a state of the right length for each key."""
    lengths, states = state_lengths(store, keys), file.get_slice("states")
    uniform = not _has_varying_states(file)
    noted = np.full(len(keys), states.get_shape()[-1]) if uniform else file.get_tensor("state_lengths")
    shape = (len(keys), *states.get_shape()[1:]) if uniform else (int(lengths.sum()),)
    if tuple(states.get_shape()) != shape or noted.shape != lengths.shape or (noted != lengths).any():
        raise CheckpointError(
            f"{path}: states of shape {tuple(states.get_shape())} are not those of this server's keys"
        )


def _has_varying_states(file: Any) -> bool:
    return "state_lengths" in set(file.keys())


def _total_length(path: Path, file: Any, keys: np.ndarray, store: Store) -> int:
    """The number of elements of values of these keys, whose lengths in the file must be those of the store."""
    lengths, ours = file.get_tensor("lengths"), store.value_length(keys)
    if lengths.dtype != np.int64 or lengths.shape != keys.shape or (lengths != ours).any():
        raise CheckpointError(f"{path}: lengths are not those of the keys in this server")
    return int(ours.sum())


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from None


def read_values(path: StrPath, manifest: Manifest, store: Store, renumber: Renumber) -> None:
    """Give the keys that lie on this rank their values in the checkpoint, or zeros if it has none.

    What `check_files` has checked is not checked again. Reads a few MB at a time.
    """
    store.clear()
    for entry in manifest["files"]:
        with _opened(Path(path) / manifest["step"] / entry["name"]) as file:
            keys = renumber(file.get_tensor("keys"))
            is_uniform = isinstance(manifest["value_lengths"], int)
            _read_file(file, store, keys, is_uniform)
            if "optimizers" in manifest:
                _read_states(file, store, keys)


def _read_file(file: Any, store: Store, keys: np.ndarray, is_uniform: bool) -> None:
    lengths = store.value_length(keys)
    ends = np.cumsum(lengths)
    values, first = file.get_slice("values"), 0
    while first < len(keys):
        begin = ends[first] - lengths[first]
        last = max(first + 1, int(np.searchsorted(ends, begin + BLOCK_BYTES // store.dtype.itemsize, side="right")))
        here = store.is_here(keys[first:last])
        if here.any():
            rows = (first, last) if is_uniform else (int(begin), int(ends[last - 1]))
            block = values[rows[0] : rows[1]].reshape(-1)
            if not here.all():
                block = block[np.repeat(here, lengths[first:last])]
            store.fill(keys[first:last][here], block)
        first = last


def _read_states(file: Any, store: Store, keys: np.ndarray) -> None:
    lengths = state_lengths(store, keys)
    ends = np.cumsum(lengths)
    states, is_uniform = file.get_slice("states"), not _has_varying_states(file)
    most = max(1, BLOCK_BYTES // (store.dtype.itemsize * max(int(lengths.max(initial=1)), 1)))
    for first in range(0, len(keys), most):
        last = min(first + most, len(keys))
        here = store.is_here(keys[first:last])
        if here.any():
            rows = (first, last) if is_uniform else (int(ends[first] - lengths[first]), int(ends[last - 1]))
            block = states[rows[0] : rows[1]].reshape(-1)
            fill_states(store, keys[first:last][here], block[np.repeat(here, lengths[first:last])])
