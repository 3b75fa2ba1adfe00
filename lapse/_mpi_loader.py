"""Floor 0. Makes mpi4py load the MPI that the compiled modules were built for.

Two MPI libraries in one process lead to crashes that are hard to explain, and the wheel of mpi4py loads the first
library that it finds. Therefore the library is chosen here, before `mpi4py.MPI` is loaded. If it is loaded already,
the two are compared, and an `ImportError` explains a difference.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import re
import shutil
import site
import sys
import sysconfig
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from lapse.base import slurm
from lapse.base.uncaught import is_made_by_multiprocessing

FAMILY_NAMES = {"mpich": "MPICH", "openmpi": "Open MPI"}

#: The variables by which the launchers of the two families pass on the number of ranks.
_RANKS_BY_LAUNCHER = {"mpich": "PMI_SIZE", "openmpi": "OMPI_COMM_WORLD_SIZE"}

#: By default Open MPI refuses to run as root (the only user of many containers) or with more ranks than cores, and
#: binds each rank to one core, which all threads of the rank then share. MPICH ignores these variables.
OPENMPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",  # up to version 4
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",  # from version 5
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}

#: The modules of this package that cannot be imported before MPI is initialized, and the one that calls its library.
_NEED_MPI = ("lapse.server.host", "lapse.server.server", "lapse.bench._pingpong")
_NEED_LIBRARY = "lapse.communication._transport"

#: What MPICH takes of /dev/shm for each rank of a host: cells for messages, of which there are two sets, and a share of
#: UCX unless another network module is selected. Seen: 5,266 KB by default, 16,394 KB with hostfiles/env.mpich.
CELLS_PER_RANK, CELL_BYTES = 2 * 64, 8 << 10
UCX_BYTES_PER_RANK = 4_300 << 10

_process: int | None = None  # the one that has initialized MPI
_connected: set[bytes] = set()  # addresses, see `connected_at_start`

#: Importing the compiled modules would turn the GIL on again; with PYTHON_GIL=0 it would stay off, and they rely on it.
_FREE_THREADED = (
    "lapse does not support free-threaded builds of Python, such as this {}: use the ordinary build. (Workers compute "
    "in parallel with it, too: lapse releases the GIL while it works.)"
)
_NOT_BUILT = "lapse is not built for this Python ({}): run 'make install' in its source folder"


def prepare(package_path: list[str]) -> None:
    """Choose the MPI for mpi4py without loading it.

    Parameters
    ----------
    package_path : list of str
        The folders of the compiled modules.

    Raises
    ------
    ImportError
        If the package is not compiled, the interpreter is free-threaded, or another MPI was chosen or loaded before.
    """
    _require_gil()
    _require_build(package_path)
    info = _build_info()
    sys.meta_path.insert(0, _LoadFirst)
    if "mpi4py.MPI" in sys.modules:
        load()
    elif os.environ.get("MPI4PY_LIBMPI") or os.environ.get("MPI4PY_MPIABI"):
        _check_users_choice(info)
    else:
        # Not MPI4PY_MPIABI as well: if it is set, mpi4py does not load the library itself.
        os.environ["MPI4PY_LIBMPI"] = _path_for_mpi4py(info)


def load() -> ModuleType:
    """Import `mpi4py.MPI` and make sure that it is the MPI of this build.

    Returns
    -------
    module
        `mpi4py.MPI`; importing it initializes MPI, unless `mpi4py.rc` says otherwise.
    """
    info = _build_info()
    _check_before_mpi()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ImportError(_no_library(info, error)) from error
    vendor, version = MPI.get_vendor()
    loaded = f"{vendor} {'.'.join(map(str, version))} ({_loaded_library()})"
    # Several vendors (Intel, Cray, MVAPICH) have MPICH's binary interface: the name of the library says so.
    if not _is_loaded(info.soname) or _family_of(info.soname) != info.family:
        raise ImportError(_mismatch(info, "mpi4py has loaded " + loaded))
    global _process
    _process = _process or os.getpid()
    return MPI


def connected_at_start() -> set[bytes]:
    """The addresses with which MPI has connected this process in its start, if that came after `prepare`.

    Returns
    -------
    set of bytes
        As `_connections.own_addresses`.
    """
    return _connected


def _load_library() -> None:
    """Load the library of MPI without initializing it."""
    if "mpi4py.MPI" in sys.modules:
        load()
        return
    info = _build_info()
    path = os.environ.get("MPI4PY_LIBMPI", "").split(os.pathsep)[0]
    try:
        ctypes.CDLL(path if os.path.isfile(path) else library_path(), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    except OSError as error:
        raise ImportError(_no_library(info, error)) from error


def check_process() -> None:
    """Raise in a process that is no rank, but the child of one.

    Raises
    ------
    RuntimeError
        In a forked child after MPI was initialized, and in a child of a rank that was made by `multiprocessing`.
    """
    if (_process is not None and os.getpid() != _process) or _is_child_of_rank():
        raise RuntimeError(
            "a server cannot be used in a child of a rank's process, because MPI does not survive a fork, and knows "
            "only the processes that mpirun has started: create it in the rank itself"
        )


class _LoadFirst:
    """An import hook that loads MPI before the modules that need it, and looks around before MPI starts.

    A kernel with ``cimport lapse`` imports them directly, as soon as it is imported itself; a program imports
    `mpi4py.MPI`.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find nothing but `mpi4py.MPI`: the import system calls this before it searches for the module."""
        if name in _NEED_MPI:
            load()
        elif name == _NEED_LIBRARY:
            _load_library()
        elif name == "mpi4py.MPI":
            _check_before_mpi()
            others = (finder for finder in sys.meta_path if finder is not _LoadFirst)
            spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
            if spec is not None and spec.loader is not None:
                spec.loader = _NoteStart(spec.loader)
            return spec
        return None


class _NoteStart(Loader):
    """A loader of `mpi4py.MPI` that notes which process is a rank, and with whom MPI connects it.

    While MPI starts, nobody else opens connections.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._before: dict[int, bytes] = {}

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module; some do all of their work then."""
        from lapse.base._connections import connections

        self._before = connections()
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Let the module initialize MPI."""
        from lapse.base._connections import connections

        global _process
        self._loader.exec_module(module)
        _process = os.getpid()
        new = connections().items() - self._before.items()
        _connected.update(address for _, address in new)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _check_before_mpi() -> None:
    """Raise where MPI would end the process without a word, or hang, when `mpi4py.MPI` is imported."""
    if "mpi4py.MPI" in sys.modules:
        return
    info = _build_info()
    # The MPICH from PyPI supports only its own launcher; under another one MPI_Init terminates the process.
    only_hydra = info.family == "mpich" and info.folder == "wheel"
    if only_hydra and _ranks_started_by("openmpi") > 1 >= _ranks_started_by("mpich"):
        raise ImportError(_wrong_launcher("openmpi"))
    if slurm.tasks() > 1:
        by_pmix, by_pmi = "PMIX_RANK" in os.environ, "PMI_RANK" in os.environ
        if only_hydra and by_pmix and not by_pmi:
            raise ImportError(_wrong_srun("tasks with PMIx, which this MPI does not know"))
        if info.family == "openmpi" and not by_pmix and not by_pmi:  # MPICH takes each of them for a job of its own
            raise ImportError(_wrong_srun(f"{slurm.tasks()} tasks without PMIx"))
    if _is_child_of_rank():  # it has the rank's environment, but is none; a Server says so
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
    else:
        _check_room_in_shared_memory()


