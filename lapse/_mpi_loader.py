"""Floor 0. Makes mpi4py load the MPI that the compiled modules were built for.

Two MPI libraries in one process end in crashes that nobody understands, and the wheel of mpi4py
takes the first library it finds. So the choice is made here, before `mpi4py.MPI` is loaded; where
it is too late for that, the two are compared and a difference is an `ImportError` in words.
"""

import ctypes
import importlib.machinery
import os
import re
import shutil
import site
import sys

FAMILY_NAMES = {"mpich": "MPICH", "openmpi": "Open MPI"}

#: What the launchers of the two families tell their children about the number of ranks.
_RANKS_BY_LAUNCHER = {"mpich": "PMI_SIZE", "openmpi": "OMPI_COMM_WORLD_SIZE"}

#: Open MPI refuses to run as root (the only user of many a container), or with more ranks than cores, unless told
#: otherwise; and it binds each rank to one core, which all threads of the rank would then share. MPICH does not look.
OPENMPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # up to version 4
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # from version 5
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}

#: The modules of this package that cannot be imported before MPI is loaded.
_NEED_MPI = ("lapse._comm", "lapse.worker._worker", "lapse.server.host", "lapse.server.server", "lapse.bench._pingpong")

_NOT_BUILT = "lapse is not built for this Python ({}): run 'make install' in its source folder"


def prepare(package_path):
    """Choose the MPI for mpi4py, without loading one.

    Parameters
    ----------
    package_path : list of str
        Where the compiled modules are expected.

    Raises
    ------
    ImportError
        If the package is not compiled, or another MPI is chosen or loaded already.
    """
    _require_build(package_path)
    info = _build_info()
    sys.meta_path.insert(0, _LoadFirst)
    if "mpi4py.MPI" in sys.modules:
        load()
    elif os.environ.get("MPI4PY_LIBMPI") or os.environ.get("MPI4PY_MPIABI"):
        _check_users_choice(info)
    else:
        # Not MPI4PY_MPIABI as well: told the family, mpi4py no longer loads the library itself.
        os.environ["MPI4PY_LIBMPI"] = _path_for_mpi4py(info)


def load():
    """Import `mpi4py.MPI` and make sure that it is the MPI of this build.

    Returns
    -------
    module
        `mpi4py.MPI`; importing it initialises MPI, unless `mpi4py.rc` says otherwise.
    """
    info = _build_info()
    # The MPICH from PyPI knows only its own launcher; under another one MPI_Init ends the process.
    only_hydra = info.family == "mpich" and info.folder == "wheel"
    if only_hydra and _ranks_started_by("openmpi") > 1 >= _ranks_started_by("mpich"):
        raise ImportError(_wrong_launcher("openmpi"))
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ImportError(_no_library(info, error)) from error
    vendor, version = MPI.get_vendor()
    loaded = f"{vendor} {'.'.join(map(str, version))} ({_loaded_library()})"
    if vendor != FAMILY_NAMES[info.family] or not _is_loaded(info.soname):
        raise ImportError(_mismatch(info, "mpi4py has loaded " + loaded))
    return MPI


