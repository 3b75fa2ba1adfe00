"""Which MPI to build with, asked of its compiler wrapper.

The wrapper is the one that ``MPICC`` names, or with ``LAPSE_MPI=system`` the first ``mpicc`` on
``PATH``, or else the one that the ``mpich`` package from PyPI brought into this environment.
``PATH`` is not searched by default: an MPI that happens to be installed is often not the one whose
``mpirun`` will be used.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

#: The names of the libraries that the wheels of mpi4py ask the dynamic loader for.
MPI4PY_SONAMES = {"mpich": "libmpi.so.12", "openmpi": "libmpi.so.40"}

VERSION_PROBE = """\
#include <mpi.h>
#if defined(OMPI_MAJOR_VERSION)
lapse_mpi openmpi OMPI_MAJOR_VERSION.OMPI_MINOR_VERSION.OMPI_RELEASE_VERSION
#elif defined(MPICH_VERSION)
lapse_mpi mpich MPICH_VERSION
#endif
"""
LINK_PROBE = "#include <mpi.h>\nint main(void) { return MPI_Init(0, 0); }\n"


class Mpi:
    """An MPI as its compiler wrapper describes it.

    Attributes
    ----------
    family : {"mpich", "openmpi"}
    version : str
    soname : str
        The name by which programs ask the dynamic loader for the library.
    folder : str
        Where the library is; ``"wheel"`` if it came from PyPI, since it then is in whatever
        environment the package is used in.
    alias : str or None
        The name by which mpi4py asks for the library, where that is another one: Debian calls the
        library of MPICH libmpich. A library of this name, which does nothing but load the real
        one, then lies in the package.
    compile_options : dict
        What an Extension needs in order to include ``mpi.h`` and to be linked.
    """

    def __init__(self, wrapper):
        self.wrapper = wrapper
        self.compile_options = _compile_options(_output([*wrapper, "-show"]))
        with tempfile.TemporaryDirectory() as scratch:
            self.family, self.version = _family_and_version(wrapper, scratch)
            library = _linked_library(wrapper, scratch)
        self.soname = library.name
        self.folder = "wheel" if _is_from_wheel(library, self.family) else str(library.parent)

        known_as = MPI4PY_SONAMES[self.family]
        self.alias = known_as if known_as != self.soname else None

    def write_build_info(self, folder):
        """Write ``_build_info.py``, which ``lapse._mpi_loader`` reads at import, and the alias."""
        lines = ['"""Written by setup.py: the MPI that this build is made for."""\n']
        lines += [f"{name} = {getattr(self, name)!r}" for name in ("family", "version", "soname", "folder", "alias")]
        text = "\n".join(lines) + "\n"
        path = Path(folder, "_build_info.py")
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if self.alias:
            self._link_alias(Path(folder, self.alias))

    def _link_alias(self, path):
        """Link an empty library whose name is the alias and whose one need is the MPI library."""
        _output(
            [
                *self.wrapper,
                "-shared",
                "-x",
                "c",
                os.devnull,
                "-o",
                str(path),
                f"-Wl,-soname,{self.alias}",
                "-Wl,--no-as-needed",
            ]
        )


def choose():
    """Return the `Mpi` to build with, or end with a sentence that says what is missing."""
    wrapper = _wrapper()
    try:
        mpi = Mpi(wrapper)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (getattr(error, "stderr", "") or "").strip()
        sys.exit(f"lapse: the compiler wrapper {shlex.join(wrapper)!r} failed: {error}\n{detail}")
    print(f"lapse: building with {mpi.family} {mpi.version} ({shlex.join(wrapper)})")
    return mpi


def _wrapper():
    """Return the command of the compiler wrapper."""
    named = os.environ.get("MPICC")
    if named:
        return shlex.split(named)
    if os.environ.get("LAPSE_MPI") == "system":
        return [shutil.which("mpicc") or sys.exit("lapse: LAPSE_MPI=system, but no mpicc on PATH")]
    try:
        files = metadata.files("mpich") or []
    except metadata.PackageNotFoundError:
        sys.exit(
            "lapse: no MPI to build with: install mpich from PyPI into this environment, "
            "or let MPICC name a compiler wrapper, or set LAPSE_MPI=system"
        )
    return [str(next(f for f in files if f.name == "mpicc").locate().resolve())]


def _output(command, **kwargs):
    return subprocess.run(command, check=True, capture_output=True, text=True, **kwargs).stdout


def _compile_options(shown):
    """Sort the options of a compiler command; no run paths, since mpi4py loads the library."""
    words = shlex.split(shown)
    macros = [word[2:].partition("=") for word in words if word.startswith("-D")]
    return {
        "include_dirs": [w[2:] for w in words if w.startswith("-I")],
        "library_dirs": [w[2:] for w in words if w.startswith("-L")],
        "libraries": [w[2:] for w in words if w.startswith("-l")],
        "define_macros": [(name, value or "1") for name, _, value in macros],
    }


def _family_and_version(wrapper, scratch):
    source = Path(scratch, "version.c")
    source.write_text(VERSION_PROBE)
    text = _output([*wrapper, "-E", "-P", str(source)])
    found = re.search(r"^lapse_mpi (\w+) (.+)$", text, re.MULTILINE)
    if not found:
        sys.exit(f"lapse: {shlex.join(wrapper)!r} is neither MPICH nor Open MPI")
    return found[1], re.sub(r'[\s"]', "", found[2])


def _linked_library(wrapper, scratch):
    """Link a program and return the path of its MPI library, named by its soname."""
    source, program = Path(scratch, "link.c"), Path(scratch, "link")
    source.write_text(LINK_PROBE)
    _output([*wrapper, str(source), "-o", str(program)])
    found = re.search(r"(libmpi\S*) => (/\S+)", _output(["ldd", str(program)]))
    if not found:
        sys.exit(f"lapse: the dynamic loader does not find the library of {shlex.join(wrapper)!r}")
    return Path(found[2]).parent.resolve() / found[1]


def _is_from_wheel(library, family):
    """Whether pip installed the library into the environment that runs this build."""
    try:
        files = metadata.files(family) or []
    except metadata.PackageNotFoundError:
        return False
    return any(f.name == library.name and Path(f.locate()).resolve() == library.resolve() for f in files)
