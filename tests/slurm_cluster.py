"""A Slurm of our own: two virtual nodes on this machine, all of whose files are in one folder.

The nodes are two `slurmd` on different ports. Keys, sockets, state and logs are in the folder, nothing is read from or
written to /etc, and all processes have the path of the folder in their environment, by which they are found at the end.
"""

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import launch

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo", "squeue")
NODES = ("n1", "n2")
CPUS = 16  # of each node, whatever this machine has: several jobs of the tests run at once

CONFIGURATION = """\
ClusterName=lapse
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# a job that goes back into the queue waits for as long as credentials of its last run are valid
AuthInfo=socket={folder}/munge/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SchedulerParameters=sched_interval=5,bf_interval=5
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
FirstJobId={first}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def what_is_missing():
    """The commands that are not installed, in words; empty if all are."""
    missing = [name for name in COMMANDS if shutil.which(name, path=_path()) is None]
    return f"not installed: {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)" if missing else ""


class Cluster:
    """Slurm with two nodes; a context manager, which leaves nothing behind.

    Parameters
    ----------
    folder : path
        An empty folder, for everything.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._daemons = []
        # A Slurm around us must not be asked.
        outer = {name: None for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self._env = {**outer, "SLURM_CONF": self.folder / "slurm.conf", "PATH": _path()}

    def __enter__(self):
        try:
            self._write_files()
            self._start_daemons()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)  # what is begun here is finished
        if self._daemons[1:]:  # more than munged
            self.run(["scancel", "--user", getpass.getuser()], timeout=10)
            _wait_until(lambda: not self.run(["squeue", "--noheader"], timeout=10).stdout.strip(), 10)
        for process in reversed(self._daemons):
            process.terminate()
        for process in reversed(self._daemons):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def run(self, command, timeout, env=None):
        """Run a command of Slurm, or under it.

        Returns
        -------
        launch.Job
        """
        return launch.run(command, timeout, {**self._env, **(env or {})}, self.folder)

    def version(self):
        """Such as ``slurm-wlm 22.05.8``."""
        return self.run(["sinfo", "--version"], timeout=30).check().stdout.strip()

    def show_job(self, number):
        """What `scontrol` says about a job.

        Returns
        -------
        dict of str to str
        """
        text = self.run(["scontrol", "--oneliner", "show", "job", number], timeout=30).check().stdout
        return dict(word.partition("=")[::2] for word in text.split())

    def logs(self):
        """The last lines of all logs."""
        found = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-10:]) for path in found)

    def processes(self):
        """The processes of this Slurm and of its jobs that are left."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def _write_files(self):
        self.folder.chmod(0o755)  # munge wants its socket to be reachable by everybody
        for name in ("munge", "state", *(f"{kind}-{node}" for kind in ("spool", "tmp") for node in NODES)):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        host = socket.gethostname().partition(".")[0]
        port, *ports = _free_ports(1 + len(NODES))
        first = random.randint(1, 1 << 24)  # MPICH names its files in /dev/shm by job: killed ones leave them
        text = CONFIGURATION.format(folder=self.folder, host=host, user=getpass.getuser(), port=port, first=first)
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} State=UNKNOWN"
            for name, port in zip(NODES, ports)
        ]
        (self.folder / "slurm.conf").write_text(text + "\n".join(nodes) + "\n")

    def _start_daemons(self):
        munge = self.folder / "munge"
        files = [f"--{name}-file={munge / name}" for name in ("key", "log", "pid", "seed")]
        self._start("munged", "munged", "--foreground", f"--socket={munge / 'socket'}", *files)
        self._wait_for("munged", (munge / "socket").exists)
        self._start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self._start(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        self._wait_for("the nodes", self._are_nodes_idle)

    def _start(self, name, *command):
        env = launch.job_environment(self._env)
        with open(self.folder / f"{name}.out", "w") as output:
            process = subprocess.Popen(
                [shutil.which(command[0], path=_path()), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=env,
                start_new_session=True,  # Ctrl-C is ours alone
            )
        self._daemons.append(process)

    def _are_nodes_idle(self):
        states = self.run(["sinfo", "--noheader", "--Node", "--format=%T"], timeout=30).stdout.split()
        return states == ["idle"] * len(NODES)

    def _wait_for(self, what, condition):
        if not _wait_until(condition, 60) or any(process.poll() is not None for process in self._daemons):
            raise RuntimeError(f"Slurm: {what} did not start\n{self.logs()}")


def _wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _path():
    """Where commands are: daemons lie in folders that are not on everybody's path."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
