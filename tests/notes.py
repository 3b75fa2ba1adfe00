"""What a test process leaves for `tests/run.py`: outcomes, and where it was when it died.

Files in one folder per phase: ``collected`` (number of tests), ``results.jsonl`` (an outcome per
line), and for each process P ``P.running`` (the test under way), ``P.stacks`` and ``P.failure``.
"""

import json
import os
from pathlib import Path

FOLDER_VARIABLE = "LAPSE_TEST_NOTES"
RESULTS = "results.jsonl"

#: How a skip begins that is no failure of a run under MPI.
RANK_COUNT_REASONS = ("rank count: ", "Skipped: rank count: ", "Skipped: Test requires ")

RANK = int(os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or 0)

#: Whether other processes share the tests among them (pytest-xdist), and this is one of these.
IS_XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ

#: The name of this process in the names of notes.
PROCESS = os.environ.get("PYTEST_XDIST_WORKER") or f"rank {RANK}"

#: None if pytest was started by hand.
FOLDER = Path(os.environ[FOLDER_VARIABLE]) if os.environ.get(FOLDER_VARIABLE) else None


def note(name, text):
    """Replace a note, if anybody listens."""
    if FOLDER is not None:
        (FOLDER / name).write_text(text, encoding="utf-8")


def note_outcome(report):
    """Add the outcome of one phase of a test, where it is the one that counts."""
    if FOLDER is None or RANK != 0 or IS_XDIST_WORKER or (report.when != "call" and report.passed):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    line = {
        "test": report.nodeid,
        "outcome": report.outcome,
        "reason": reason,
        "xfail": hasattr(report, "wasxfail"),
        "text": report.longreprtext if report.failed else "",
    }
    with open(FOLDER / RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_outcomes(folder):
    """Return ``{test: its worst outcome}``, where several phases of a test left one."""
    worst = {}
    path = Path(folder, RESULTS)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        outcome = json.loads(line)
        if worst.get(outcome["test"], {}).get("outcome") != "failed":
            worst[outcome["test"]] = outcome
    return worst
