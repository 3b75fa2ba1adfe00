"""Time and memory of the first answer of models of a million rows, each question in a new process.

    .venv/bin/python benchmarks/answers.py [--folder FOLDER]

It writes three models of random numbers (word2vec, kge, mf; 1.5 GB with a million rows of 100 numbers), asks each
question several times, and prints the medians: seconds from the start of Python to its end, seconds of CPU time, and
the most memory beside the mapped files (anonymous, Python and NumPy included). The files are in the page cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lapse.apps._shared.files import write_arrays

REPEATED = 5
ROWS_AT_ONCE = 1 << 16
RELATIONS = 100


def write_array(path, rows, *shape):
    """Random numbers for `numpy.load`, a block at a time."""
    rng = np.random.default_rng(0)
    counts = (min(ROWS_AT_ONCE, rows - first) for first in range(0, rows, ROWS_AT_ONCE))
    write_arrays({path: (rows, *shape)}, ((rng.standard_normal((count, *shape), np.float32),) for count in counts))


def write_lines(path, line, count):
    """A line for each number."""
    path.write_text("".join(line.format(i) + "\n" for i in range(count)))


def write_models(folder, rows, dim):
    """The files that the applications write with ``--output``."""
    words, graph, ratings = (folder / name for name in ("words", "graph", "ratings"))
    for each in (words, graph, ratings):
        each.mkdir(exist_ok=True)
    write_array(words / "vectors.npy", rows, dim)
    write_lines(words / "vocab.txt", "word_number_{0} 7", rows)
    write_array(graph / "entities.npy", rows, dim)
    write_array(graph / "relations.npy", RELATIONS, dim)
    write_lines(graph / "entities.tsv", "{0}\tentity_number_{0}", rows)
    write_lines(graph / "relations.tsv", "{0}\trelation_{0}", RELATIONS)
    about = {"name": "complex", "dim": dim, "norm": 1, "reciprocal": False}
    about |= {"num_entities": rows, "num_relations": RELATIONS}
    (graph / "model.json").write_text(json.dumps(about))
    for side in ("row", "column"):
        write_array(ratings / f"{side}s.npy", rows, dim)
        write_array(ratings / f"{side}_biases.npy", rows)
        write_lines(ratings / f"{side}_ids.txt", side + "_number_{0}", rows)
    about = {"mean": 3.5, "low": 1.0, "high": 5.0, "rank": dim, "biases": True, "solver": "als"}
    about |= {"implicit": False, "alpha": 1.0, "regularization": 0.1, "bias_regularization": 0.02}
    (ratings / "model.json").write_text(json.dumps(about))
    write_lines(folder / "seen.tsv", "row_number_77\tcolumn_number_{0}\t4", 1000)
    write_lines(folder / "new.tsv", "somebody\tcolumn_number_{0}\t4", 43)


def questions(folder, rows):
    """The name and the command line of each question, after ``python -m``."""
    words, graph, ratings = (str(folder / name) for name in ("words", "graph", "ratings"))
    last = f"entity_number_{rows - 1}"
    terms = ("word_number_5", "-", "word_number_77", "+", "word_number_9")
    users = (f"row_number_{rows // 2}", "row_number_77")
    return {
        "query, sum of three words": ("word2vec", "query", words, *terms),
        "predict, objects": ("kge", "predict", graph, last, "relation_3", "?"),
        "predict, subjects": ("kge", "predict", graph, "?", "relation_3", last),
        "recommend, two users, --seen": ("mf", "recommend", ratings, *users, "--seen", str(folder / "seen.tsv")),
        "recommend --similar": ("mf", "recommend", ratings, "--similar", f"column_number_{rows - 2}"),
        "recommend --new-users, 43 ratings": ("mf", "recommend", ratings, "--new-users", str(folder / "new.tsv")),
    }


def ask(command):
    """Seconds, seconds of CPU time, and the most anonymous memory in bytes, of a process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    most = 0
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        lines = Path(f"/proc/{process.pid}/status").read_text().split("\n")
        most = max([most, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))])
        time.sleep(0.001)
    seconds = time.perf_counter() - begin
    answer = process.stdout.read()
    if status or len(answer.splitlines()) < 10:
        sys.exit(f"{command} has not answered")
    return seconds, usage.ru_utime + usage.ru_stime, most


def main():
    """Print a line for each question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for the models (default: a temporary one)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each model (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=100, help="numbers of a row (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_models(Path(folder), args.rows, args.dim)
        for name, command in questions(Path(folder), args.rows).items():
            application, *options = command
            line = [sys.executable, "-m", f"lapse.apps.{application}", *options]
            seconds, cpu, memory = np.median([ask(line) for _ in range(REPEATED)], axis=0)
            print(f"{name}: {seconds:.2f} s, {cpu:.2f} s of CPU time, {memory / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