def check_launcher(comm_world_size: int) -> None:
    """Raise if this process was started by the `mpirun` of another MPI.

    The processes of such a job are not connected: each of them is rank 0 of 1.

    Parameters
    ----------
    comm_world_size : int
        The size of ``MPI.COMM_WORLD``.

    Raises
    ------
    RuntimeError
        If a launcher reports several ranks and MPI only one.
    """
    if comm_world_size > 1:
        return
    tasks = slurm.tasks()
    if tasks > 1:
        raise RuntimeError(_wrong_srun(f"{tasks} tasks (SLURM_STEP_NUM_TASKS), but MPI knows only this one"))
    for family in FAMILY_NAMES:
        if _ranks_started_by(family) > 1:
            raise RuntimeError(_wrong_launcher(family))


def ranks_started() -> int:
    """The number of ranks that a launcher reports; 0 without one."""
    return max(slurm.tasks(), *(_ranks_started_by(family) for family in FAMILY_NAMES))


def describe_build() -> str:
    """Return the MPI of this build in words, such as ``MPICH 5.0.2 (libmpi.so.12, from PyPI)``."""
    info = _build_info()
    place = "from PyPI" if info.folder == "wheel" else f"in {info.folder}"
    return f"{FAMILY_NAMES[info.family]} {info.version} ({info.soname}, {place})"


