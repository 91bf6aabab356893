"""The kernel before attention: machine code without a GPU, results with one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deft_jax.pallas_kernels.rotary_append.hopper import rotary_append
from deft_jax.pallas_kernels.rotary_append.reference import rotary_append_reference
from tests.support.kernels.compile_kernels import compile_for

PAGES, PAGE_SIZE = 7, 16
SHAPES = {
    "llama3_8b": (5, 32, 8, 128, 4096),
    "smollm2": (3, 9, 3, 64, 576),
    "no_groups": (16, 4, 4, 96, 1032),
    "odd_pairs": (2, 5, 1, 80, 8),
    "wide": (64, 71, 1, 256, 1024),
}
EPS = 1e-2
HOPPER = (9, 0)


reference = functools.partial(rotary_append_reference, eps=EPS)
kernel = jax.jit(functools.partial(rotary_append, eps=EPS))


def _rows(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape, jnp.bfloat16)


def arguments(name: str) -> list[jax.Array]:
    """Random heads and pages; the second row is not stored, the others are apart."""
    queries, num_q, num_kv, width, inputs_width = SHAPES[name]
    keys = jax.random.split(jax.random.key(len(name)), 6)
    inputs = _rows(keys[5], (queries, inputs_width))
    heads = _rows(keys[0], (queries, num_q + 2 * num_kv, width))
    angle = jax.random.uniform(keys[1], (queries, width // 2), maxval=6.3)
    place = jax.random.permutation(keys[2], PAGES * PAGE_SIZE)[:queries]
    page = (place // PAGE_SIZE).astype(jnp.int32).at[1].set(PAGES)
    shape = PAGES, num_kv, PAGE_SIZE, width
    pages = [_rows(key, shape) for key in keys[3:5]]
    slot = (place % PAGE_SIZE).astype(jnp.int32)
    return [inputs, heads, jnp.cos(angle), jnp.sin(angle), page, slot, *pages]


@pytest.mark.parametrize("name", SHAPES)
def test_the_reference_stores_what_it_rotates(name: str):
    arrays = map(np.asarray, arguments(name))
    inputs, heads, cos, sin, page, slot, k_pages, v_pages = arrays
    _, num_q, num_kv, width, _ = SHAPES[name]
    q, new_k, new_v = map(np.asarray, reference(*arguments(name)))
    square = np.square(inputs.astype(np.float64)).mean(axis=1)
    heads = heads.astype(np.float64) / np.sqrt(square + EPS)[:, None, None]
    rotation = cos + 1j * sin
    half = width // 2
    turned = (heads[..., :half] + 1j * heads[..., half:]) * rotation[:, None]
    turned = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(q.astype(float), turned[:, :num_q], atol=0.05)
    expected_k, expected_v = k_pages.astype(float), v_pages.astype(float)
    for row in np.flatnonzero(page < PAGES):
        at = page[row], slice(None), slot[row]
        expected_k[at] = turned[row, num_q : num_q + num_kv]
        expected_v[at] = heads[row, num_q + num_kv :]
    np.testing.assert_allclose(new_k.astype(float), expected_k, atol=0.05)
    np.testing.assert_allclose(new_v.astype(float), expected_v, atol=0.05)


SPOILS = {
    "a_key": ("key", np.nan),
    "a_value": ("value", np.inf),
    "a_query": ("query", -np.inf),
    "what_was_projected": ("inputs", np.nan),
    "a_rotation_that_overflows": ("key", 3e38),
}
"""What is not finite in row 0; turned by 1/8, a pair of 3e38 is one of 0 and 4.2e38."""


def check_spoilt(store, name: str, kind: str) -> None:
    """Spoil the last head of row 0, and compare with what `store` makes of the rest."""
    _, num_q, num_kv, width, _ = SHAPES[name]
    inputs, heads, cos, sin, page, slot, *pages = arguments(name)
    cos, sin = (x.at[0].set(0.5**0.5) for x in (cos, sin))
    rest = cos, sin, page, slot, *pages
    q, *pools = (np.array(x, np.float32) for x in store(inputs, heads, *rest))
    part, value = SPOILS[kind]
    head = {"query": num_q, "key": num_q + num_kv, "value": num_q + 2 * num_kv}
    if part == "inputs":
        inputs = inputs.at[0, -1].set(value)
    else:
        pair = jnp.array([1, 1 + width // 2])
        heads = heads.at[0, head[part] - 1, pair].set(value)
    new_q, *new_pools = (np.array(x, np.float32) for x in store(inputs, heads, *rest))
    zeroed = {"inputs": slice(0, num_kv), "query": slice(0, 0)}.get(
        part, slice(-1, None)
    )
    for pool, new in zip(pools, new_pools, strict=True):
        assert np.isfinite(new).all()
        pool[page[0], zeroed, slot[0]] = 0
        np.testing.assert_array_equal(new, pool)
    q.reshape(-1, num_kv, num_q // num_kv, width)[0, zeroed] = np.nan
    if part == "query":
        assert not np.isfinite(new_q[0, num_q - 1]).all()
        q[0, num_q - 1] = new_q[0, num_q - 1]
    np.testing.assert_array_equal(new_q, q)


@pytest.mark.parametrize("kind", SPOILS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_reference_stores_no_key_or_value_that_is_not_finite(name: str, kind: str):
    check_spoilt(jax.jit(reference), name, kind)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", SPOILS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_stores_no_key_or_value_that_is_not_finite(name: str, kind: str):
    check_spoilt(kernel, name, kind)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_agrees_with_the_reference(name: str):
    """But for the order of sums and the rounding of a fused multiply and add."""
    expected = reference(*arguments(name))
    first = kernel(*arguments(name))
    for _ in range(2):
        got = kernel(*arguments(name))
        for x, y in zip(got, first, strict=True):
            np.testing.assert_array_equal(x, y)
        for x, y in zip(got, expected, strict=True):
            x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
            np.testing.assert_allclose(x, y, rtol=2**-7, atol=2**-7)


@pytest.mark.cuda_compile
@pytest.mark.parametrize("name", SHAPES)
def test_it_writes_in_place(name: str):
    """A loop that carries the pages copies none in its steps."""

    def loop(*arrays):
        *rows, k_pages, v_pages = arrays

        def step(_, pages):
            return kernel(*rows, *pages)[1:]

        return lax.fori_loop(0, 3, step, (k_pages, v_pages))

    program = compile_for(HOPPER, loop, *arguments(name))
    body = re.search(r"body=%?([\w.-]+)", program)
    assert body is not None
    begin = program.index(f"%{body[1]} (")
    steps = program[begin : program.index("\n}", begin)]
    assert steps.count(" custom-call(") == 1
    width = SHAPES[name][3]
    copied = [line for line in steps.splitlines() if " copy(" in line]
    assert not [line for line in copied if f",{PAGE_SIZE},{width}]" in line]
