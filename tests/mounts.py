"""Whether a test may mount a small disk for what it starts."""

import subprocess


def may_mount():
    """Whether this user may mount in a namespace of mounts, which most containers refuse."""
    words = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /dev/shm"]
    try:
        return subprocess.run(words, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
