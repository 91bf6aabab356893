"""The example for PyTorch says in one line what it lacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "pytorch_decode.py"
NO_TORCH = "sys.modules['torch'] = None"
NO_GPU = """
torch = sys.modules['torch'] = types.ModuleType('torch')
torch.cuda = types.SimpleNamespace(is_available=lambda: False, device_count=lambda: 0)
"""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (NO_TORCH, "PyTorch with CUDA is missing; install it beside deft-jax[cuda13]"),
        (NO_GPU, "this needs an NVIDIA GPU of compute capability 9.0"),
    ],
)
def test_what_is_missing_is_one_line(setting: str, message: str):
    run = f"runpy.run_path({str(PATH)!r}, run_name='__main__')"
    code = f"import runpy, sys, types\n{setting}\n{run}"
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout) == (1, "")
    [line] = process.stderr.splitlines()
    assert line.startswith(message)
