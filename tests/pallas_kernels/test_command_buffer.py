"""How XLA starts the kernels of the decode loop: `make check-kernels`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kernels.compile_decode import REPLAYS

pytestmark = pytest.mark.cuda_compile


@pytest.mark.parametrize("replay", REPLAYS)
def test_the_decode_loop_is_one_command_buffer(replay: str, tmp_path: Path):
    """What cannot be captured takes the loop with it, and the host starts each step."""
    options = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text",
    }
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.kernels.compile_decode", replay],
        env=os.environ | options,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    # Sorts of that library cannot be captured; without a device another takes their
    # place, and the compiler says so.
    assert "CUB" not in run.stderr
    [path] = tmp_path.glob("*jit_decode.thunk_sequence_after_thunk_passes.txt")
    sequence = path.read_text()
    assert re.findall(r"^\d+: (\w+)", sequence, re.MULTILINE) == ["kCommandBuffer"]
    assert sequence.count("kWhile") > 1
    # XLA's graph of such a loop runs it whatever the condition says.
    assert "No thunks" not in sequence
