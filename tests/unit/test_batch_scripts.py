"""The batch scripts of hostfiles/slurm/: valid shell, with options that exist. (`make slurm` runs them.)"""

import re
import subprocess
from pathlib import Path

import pytest

from lapse.apps.mf import options

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "hostfiles" / "slurm").glob("*.sbatch"))
#: Of sbatch, srun and mpirun (Slurm 22.05), as far as they are used.
LAUNCHERS = {
    "--job-name", "--nodes", "--ntasks-per-node", "--cpus-per-task", "--time", "--signal", "--requeue", "--open-mode",
    "--output", "--mpi", "--kill-on-bad-exit", "--ntasks", "--version",
}  # fmt: skip


def code_of(script):
    return "\n".join(
        line for line in script.read_text().splitlines() if not line.startswith("#") or line.startswith("#SBATCH")
    )


def test_there_is_one_for_each_way_to_start():
    assert [script.name for script in SCRIPTS] == ["mpirun.sbatch", "srun.mpich.sbatch", "srun.openmpi.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_batch_script_is_valid_shell(script):
    subprocess.run(["bash", "-n", script], check=True, timeout=30)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_options_of_a_batch_script_exist(script):
    used = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", code_of(script)))
    assert {"--requeue", "--signal", "--checkpoint-every", "--resume"} <= used
    known = {name for action in options.make_parser()._actions for name in action.option_strings}
    assert used - LAUNCHERS - known == set()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_batch_script_sets_what_the_hostfiles_set(script):
    for name in re.findall(r'source "\$lapse/(hostfiles/\S+)"', code_of(script)):
        for family in ("mpich", "openmpi") if "$mpi" in name else ("",):
            assert (ROOT / name.replace("$mpi", family)).exists()
    assert 'source "$lapse/hostfiles/env.' in code_of(script)
