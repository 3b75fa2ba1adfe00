"""``python -m lapse bench``: the smoke version of every group, its JSON lines, and what the program refuses."""

import json
import sys

import pytest

from lapse.bench._groups import load
from lapse.bench._rows import Row
from launch import mpirun, run

BENCH = [sys.executable, "-m", "lapse", "bench"]


@pytest.mark.parametrize("name", list(load()))
def test_group_runs_quickly_and_writes_json(name, tmp_path):
    job = run([*BENCH, name, "--quick", "--json", tmp_path / "rows.jsonl"], timeout=60).check()
    if "skipped: " in job.stderr:
        pytest.skip(job.stderr.strip())
    machine, *lines = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    rows = [Row.from_dict(line) for line in lines]
    assert machine["quick"] is True and machine["machine"]["cores"] >= 1
    assert rows and {row.group for row in rows} == {name}
    assert f"== {name}:" in job.stdout and "== targets" not in job.stdout


def test_help_and_list_name_every_group_without_starting_anything():
    listed = run([*BENCH, "--list"], timeout=30).check().stdout
    assert all(line.split()[0] in load() for line in listed.splitlines()) and len(listed.splitlines()) == len(load())
    assert "--json" in run([*BENCH, "--help"], timeout=30).check().stdout


@pytest.mark.parametrize(
    "options, message", [(["no_such_group"], "choose from local"), (["--quick", "--full"], "not allowed")]
)
def test_wrong_options_are_refused(options, message):
    job = run([*BENCH, *options], timeout=30)
    assert job.returncode == 2 and message in job.stderr


def test_under_mpirun_it_says_that_it_starts_mpirun_itself():
    job = mpirun(2, ["-m", "lapse", "bench", "--quick"], timeout=30)
    assert job.returncode != 0
    assert job.output.count("bench starts mpirun itself") == 1