def library_path() -> str:
    """Return the path of the MPI library, or its bare name if no known folder contains it."""
    info = _build_info()
    candidates = [] if info.folder == "wheel" else [info.folder]
    candidates += [os.path.join(prefix, "lib") for prefix in _prefixes()]
    for folder in candidates:
        path = os.path.join(folder, info.soname)
        if os.path.exists(path):
            return path
    return info.soname


def loaded_library() -> ctypes.CDLL:
    """Return the MPI library of this process, wherever it came from: the user may have chosen it by MPI4PY_LIBMPI.

    Raises
    ------
    OSError
        If none with the name of that of this build is loaded.
    """
    return ctypes.CDLL(_build_info().soname, mode=os.RTLD_LAZY | os.RTLD_NOLOAD)


def launcher_path() -> str | None:
    """Return the `mpirun` of the MPI of this build, or None if it was not found."""
    info = _build_info()
    folder = os.path.dirname(library_path())
    suffix = "." + info.family  # Debian installs several MPIs side by side: mpirun.openmpi
    while folder not in ("", "/"):
        folder = os.path.dirname(folder)
        for name in ("mpirun" + suffix, "mpirun"):
            path = os.path.join(folder, "bin", name)
            if os.access(path, os.X_OK):
                return path
    return None


def _build_info() -> ModuleType:
    from lapse import _build_info

    return _build_info


def _path_for_mpi4py(info: ModuleType) -> str:
    """Return the library under the name that mpi4py knows it by."""
    return os.path.join(os.path.dirname(__file__), info.alias) if info.alias else library_path()


def _require_gil() -> None:
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise ImportError(_FREE_THREADED.format(sys.version.split()[0]))


def _require_build(package_path: list[str]) -> None:
    compiled = importlib.machinery.PathFinder.find_spec("lapse._store", package_path)
    written = importlib.machinery.PathFinder.find_spec("lapse._build_info", package_path)
    if compiled is None or written is None:
        raise ImportError(_NOT_BUILT.format(sys.version.split()[0]))


def _prefixes() -> list[str]:
    """Return the folders below which pip may have installed an MPI: of the environment, the user, the interpreter."""
    prefixes = [sys.prefix]
    if site.ENABLE_USER_SITE:
        prefixes.append(site.getuserbase())
    return prefixes if sys.base_prefix in prefixes else [*prefixes, sys.base_prefix]


def _check_users_choice(info: ModuleType) -> None:
    """Compare the user's environment variables with the build, as far as that is possible before loading."""
    abi = os.environ.get("MPI4PY_MPIABI")
    if abi and re.sub("[ _-]", "", abi).lower() != info.family:
        raise ImportError(_mismatch(info, f"the environment variable MPI4PY_MPIABI selects {abi!r}"))
    library = os.environ.get("MPI4PY_LIBMPI", "").split(os.pathsep)[0]
    family = _family_of(library) if os.path.isfile(library) else None
    if family and family != info.family:
        said = f"the environment variable MPI4PY_LIBMPI selects {FAMILY_NAMES[family]} ({library})"
        raise ImportError(_mismatch(info, said))


def _family_of(library: str) -> str | None:
    """Return the family of an MPI library, by the symbols that it exports; None if it cannot be loaded."""
    try:
        handle = ctypes.CDLL(library)
    except OSError:
        return None
    return "openmpi" if hasattr(handle, "ompi_mpi_comm_self") else "mpich"


