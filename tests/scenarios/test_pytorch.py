"""Jobs that train with `lapse.torch`: processes of a DataLoader, and Ctrl-C."""

import pytest

from program_jobs import job, lines

pytest.importorskip("torch", reason="needs PyTorch, which is not installed: pip install 'lapse[torch]'")
pytestmark = pytest.mark.deadline(120)  # every process imports PyTorch


@pytest.mark.parametrize("memory", ["0", "1"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_loader_may_have_processes(method, memory):
    ended = job(2, "torch_loader", method, env={"LAPSE_SHARED_MEMORY": memory, "OMP_NUM_THREADS": "1"}).check()
    assert [lines(ended, rank) for rank in range(2)] == [["True True"], ["True True"]]


def test_an_interrupt_of_one_rank_ends_the_training_of_all():
    ended = job(3, "torch_loader", "interrupt", env={"OMP_NUM_THREADS": "1"})
    assert ended.returncode != 0
    assert "KeyboardInterrupt" in ended.output and "RemoteError" in ended.output
