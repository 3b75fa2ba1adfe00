"""The extension modules of Lapse. What is not about compiling is in pyproject.toml."""

import os
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit("lapse: free-threaded builds of Python are not supported: use the ordinary build")

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import find_mpi  # a neighbour of this file, which build backends do not look for

# Every .pyx file of the package is a module, named as it lies.
MODULES = sorted(str(path.with_suffix("")).replace(os.sep, ".") for path in Path("lapse").rglob("*.pyx"))
# What Cython would otherwise put into each module: that is half of the time to compile all of them.
SHARED_MODULE = "lapse.base._cyutility"
MPI_MODULES = {"lapse.communication._transport", "lapse.bench._pingpong"}  # the only ones that include mpi.h

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}
# LAPSE_SANITIZE=address, undefined or thread: for `tests/sanitize.py`, which says what is done with the result.
SANITIZER = os.environ.get("LAPSE_SANITIZE")
# LAPSE_OPTIMIZE=0 compiles in a fifth of the time: to see that everything compiles, not to train.
OPTIMIZE = os.environ.get("LAPSE_OPTIMIZE") or ("1" if SANITIZER else "3")
# -march=native is left out on purpose: a wheel must run on any machine of its architecture.
CFLAGS = [f"-O{OPTIMIZE}", "-fno-math-errno", "-fno-trapping-math", "-g0", "-pthread"]
# The loops over the keys of a call begin at cache lines: their speed changed by 3% when unrelated code moved by 16
# bytes.
MODULE_CFLAGS = {"lapse._store": ["-falign-functions=64"]}
if SANITIZER:
    CFLAGS += ["-g1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZER}"]
    if SANITIZER == "thread":
        CFLAGS += ["-Wno-tsan"]  # fences alone are not followed; each of ours only orders what is atomic anyway
NUMPY_API = ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")

JOBS = int(os.environ.get("LAPSE_BUILD_JOBS") or len(os.sched_getaffinity(0)))


def extension(name, mpi):
    """Describe one module: its source lies where its name says, or will lie there if Cython generates it."""
    import numpy

    source = name.replace(".", "/") + (".c" if name == SHARED_MODULE else ".pyx")
    options = mpi.compile_options if name in MPI_MODULES else {}
    include_dirs = [".", os.path.dirname(source), numpy.get_include()]
    return Extension(
        name,
        [source],
        include_dirs=include_dirs + options.get("include_dirs", []),
        define_macros=[NUMPY_API, *options.get("define_macros", [])],
        library_dirs=options.get("library_dirs", []),
        libraries=options.get("libraries", []),
        extra_compile_args=CFLAGS + MODULE_CFLAGS.get(name, []),
        extra_link_args=["-pthread", *([f"-fsanitize={SANITIZER}"] if SANITIZER else [])],
    )


def with_included(paths):
    """These files, and the headers of this project that they include, directly or not: Cython knows those it names."""
    found, left = set(), list(paths)
    while left:
        path = os.path.normpath(left.pop())
        if path in found or not os.path.isfile(path):
            continue
        found.add(path)
        if path.endswith(".h"):
            names = re.findall(r'^\s*#\s*include\s*"([^"]+)"', Path(path).read_text(encoding="utf-8"), re.MULTILINE)
            left += [os.path.join(folder, name) for name in names for folder in (os.path.dirname(path), ".")]
    return sorted(found)


def translate(extensions, settings, force):
    """Translate to C what has changed, and let the extensions name the results."""
    from Cython.Build import cythonize

    translated = cythonize(
        list(extensions),
        nthreads=JOBS,
        force=force or None,  # None: what has changed, and all if CYTHON_FORCE_REGEN is set
        build_dir="build/cython-lines" if SANITIZER else "build/cython",
        emit_linenums=bool(SANITIZER),  # so that reports name lines of Cython
        compiler_directives=DIRECTIVES,
        shared_utility_qualified_name=SHARED_MODULE,
    )
    by_name = {result.name: result for result in translated}
    for ext in extensions:
        ext.sources = by_name[ext.name].sources
        ext.depends = [*with_included(by_name[ext.name].depends), settings]


def note_settings(extensions):
    """Note what the modules are compiled with.

    Returns
    -------
    path : str
        A file that is newer than what was compiled with other settings. It stands for this file, which changes with
        every new module.
    changed : bool
    """
    path = os.path.join(BUILD_BASE, "settings.txt")
    options = {repr((e.include_dirs[2:], e.define_macros, e.library_dirs, e.libraries)) for e in extensions}
    settings = SHARED_MODULE, DIRECTIVES, CFLAGS, MODULE_CFLAGS
    text = "\n".join([sys.version, *map(repr, settings), *sorted(options)])
    known = None
    if os.path.exists(path):
        with open(path) as file:
            known = file.read()
    if known != text:
        os.makedirs(BUILD_BASE, exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
    if known is None:
        os.utime(path, (0, 0))  # nothing was compiled with other settings
    return path, known is not None and known != text


class BuildExt(build_ext):
    """Translate, compile, and record the MPI beside the modules."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or JOBS  # not among `options` of setup(): an editable install forgets those

    def run(self):
        if self.editable_mode:  # keep the objects, so that only what changed is compiled again
            self.build_lib = os.path.join(BUILD_BASE, f"lib-{sys.implementation.cache_tag}")
            self.build_temp = os.path.join(BUILD_BASE, f"temp-{sys.implementation.cache_tag}")
        translate(self.extensions, *note_settings(self.extensions))
        super().run()
        MPI.write_build_info(os.path.join(self.build_lib, "lapse"))
        if self.editable_mode or self.inplace:
            MPI.write_build_info("lapse")


MPI = find_mpi.choose()
BUILD_BASE = f"build/{MPI.family}-{MPI.version}"  # objects of one MPI never meet another
if SANITIZER:
    BUILD_BASE += f"-{SANITIZER}"

setup(
    ext_modules=[extension(name, MPI) for name in [SHARED_MODULE, *MODULES]],
    cmdclass={"build_ext": BuildExt},
    options={"build": {"build_base": BUILD_BASE}},
)
