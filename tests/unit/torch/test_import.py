"""PyTorch is loaded by `import lapse.torch` alone, which says so where it is missing."""

import sys

from launch import run


def test_lapse_does_not_import_pytorch():
    program = "import lapse, sys; lapse.Server; lapse.Tables; lapse.optim.SGD; print('torch' in sys.modules)"
    assert run([sys.executable, "-c", program], timeout=30).check().stdout == "False\n"


def test_without_pytorch_the_error_says_how_to_install_it():
    program = "import sys; sys.modules['torch'] = None; import lapse.torch"
    job = run([sys.executable, "-c", program], timeout=30)
    assert job.returncode != 0 and "pip install 'lapse[torch]'" in job.stderr
