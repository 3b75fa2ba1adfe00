"""One run at a time for a folder or a file of output."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path

from lapse.apps._shared.job import AppError

#: What file systems answer that have no locks.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Lock:
    """Holds a file locked until `release` is called or this process ends, however it ends.

    The lock is the kernel's (`flock`): nothing remains of it when its process is killed. Where the file system has
    none, the process that the file names counts, if it lives or is on another host.

    Parameters
    ----------
    path
        The file, which is created, and removed at the end.
    what
        What is locked, for messages.

    Raises
    ------
    AppError
        If another process holds it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what
        self.release = weakref.finalize(self, _release, self._acquire(), path)  # called at the end at the latest

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._lock(descriptor)
                if not self._is_the_file(descriptor):  # its holder has removed it meanwhile
                    os.close(descriptor)
                    continue
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                raise
            return descriptor

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            if error.errno in _UNSUPPORTED and not _may_live(holder):
                return
            if error.errno not in _UNSUPPORTED and error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise AppError(
                f"{self._what} is in use by another run{_show(holder)}: choose another one, or wait for its end"
                + (f" (if it has ended, remove {self._path})" if error.errno in _UNSUPPORTED else "")
            ) from None

    def _is_the_file(self, descriptor: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self._path), os.fstat(descriptor))
        return False


def _release(descriptor: int, path: Path) -> None:
    """Let another run have it; a forked child only forgets it."""
    with contextlib.suppress(OSError):
        holder, here = _holder(descriptor), _this_process()
        if (holder.get("pid"), holder.get("host")) == (here["pid"], here["host"]):
            path.unlink()  # while it is locked: whoever opens it later finds another file, or none
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _this_process() -> dict:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _holder(descriptor: int) -> dict:
    """The process that the file names; empty if it cannot be told."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(os.pread(descriptor, 4096, 0))
        if isinstance(found, dict):
            return found
    return {}


def _may_live(holder: dict) -> bool:
    if holder.get("host") != socket.gethostname():
        return bool(holder)
    pid = holder.get("pid")
    if not isinstance(pid, int) or not 0 < pid < 1 << 31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _show(holder: dict) -> str:
    if not holder:
        return ""
    return f", process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
