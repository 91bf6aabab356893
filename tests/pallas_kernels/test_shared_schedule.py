"""What a step's layers share on a GPU: `make check-kernels`."""

import re

import pytest

from tests.support.kernels.compile_kernels import compile_for
from tests.support.kernels.kernel_cases import (
    COMPILED,
    KERNELS,
    arguments,
    attention,
    num_calls,
)

pytestmark = pytest.mark.cuda_compile


@pytest.mark.parametrize("name", ["llama3_8b-64", "llama3_8b-1024"])
def test_layers_share_the_work_lists(name: str):
    """Every layer asks for them, and the compiler must see that they are the same."""
    kernel, case = KERNELS["hopper"], COMPILED[name]
    attend = attention(case, kernel)

    def counts(layers: int) -> tuple[int, int]:
        def step(q, k_pages, v_pages, grouping):
            for _ in range(layers):
                q, _ = attend(q, k_pages, v_pages, grouping)
            return q

        program = compile_for(kernel.capability, step, *arguments(case))
        entry = program[program.index("ENTRY") :]
        found = [len(re.findall(rf" {x}\(", entry)) for x in ("fusion", "custom-call")]
        return found[0], found[1]

    fusions, calls = counts(1)
    assert calls == num_calls(case, kernel)
    assert counts(3) == (fusions, 3 * calls)
