"""Run the programs of scenarios/programs/, and read what their ranks print."""

import time
from pathlib import Path

from launch import mpirun

PROGRAMS = Path(__file__).parent / "scenarios" / "programs"

NEVER = 60  # seconds


def job(ranks, program, *args, env=None):
    """Run a program to its end; the job gets `seconds`, how long it took."""
    began = time.monotonic()
    ended = mpirun(ranks, [PROGRAMS / f"{program}.py", *args], timeout=NEVER, env=env)
    ended.seconds = time.monotonic() - began
    assert not ended.timed_out, f"the job hung\n{ended.output}"
    return ended


def lines(ended, rank):
    """What a rank has printed with `common.tell`."""
    return [line.split("] ", 1)[1] for line in ended.stdout.splitlines() if line.startswith(f"[{rank}] ")]