class _LoadFirst:
    """Loads MPI before the modules that need it, whoever imports them.

    A kernel that does ``cimport lapse`` imports them by itself, as soon as it is imported.
    """

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Find nothing, as the import system asks for a module; but be there before it is found."""
        if name in _NEED_MPI:
            load()


def check_launcher(comm_world_size):
    """Raise if this process was started by the `mpirun` of another MPI.

    Such a job consists of single processes that do not know of each other.

    Parameters
    ----------
    comm_world_size : int
        The size of ``MPI.COMM_WORLD``.

    Raises
    ------
    RuntimeError
        If a launcher says that there are several ranks and MPI that there is one.
    """
    for family in FAMILY_NAMES:
        if comm_world_size == 1 and _ranks_started_by(family) > 1:
            raise RuntimeError(_wrong_launcher(family))


def describe_build():
    """Return the MPI of this build in words, such as ``MPICH 5.0.2 (libmpi.so.12, from PyPI)``."""
    info = _build_info()
    place = "from PyPI" if info.folder == "wheel" else f"in {info.folder}"
    return f"{FAMILY_NAMES[info.family]} {info.version} ({info.soname}, {place})"


def library_path():
    """Return the path of the MPI library; its bare name where no known folder has it."""
    info = _build_info()
    candidates = [] if info.folder == "wheel" else [info.folder]
    candidates += [os.path.join(prefix, "lib") for prefix in _prefixes()]
    for folder in candidates:
        path = os.path.join(folder, info.soname)
        if os.path.exists(path):
            return path
    return info.soname


def launcher_path():
    """Return the `mpirun` that belongs to the MPI of this build, or None where it was not found."""
    info = _build_info()
    folder = os.path.dirname(library_path())
    suffix = "." + info.family  # Debian keeps several MPIs side by side: mpirun.openmpi
    while folder not in ("", "/"):
        folder = os.path.dirname(folder)
        for name in ("mpirun" + suffix, "mpirun"):
            path = os.path.join(folder, "bin", name)
            if os.access(path, os.X_OK):
                return path
    return None


def _build_info():
    from lapse import _build_info

    return _build_info


def _path_for_mpi4py(info):
    """Return the library under the name that mpi4py knows it by."""
    return os.path.join(os.path.dirname(__file__), info.alias) if info.alias else library_path()


def _require_build(package_path):
    compiled = importlib.machinery.PathFinder.find_spec("lapse._store", package_path)
    written = importlib.machinery.PathFinder.find_spec("lapse._build_info", package_path)
    if compiled is None or written is None:
        raise ImportError(_NOT_BUILT.format(sys.version.split()[0]))


def _prefixes():
    """Return where pip may have put an MPI: this environment, the user's, the interpreter's own."""
    prefixes = [sys.prefix]
    if site.ENABLE_USER_SITE:
        prefixes.append(site.getuserbase())
    return prefixes if sys.base_prefix in prefixes else [*prefixes, sys.base_prefix]


def _check_users_choice(info):
    """Compare what the user's variables name with the build, as far as it shows before loading."""
    abi = os.environ.get("MPI4PY_MPIABI")
    if abi and re.sub("[ _-]", "", abi).lower() != info.family:
        raise ImportError(_mismatch(info, f"the variable MPI4PY_MPIABI asks for {abi!r}"))
    library = os.environ.get("MPI4PY_LIBMPI", "").split(os.pathsep)[0]
    family = _family_of(library) if os.path.isfile(library) else None
    if family and family != info.family:
        said = f"the variable MPI4PY_LIBMPI names {FAMILY_NAMES[family]} ({library})"
        raise ImportError(_mismatch(info, said))


def _family_of(library):
    """Tell the family of an MPI library by a symbol that only one has; None if it fails to load."""
    try:
        handle = ctypes.CDLL(library)
    except OSError:
        return None
    return "openmpi" if hasattr(handle, "ompi_mpi_comm_self") else "mpich"


def _is_loaded(soname):
    try:
        ctypes.CDLL(soname, mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def _loaded_library():
    """Return the MPI library that is mapped into this process."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        found = re.search(r"(/\S*/libmpi(?:ch)?\.so\S*)", maps.read())
    return found[1] if found else "library unknown"


def _ranks_started_by(family):
    """Return how many ranks a launcher of this family says it started; 0 without a launcher."""
    ranks = os.environ.get(_RANKS_BY_LAUNCHER[family], "")
    return int(ranks) if ranks.isdecimal() else 0


def _wrong_launcher(family):
    return (
        f"{_RANKS_BY_LAUNCHER[family]} says that {_ranks_started_by(family)} ranks were started, "
        f"but they do not know of each other: the mpirun of another MPI was used, one of "
        f"{FAMILY_NAMES[family]} (PATH finds {shutil.which('mpirun')}), while lapse runs with "
        f"{describe_build()}. Start the job with the mpirun of that: "
        f"{launcher_path() or 'not found beside its library'}"
    )


def _mismatch(info, found):
    return (
        f"lapse was built for {describe_build()}, but {found}. Two MPI libraries cannot share a "
        f"process. {_cure(info)}"
    )


def _no_library(info, error):
    built = describe_build()
    return f"lapse was built for {built}, but mpi4py cannot load it: {error}. {_cure(info)}"


def _cure(info):
    """Say how to get to the MPI of the build, and how to build for the other one."""
    if info.folder == "wheel":
        own = f"run 'python -m pip install {info.family}', unset MPI4PY_LIBMPI and MPI4PY_MPIABI"
    else:
        own = f"export MPI4PY_LIBMPI={_path_for_mpi4py(info)}"
    return (
        f"To use the MPI of the build: {own}, and import lapse before mpi4py.MPI. "
        "To build lapse for the other one: MPICC=<its mpicc> make install."
    )
