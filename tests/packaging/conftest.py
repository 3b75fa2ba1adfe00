"""A wheel built from a copy of the sources, and an environment with nothing but that wheel."""

import os
import shutil
import sys
import sysconfig
import time
from pathlib import Path

import pytest

import launch
from lapse import _build_info

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = (
    ".git",
    ".venv",
    "build",
    "dist",
    "*.so",
    "_build_info.py",
    "__pycache__",
    "*.egg-info",
    ".pytest_cache",
    ".hypothesis",
)

TRANSLATED = ROOT / "build" / "cython"
#: Later than pip installs the declarations of Cython and NumPy: what is older than these is translated anew.
SOON = time.time() + 3600


class Environment:
    """A virtual environment with the wheel, away from the source tree."""

    def __init__(self, folder):
        self.folder = Path(folder)
        launch.run([sys.executable, "-m", "venv", self.folder], timeout=120).check()
        self.python = self.folder / "bin" / "python"

    def pip_install(self, *requirements):
        """Install into this environment."""
        pip = [self.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        launch.run([*pip, *requirements], timeout=300, env=CLEAN).check()

    def run(self, args, cwd, timeout=60, env=None):
        """Run this environment's Python."""
        return launch.run([self.python, *args], timeout, {**CLEAN, **(env or {})}, cwd)

    def mpirun(self, n, args, cwd, timeout=60):
        """Run this environment's Python under the `mpirun` of its MPI."""
        own = self.folder / "bin" / "mpirun"
        launcher = own if own.exists() else launch.mpirun_command()
        return launch.mpirun(n, args, timeout, CLEAN, cwd, self.python, launcher)


#: What this process has chosen must not leak into the other environment.
CLEAN = {"MPI4PY_LIBMPI": None, "PYTHONPATH": None, "VIRTUAL_ENV": None}

#: What older compilers only warn of, and GCC 14 refuses.
NEWER_COMPILERS = "-Werror=int-conversion -Werror=incompatible-pointer-types -Werror=implicit-function-declaration"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Build the wheel as a user does: ``pip wheel .``

    What Cython made of the sources for the installed package, as it does in every clone, is taken along: compiling it
    again, with more warnings as errors, is half of a build. It is not optimized, which takes five times as long: the
    other tests use what is.
    """
    sources = tmp_path_factory.mktemp("sources") / "lapse"
    shutil.copytree(ROOT, sources, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    for path in TRANSLATED.rglob("*.c"):
        copied = sources / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
        os.utime(copied, times=(SOON, SOON))
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps"]
    env = {**CLEAN, "CFLAGS": f"{sysconfig.get_config_var('CFLAGS')} {NEWER_COMPILERS}", "LAPSE_OPTIMIZE": "0"}
    launch.run([*pip, "--wheel-dir", folder, "."], timeout=450, env=env, cwd=sources).check()
    shutil.rmtree(sources)
    return next(folder.glob("lapse-*.whl"))


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory):
    """Install the wheel, with an MPI from PyPI where it was built for one."""
    made = Environment(tmp_path_factory.mktemp("environment") / "venv")
    extra = f"[{_build_info.family}]" if _build_info.folder == "wheel" else ""
    made.pip_install(os.fspath(wheel) + extra)
    return made
