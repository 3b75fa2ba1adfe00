"""Train word vectors on some ranks of this machine and read what the training has measured; for other programs here."""

import json
import os
import subprocess
import sys
from pathlib import Path

from lapse import _mpi_loader


def train(ranks: int, text: Path, folder: Path, options: list[str], *, shares_memory: bool = False) -> list[dict]:
    """Train on a text, and write the model to ``model`` in the folder; return the metrics of each epoch.

    Ranks that share no memory exchange messages, as ranks of different hosts do. If the training fails, this program
    ends with its messages.
    """
    metrics = folder / "metrics.jsonl"
    command = [_mpi_loader.launcher_path(), "-n", ranks, sys.executable, "-m", "lapse.apps.word2vec"]
    command += ["--corpus", text, "--output", folder / "model", "--binary"]
    command += ["--metrics", metrics, "--no-progress", *options]
    environment = os.environ | {"LAPSE_SHARED_MEMORY": str(int(shares_memory)), "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(words)} has failed:\n{ended.stderr[-2000:]}")
    return [json.loads(line) for line in metrics.read_text().splitlines()]
