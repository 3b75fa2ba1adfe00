"""The built wheel in an environment of its own, away from the source tree."""

import itertools
import re
import shutil
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.deadline(500)  # the first test waits for pip and the compiler

STRANGER = Path(__file__).parent / "stranger"
KERNELS = Path(__file__).parents[2] / "docs" / "kernels.md"

JOB = """
import lapse, numpy as np

with lapse.Server(100, 3) as server:
    def work(kv):
        keys = np.arange(100)
        kv.push(keys, np.ones((100, 3), "f4")).wait()
        kv.barrier()
        return float(kv.pull(keys).wait().sum())
    total = server.run(work)[0]
    assert total == 300.0 * server.size, total
    if server.rank == 0:
        print("ranks", server.size, "from", lapse.__file__)
"""


def test_declarations_are_in_the_wheel_and_sources_of_tests_are_not(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"lapse/__init__.pxd", "lapse/_build_info.py", "lapse/py.typed"} <= set(names)
    compiled = [name for name in names if name.endswith(".so")]
    assert any(name.startswith("lapse/_comm.") for name in compiled)
    assert any(name.startswith("lapse/apps/word2vec/_kernel.") for name in compiled)
    assert not [name for name in names if name.startswith(("tests", "build", "find_mpi"))]


def test_job_on_two_ranks(environment, tmp_path):
    job = environment.mpirun(2, JOB, cwd=tmp_path).check()
    assert "ranks 2" in job.stdout
    assert str(environment.folder) in job.stdout


def test_application_from_anywhere(environment, tmp_path):
    job = environment.mpirun(2, ["-m", "lapse.apps.simple"], cwd=tmp_path).check()
    assert job.stdout.strip().splitlines()[-1].startswith("RESULT ")


def test_stranger_compiles_a_kernel_and_runs_it(environment, tmp_path):
    folder = tmp_path / "stranger"
    shutil.copytree(STRANGER, folder)
    environment.pip_install("setuptools", "cython")
    environment.run(["setup.py", "build_ext", "--inplace"], cwd=folder, timeout=120).check()
    job = environment.mpirun(2, ["job.py"], cwd=folder).check()
    assert "stranger: sums are right on 2 ranks" in job.stdout


def blocks_of(page):
    """The code blocks of a page that follow the name of their file, by name."""
    found = re.findall(
        r"`([a-z_]+\.(?:pyx?|toml))`:\n\n```\w+\n(.*?)\n```\n", page.read_text(encoding="utf-8"), re.DOTALL
    )
    return {name: code + "\n" for name, code in found}


def test_the_kernel_of_the_page_compiles_without_warnings_and_runs(environment, tmp_path):
    files = blocks_of(KERNELS)
    assert set(files) == {"setup.py", "counting.pyx", "in_place.pyx", "job.py", "pyproject.toml"}
    for name, code in files.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    environment.pip_install("setuptools>=77", "cython>=3.1")
    build = environment.run(["setup.py", "build_ext", "--inplace"], cwd=tmp_path, timeout=120).check()
    assert "warning" not in build.output
    job = environment.mpirun(2, ["job.py"], cwd=tmp_path).check()
    losses = [float(loss) for loss in job.stdout.split()]
    assert len(losses) == 5 and all(later < earlier / 3 for earlier, later in itertools.pairwise(losses))


IN_PLACE_JOB = """
import numpy as np
import in_place, lapse

def train(kv):
    keys = np.arange(kv.id, 100, kv.num_workers, dtype=np.int64)
    targets = np.repeat(keys, 3).reshape(len(keys), 3).astype(np.float32)
    kv.localize(keys[::2]).wait()
    done = [in_place.epoch(kv, keys, targets) for _ in range(40)]
    try:
        in_place.epoch(kv, keys + 100, targets)
    except IndexError:
        pass
    kv.barrier()
    assert np.allclose(kv.pull(keys).wait(), targets, atol=1e-3)
    return min(done) >= len(keys[::2])

with lapse.Server(100, 3, workers=2, shared_memory=False) as server:
    assert all(server.run(train))
    print("changed in place")
"""


def test_the_page_s_kernel_that_borrows_compiles_without_warnings_and_runs(environment, tmp_path):
    files = blocks_of(KERNELS)
    (tmp_path / "in_place.pyx").write_text(files["in_place.pyx"], encoding="utf-8")
    (tmp_path / "setup.py").write_text(files["setup.py"].replace("counting", "in_place"), encoding="utf-8")
    environment.pip_install("setuptools>=77", "cython>=3.1")
    build = environment.run(["setup.py", "build_ext", "--inplace"], cwd=tmp_path, timeout=120).check()
    assert "warning" not in build.output
    job = environment.mpirun(2, IN_PLACE_JOB, cwd=tmp_path).check()
    assert job.stdout.count("changed in place") == 2
