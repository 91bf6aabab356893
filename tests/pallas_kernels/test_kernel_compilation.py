"""What the compiler makes of the kernels: `make check-kernels`."""

import dataclasses
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from deft_jax.pallas_kernels.kernel_spec import SHARED_BYTES
from tests.support.kernels.kernel_cases import (
    COMPILED,
    KERNELS,
    PORTABLE,
    PORTABLE_COMPILED,
    num_calls,
)

pytestmark = pytest.mark.cuda_compile

REPOSITORY = Path(__file__).parents[2]
AT_ONCE = 2
TODO = [
    *itertools.product(KERNELS, COMPILED),
    *itertools.product(PORTABLE, PORTABLE_COMPILED),
]
REGISTERS = 65536
"""Registers of a multiprocessor."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One kernel as the compiler describes it.

    Attributes:
        ptx: its code for the virtual machine.
        spilled_bytes: bytes of stores and loads of registers that did not fit.
        registers: registers of a thread.
        threads: threads of a block.
        shared_bytes: bytes of shared memory of a block.
    """

    ptx: str
    spilled_bytes: int
    registers: int
    threads: int
    shared_bytes: int


@pytest.fixture(scope="module")
def compilations() -> Iterator[dict[tuple[str, str], Future[list[Compiled]]]]:
    """Compile the kernels of every case, a few at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {names: pool.submit(compile_case, *names) for names in TODO}
        pool.shutdown(cancel_futures=True)


def compile_case(kernel: str, case: str) -> list[Compiled]:
    # A program from the cache of compilations would dump nothing.
    environment = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    module = "tests.support.kernels.compile_kernels"
    with tempfile.TemporaryDirectory() as dump:
        run = subprocess.run(
            [sys.executable, "-m", module, kernel, case],
            cwd=REPOSITORY,
            env=environment | {"MOSAIC_GPU_DUMP_TO": dump},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        return [read_dump(ptx) for ptx in sorted(Path(dump).glob("*.ptx"))]


def read_dump(ptx: Path) -> Compiled:
    code = ptx.read_text()
    report = ptx.with_suffix(".ptxas").read_text()
    resources = ptx.with_suffix(".resources.txt").read_text()
    barriers = re.findall(r"num_barriers=(\d+)[^)]*\): (\d+)", resources)
    barrier_bytes = 8 * sum(int(size) * int(count) for size, count in barriers)
    return Compiled(
        ptx=code,
        spilled_bytes=sum(numbers(r"(\d+) bytes spill", report)),
        registers=max(numbers(r"Used (\d+) registers", report)),
        threads=max(numbers(r"\.maxntid (\d+)", code)),
        shared_bytes=barrier_bytes
        + max(numbers(r"smem_scratch_bytes=(\d+)", resources)),
    )


def numbers(pattern: str, text: str) -> list[int]:
    return [int(x) for x in re.findall(pattern, text)]


@pytest.mark.parametrize(("kernel", "case"), TODO)
def test_it_fits_the_device(compilations, kernel: str, case: str):
    compiled = compilations[kernel, case].result()
    made = (KERNELS | PORTABLE)[kernel]
    assert len(compiled) == num_calls(COMPILED[case], made)
    for part in compiled:
        assert part.spilled_bytes == 0
        assert part.registers * part.threads <= REGISTERS
        assert part.shared_bytes <= SHARED_BYTES
    [attention] = [x for x in compiled if made.product in x.ptx]
    assert made.copy in attention.ptx
