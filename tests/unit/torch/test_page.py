"""Every block of docs/pytorch.md runs, and a server costs ten lines."""

import difflib
import re
from pathlib import Path

import pytest

from launch import mpirun

pytest.importorskip("torch", reason="needs PyTorch, which is not installed: pip install 'lapse[torch]'")

PAGE = (Path(__file__).parents[3] / "docs" / "pytorch.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("ranks", [1, 2])
def test_blocks_run_one_after_another(ranks):
    program = "if __name__ == '__main__':\n    " + "\n".join(BLOCKS).replace("\n", "\n    ")
    job = mpirun(ranks, program, timeout=55, env={"OMP_NUM_THREADS": "1"}).check()
    assert job.stdout.count("loss ") == 2 * ranks
    assert job.stdout.count("10 batches") == job.stdout.count("torch.Size([1, 16])") == ranks
    assert job.stdout.count("epoch 1") == ranks


def test_a_server_costs_ten_lines():
    """Lines of code that are new in the second program, a call that is wrapped counted once."""
    first, second = (re.sub(r"\(\n\s+(.*)\n\)", r"(\1)", block).splitlines() for block in BLOCKS[:2])
    added = [line for line in difflib.ndiff(first, second) if line.startswith("+ ") and line[2:].strip()]
    assert len(added) <= 10, "\n".join(added)
