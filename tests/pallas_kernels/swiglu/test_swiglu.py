"""The kernel behind gate and up: machine code without a GPU, results with one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.pallas_kernels.swiglu.hopper import BLOCK, swiglu
from deft_jax.pallas_kernels.swiglu.reference import swiglu_reference
from tests.support.kernels.compile_kernels import compile_for

SHAPES = {
    "llama3_8b": (5, 4096, 14336),
    "smollm2": (64, 576, 1536),
    "one_vector": (1, 8, 8),
    "ragged": (3, 1032, BLOCK + 40),
}
EPS = 1e-2

reference = functools.partial(swiglu_reference, eps=EPS)
kernel = jax.jit(functools.partial(swiglu, eps=EPS))


def arguments(name: str) -> list[jax.Array]:
    """Random rows; gates from far below to far above 0."""
    rows, inputs, width = SHAPES[name]
    keys = jax.random.split(jax.random.key(len(name)))
    scales = (1, inputs), (30, 2 * width)
    return [
        (scale * jax.random.normal(key, (rows, size))).astype(jnp.bfloat16)
        for key, (scale, size) in zip(keys, scales, strict=True)
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_the_reference_gates_what_the_norm_scales(name: str):
    inputs, hidden = (np.asarray(x, np.float64) for x in arguments(name))
    square = np.square(inputs).mean(axis=1, keepdims=True)
    gate, up = np.split(hidden / np.sqrt(square + EPS), 2, axis=1)
    expected = gate / (1 + np.exp(-gate)) * up
    got = np.asarray(reference(*arguments(name)), np.float64)
    np.testing.assert_allclose(got, expected, rtol=2**-8, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_agrees_with_the_reference(name: str):
    expected = np.asarray(reference(*arguments(name)), np.float32)
    first = np.asarray(kernel(*arguments(name)), np.float32)
    np.testing.assert_allclose(first, expected, rtol=2**-6, atol=1e-3)
    for _ in range(2):
        np.testing.assert_array_equal(kernel(*arguments(name)), first)


@pytest.mark.cuda_compile
@pytest.mark.parametrize("name", SHAPES)
def test_it_compiles(name: str):
    assert "swiglu" in compile_for((9, 0), kernel, *arguments(name))
