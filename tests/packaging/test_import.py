"""Importing the package: no MPI is started, and what does not fit is explained in words."""

import shutil
import sys
from pathlib import Path

import pytest

import lapse
import launch
from lapse import _build_info, _mpi_loader

OTHER = {"mpich": "openmpi", "openmpi": "mpich"}[_build_info.family]
UNSET = {"MPI4PY_LIBMPI": None, "MPI4PY_MPIABI": None}

#: Pretend that the package was built for the other MPI.
PRETEND = f"""
import sys, types
info = types.ModuleType("lapse._build_info")
info.family, info.version, info.folder = {OTHER!r}, "9.9", "/nowhere"
info.soname, info.alias = "libmpi.so.99", None
sys.modules["lapse._build_info"] = info
"""


def python(script, env=None, cwd=None):
    """Run a script in a fresh interpreter."""
    return launch.run([sys.executable, "-c", script], 60, {**UNSET, **(env or {})}, cwd)


def test_import_loads_no_mpi():
    script = "import sys, lapse; lapse.Constant; assert 'mpi4py.MPI' not in sys.modules"
    python(script).check()


def test_public_names_are_there():
    python("import lapse; [getattr(lapse, name) for name in lapse.__all__]").check()
    assert set(dir(lapse)) == set(lapse.__all__)


def test_mpi4py_loads_the_mpi_of_the_build():
    script = "import lapse; from mpi4py import MPI; print(MPI.get_vendor()[0])"
    assert python(script).check().stdout.strip() == _mpi_loader.FAMILY_NAMES[_build_info.family]


def test_variable_asks_for_another_mpi():
    job = python("import lapse", {"MPI4PY_MPIABI": OTHER})
    assert job.returncode != 0
    assert "ImportError: lapse was built for" in job.stderr
    assert _mpi_loader.describe_build() in job.stderr
    assert repr(OTHER) in job.stderr and "make install" in job.stderr


def test_another_mpi_is_loaded_already():
    choose = "import os, lapse; os.environ['MPI4PY_LIBMPI']; print(os.environ['MPI4PY_LIBMPI'])"
    library = python(choose).check().stdout.strip()
    script = "from mpi4py import MPI\n" + PRETEND + "import lapse"
    job = python(script, {"MPI4PY_LIBMPI": library})
    assert job.returncode != 0 and "ImportError" in job.stderr
    assert _mpi_loader.FAMILY_NAMES[OTHER] + " 9.9" in job.stderr
    assert "has loaded " + _mpi_loader.FAMILY_NAMES[_build_info.family] in job.stderr
    assert "MPICC=" in job.stderr


def test_a_library_of_another_vendor_counts_by_what_it_exports():
    """As that of Intel, which has the name and the binary interface of MPICH."""
    script = "import lapse; from mpi4py import MPI; MPI.get_vendor = lambda: ('Intel MPI', (2021, 18, 0)); "
    python(script + "lapse.Server(1, 1).close()").check()


def test_started_by_the_launcher_of_another_mpi():
    variable = _mpi_loader._RANKS_BY_LAUNCHER[OTHER]
    script = "import lapse; lapse.Server(1, 1)"
    job = python(script, {variable: "2"})
    assert job.returncode != 0
    assert f"{variable} says that 2 ranks were started" in job.stderr
    assert launch.mpirun_command() in job.stderr


def test_sources_that_are_not_compiled(tmp_path):
    skip = shutil.ignore_patterns("*.so", "_build_info.py", "__pycache__")
    shutil.copytree(Path(lapse.__file__).parent, tmp_path / "lapse", ignore=skip)
    job = python("import lapse", cwd=tmp_path)
    assert job.returncode != 0
    assert "run 'make install'" in job.stderr


#: Pretend that the interpreter is a free-threaded build.
NO_GIL = """
import runpy, sys, sysconfig
known = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: 1 if name == "Py_GIL_DISABLED" else known(name)
"""


def test_a_free_threaded_interpreter_is_refused():
    job = python(NO_GIL + "import lapse")
    assert job.returncode != 0
    assert "ImportError: lapse does not support free-threaded builds of Python" in job.stderr


def test_nothing_is_built_for_a_free_threaded_interpreter():
    setup = Path(lapse.__file__).parents[1] / "setup.py"
    if not setup.exists():
        pytest.skip("installed without its sources")
    job = python(NO_GIL + f"sys.argv = ['setup.py', 'build']; runpy.run_path({str(setup)!r})", cwd=setup.parent)
    assert job.returncode == 1
    assert job.stderr.strip() == "lapse: free-threaded builds of Python are not supported: use the ordinary build"
