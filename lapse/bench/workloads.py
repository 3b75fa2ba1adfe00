"""What group ``scaling`` trains: one entry of `WORKLOADS` each.

To add a workload: add an entry. Its program must understand ``--slow-down X``, ``--epochs N``, ``--seed N``,
``--management NAME``, ``--metrics FILE`` and ``--no-progress`` as the applications do (see
`lapse.apps._shared.options`), and end with a line ``RESULT`` and a JSON object.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: Names a folder with data sets: ``wikitext-2/*.txt.gz``, ``fb15k-237/``.
DATA_VARIABLE = "LAPSE_DATA"


@dataclass(frozen=True)
class Workload:
    """A training.

    Attributes
    ----------
    name
        As on the command line.
    program
        Arguments of Python.
    options
        Of the program, beyond its defaults.
    epochs
        How many it trains.
    dilation
        How many times slower time goes, if nothing else is asked for: so that 8 hosts need half of two cores.
    quality
        A figure of the ``RESULT`` line, or of the last epoch.
    targets
        The speed-up that should be reached, by the number of hosts.
    data
        Further options, for the data: called with the folder of ``--data`` (or None) and a folder for temporary files.
    quick
        Options that replace `options` and `data` in a smoke test.
    """

    name: str
    program: tuple[str, ...]
    options: tuple[str, ...] = ()
    epochs: int = 3
    dilation: float = 10.0
    quality: str = "loss"
    targets: Mapping[int, float] = field(default_factory=dict)
    data: Callable[[Path | None, Path], tuple[str, ...]] = lambda folder, temporary: ()
    quick: tuple[str, ...] = ()


def data_folder(chosen: Path | None) -> Path | None:
    """The folder with data sets: what was chosen, else that of the environment, if it exists."""
    named = chosen or os.environ.get(DATA_VARIABLE)
    return Path(named) if named and Path(named).is_dir() else None


def text(folder: Path | None, temporary: Path) -> tuple[str, ...]:
    """The files of ``wikitext-2`` in one; else the documentation of this Python."""
    parts = sorted((folder / "wikitext-2").glob("*.txt*")) if folder else []
    if not parts:
        return ()
    path = temporary / "wikitext-2.txt"
    contents = (part.read_bytes() for part in parts)
    path.write_bytes(b"".join(gzip.decompress(each) if each[:2] == b"\x1f\x8b" else each for each in contents))
    return ("--corpus", str(path))


def graph(folder: Path | None, temporary: Path) -> tuple[str, ...]:
    """``fb15k-237``; else the graph of the standard library."""
    path = folder / "fb15k-237" if folder else None
    return ("--dataset", str(path)) if path is not None and path.is_dir() else ()


_APP = ("-m",)
_WORDS = ("--dim", "16", "--min-count", "1")

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "word2vec",
            (*_APP, "lapse.apps.word2vec"),
            epochs=5,
            dilation=100.0,
            targets={2: 1.8, 4: 3.4, 8: 6.0},
            data=text,
            quick=("--synthetic-words", "300", "--synthetic-length", "20000", *_WORDS),
        ),
        Workload(
            "word2vec-large",
            (*_APP, "lapse.apps.word2vec"),
            ("--synthetic-words", "100000", "--synthetic-length", "3000000", "--min-count", "1"),
            epochs=1,
            dilation=80.0,
            targets={2: 1.8, 4: 3.2, 8: 5.5},
            quick=("--synthetic-words", "3000", "--synthetic-length", "20000", *_WORDS),
        ),
        Workload(
            "kge",
            (*_APP, "lapse.apps.kge"),
            ("--eval-every", "0"),
            epochs=3,
            quality="mrr",
            targets={2: 1.7, 4: 3.0, 8: 5.0},
            data=graph,
            quick=("--dim", "8", "--num-negs-per-pos", "8", "--eval-every", "0"),
        ),
        Workload(
            "kge-large",
            (*_APP, "lapse.apps.kge"),
            ("--eval-every", "0", "--num-negs-per-pos", "1024", "--dim", "400"),
            epochs=1,
            quality="mrr",
            targets={2: 1.9, 4: 3.6, 8: 6.8},
            data=graph,
            quick=("--dim", "16", "--num-negs-per-pos", "32", "--eval-every", "0"),
        ),
        Workload(
            "mf",
            (*_APP, "lapse.apps.mf"),
            ("--rows", "50000", "--columns", "20000", "--entries", "20000000"),
            epochs=2,
            quality="rmse",
            targets={2: 1.8, 4: 3.4, 8: 6.0},
            quick=("--entries", "20000"),
        ),
        Workload(
            "clicks",
            (*_APP, "lapse.apps.clicks"),
            dilation=100.0,
            targets={2: 1.6, 4: 3.0, 8: 5.0},
            quick=("--examples", "20000"),
        ),
    )
}
#: What is measured if nothing is chosen.
DEFAULT = ("word2vec", "kge", "mf")
