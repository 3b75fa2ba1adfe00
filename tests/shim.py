"""Let the n-th call of a function of MPI or of the system fail, or spoil a message: libraries for LD_PRELOAD."""

import contextlib
import functools
import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SOURCES = Path(__file__).parent / "shims"
ROOT = SOURCES.parents[1]

_lock = threading.Lock()


def failing(*calls, large_bytes=None):
    """Return the variables of a job in which calls fail.

    Parameters
    ----------
    *calls : tuple
        ``(name, n)`` or ``(name, n, rank)``: the n-th call of the function, from 1; on every rank, or on one. ``n`` may
        be ``"3+"``: each from the third on. The functions: see ``shims/fail_call.c``.
    large_bytes : int, optional
        What ``malloc`` and ``mmap`` must ask for to be counted: 1 MiB by default.

    Returns
    -------
    dict of str to str

    Raises
    ------
    Unavailable
        Where there is no compiler.
    """
    from lapse import _mpi_loader

    env = {
        "LD_PRELOAD": str(_library("fail_call.c")),
        "LAPSE_FAIL": ",".join(":".join(map(str, call)) for call in calls),
        "LAPSE_FAIL_MPI": _mpi_loader.library_path(),
    }
    return env if large_bytes is None else {**env, "LAPSE_FAIL_BYTES": str(large_bytes)}


def spoiling(kind, n, value_bytes, old=False):
    """Return the variables of a job in which every n-th message of a kind has another value.

    Parameters
    ----------
    kind : str
        Of the message, such as ``"TRANSFER"``; its first value is replaced by zeros.
    n : int
        Of those that a rank sends.
    value_bytes : int
        The size of every value.
    old : bool
        By what the message before it had, instead of zeros.

    Raises
    ------
    Unavailable
        Where there is no compiler.
    """
    from lapse.messaging._kinds import MESSAGE_KINDS

    from lapse import _mpi_loader

    number = next(number for number, each in MESSAGE_KINDS.items() if each.name == kind)
    return {
        "LD_PRELOAD": str(_library("spoil_message.c")),
        "LAPSE_SPOIL": f"{number}:{n}:{value_bytes}:{int(old)}",
        "LAPSE_SPOIL_MPI": _mpi_loader.library_path(),
    }


class Unavailable(Exception):
    """The shim cannot be compiled here; the message says why."""


def _library(name):
    with _lock:  # several threads may start jobs
        return _compiled(SOURCES / name)


@functools.cache
def _compiled(source):
    """Compile a shim unless that was done before."""
    compiler = _mpi_compiler()
    name = hashlib.sha256(repr(compiler).encode() + source.read_bytes()).hexdigest()[:16]
    path = Path(tempfile.gettempdir(), f"lapse-shim-{os.getuid()}-{name}.so")
    if not path.exists():
        new = path.with_suffix(f".{os.getpid()}")
        command = [*compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(new), str(source), "-ldl", "-pthread"]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            raise Unavailable(f"{shlex.join(command)} failed: {made.stderr.strip()[-500:]}")
        new.replace(path)
    return path


def _mpi_compiler():
    """The C compiler and where mpi.h is. Not the wrapper itself: the shim must not be linked to MPI."""
    sys.path.insert(0, str(ROOT))
    try:
        import find_mpi
    finally:
        sys.path.remove(str(ROOT))
    with contextlib.redirect_stdout(None):  # it says what it has found
        folders = find_mpi.choose().compile_options.get("include_dirs", [])
    return [*shlex.split(os.environ.get("CC", "cc")), *(f"-I{folder}" for folder in folders)]
