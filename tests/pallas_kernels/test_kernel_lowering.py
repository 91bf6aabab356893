"""Every configuration of the kernels lowers for CUDA, which needs no GPU."""

import jax
import jax.numpy as jnp
import pytest

from tests.support.attention_checks import Case
from tests.support.kernels.kernel_cases import (
    COMPILED,
    KERNELS,
    Kernel,
    arguments,
    attention,
    covering_cases,
    num_calls,
)

COVERING = covering_cases()


def lowered_calls(function, case: Case) -> int:
    """Pallas calls in the program of a function of the case's arguments."""
    traced = jax.jit(function).trace(*arguments(case))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return text.count("custom_call @mosaic_gpu")


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("case", COVERING.values(), ids=COVERING)
def test_it_lowers(case: Case, kernel: Kernel):
    assert lowered_calls(attention(case, kernel), case) == num_calls(case, kernel)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_it_lowers_within_a_loop(kernel: Kernel):
    case = COMPILED["llama3_8b-window"]
    attend = attention(case, kernel)

    def decode(q, k_pages, v_pages, grouping):
        def step(carry):
            count, q, k_pages = carry
            out, _ = attend(q, k_pages, v_pages, grouping)
            return count + 1, out, k_pages.at[0].set(0)

        def unfinished(carry):
            return carry[0] < grouping.num_live

        return jax.lax.while_loop(unfinished, step, (jnp.int32(0), q, k_pages))

    assert lowered_calls(decode, case) == num_calls(case, kernel)
