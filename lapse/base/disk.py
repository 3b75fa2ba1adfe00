"""Floor 0. Bringing files to disk."""

import os


def sync(path: str | os.PathLike[str]) -> None:
    """Bring a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