def _is_child_of_rank() -> bool:
    """Whether `multiprocessing` has made this process, in a job of several ranks."""
    return is_made_by_multiprocessing() and ranks_started() > 1


def _check_room_in_shared_memory() -> None:
    """Say that /dev/shm is too small for the messages of the ranks of this host, before MPI fails by a bus error.

    MPICH does; Open MPI says so itself.
    """
    local = os.environ.get("MPI_LOCALNRANKS", "")  # MPICH's launcher says so
    ranks = int(local) if local.isdecimal() else slurm.tasks_of_this_node()
    if ranks <= 1 or _build_info().family != "mpich" or os.environ.get("MPIR_CVAR_NOLOCAL") == "1":
        return
    needed = ranks * _shared_bytes_per_rank()
    try:
        system = os.statvfs("/dev/shm")
    except OSError:
        return
    if system.f_bavail * system.f_frsize < needed:
        raise ImportError(
            f"/dev/shm has {system.f_bavail * system.f_frsize >> 20} of {system.f_blocks * system.f_frsize >> 20} MB "
            f"free, but MPI needs some {needed >> 20} MB for the {ranks} ranks of this host: enlarge it "
            "('docker run --shm-size=1g', 'mount -o remount,size=1g /dev/shm'), or let ranks of one host send messages "
            "through the network (MPIR_CVAR_NOLOCAL=1)"
        )


def _shared_bytes_per_rank() -> int:
    cell = os.environ.get("MPIR_CVAR_CH4_SHM_POSIX_IQUEUE_CELL_SIZE", "")
    cells = CELLS_PER_RANK * (int(cell) if cell.isdecimal() else CELL_BYTES)
    return cells + (0 if os.environ.get("MPIR_CVAR_CH4_NETMOD") == "ofi" else UCX_BYTES_PER_RANK)


def _is_loaded(soname: str) -> bool:
    try:
        ctypes.CDLL(soname, mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def _loaded_library() -> str:
    """Return the MPI library that is mapped into this process."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        found = re.search(r"(/\S*/libmpi(?:ch)?\.so\S*)", maps.read())
    return found[1] if found else "library unknown"


def _ranks_started_by(family: str) -> int:
    """Return the number of ranks that a launcher of this family reports; 0 without a launcher."""
    ranks = os.environ.get(_RANKS_BY_LAUNCHER[family], "")
    return int(ranks) if ranks.isdecimal() else 0


def _wrong_launcher(family: str) -> str:
    return (
        f"{_RANKS_BY_LAUNCHER[family]} says that {_ranks_started_by(family)} ranks were started, but they are not "
        f"connected: the job was started by the mpirun of {FAMILY_NAMES[family]} (the first mpirun on PATH is "
        f"{shutil.which('mpirun')}), while lapse was built for {describe_build()}. Start it with that MPI's mpirun: "
        f"{launcher_path() or 'not found beside its library'}"
    )


def _wrong_srun(started: str) -> str:
    kind = "pmi2" if _build_info().family == "mpich" else "pmix"
    return (
        f"srun has started {started}: they are not connected. lapse was built for {describe_build()}: start them with "
        f"'srun --mpi={kind}', or with mpirun; for a single rank inside an allocation use 'srun -n 1'"
    )


def _mismatch(info: ModuleType, found: str) -> str:
    return f"lapse was built for {describe_build()}, but {found}. A process cannot use two MPI libraries. {_cure(info)}"


def _no_library(info: ModuleType, error: Exception) -> str:
    built = describe_build()
    return f"lapse was built for {built}, but mpi4py cannot load it: {error}. {_cure(info)}"


def _cure(info: ModuleType) -> str:
    """Explain how to use the MPI of the build, and how to build for the other one."""
    if info.folder == "wheel":
        own = f"run 'python -m pip install {info.family}', unset MPI4PY_LIBMPI and MPI4PY_MPIABI"
    else:
        own = f"export MPI4PY_LIBMPI={_path_for_mpi4py(info)}"
    return (
        f"To use the MPI of the build: {own}, and import lapse before mpi4py.MPI. "
        "To build lapse for the other one: MPICC=<its mpicc> make install."
    )
