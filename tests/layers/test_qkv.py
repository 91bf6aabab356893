"""Storing a layer's keys and values: nothing that is not finite reaches the pool."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.kv.pool import LayerKV, write
from deft_jax.layers.qkv import QKV

QUERIES, KV_HEADS, GROUP, WIDTH, INPUTS = 5, 2, 3, 8, 16
NUM_Q = KV_HEADS * GROUP
PAGES, PAGE_SIZE = 4, 4


def make(dtype: str, seed: int = 0) -> tuple[QKV, LayerKV]:
    """Return random heads and pages."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 6.3, (QUERIES, WIDTH // 2))
    inputs = jnp.asarray(rng.normal(size=(QUERIES, INPUTS)), dtype)
    heads = rng.normal(size=(QUERIES, NUM_Q + 2 * KV_HEADS, WIDTH))
    cos, sin = (jnp.asarray(f(angle), jnp.float32) for f in (np.cos, np.sin))
    qkv = QKV(inputs, jnp.asarray(heads, dtype), cos, sin, KV_HEADS, 1e-5)
    shape = PAGES, KV_HEADS, PAGE_SIZE, WIDTH
    k, v = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
    return qkv, LayerKV(k, v)


PAGE = jnp.array([0, 2, 2, 3, PAGES], jnp.int32)
SLOT = jnp.array([1, 0, 3, 2, 0], jnp.int32)


@jax.jit
def append(qkv: QKV, layer: LayerKV):
    return qkv.append(layer, PAGE, SLOT, "xla")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["key", "value"])
def test_a_head_that_is_not_finite_is_stored_as_zeros(dtype, value, part):
    qkv, layer = make(dtype)
    token, head = 1, 1
    column = NUM_Q + head + (KV_HEADS if part == "value" else 0)
    heads = qkv.heads.at[token, column, 3].set(value)
    q, stored = append(qkv, layer)
    broken_q, broken = append(dataclasses.replace(qkv, heads=heads), layer)
    at = int(PAGE[token]), head, int(SLOT[token])
    for pool, expected in ((broken.k, stored.k), (broken.v, stored.v)):
        np.testing.assert_array_equal(pool, expected.at[at].set(0))
    group = slice(head * GROUP, (head + 1) * GROUP)
    assert np.isnan(np.asarray(broken_q[token, group], np.float32)).all()
    np.testing.assert_array_equal(broken_q.at[token, group].set(q[token, group]), q)


def test_a_key_that_the_pool_cannot_hold_is_not_stored():
    """A float16 pool overflows where the float32 network does not."""
    qkv, _ = make("float32")
    pages = jnp.ones((PAGES, KV_HEADS, PAGE_SIZE, WIDTH), jnp.float16)
    heads = qkv.heads.at[0, NUM_Q, 0].set(1e7)
    _, stored = append(dataclasses.replace(qkv, heads=heads), LayerKV(pages, pages))
    assert np.isfinite(np.asarray(stored.k)).all()
    np.testing.assert_array_equal(stored.k[0, 0, 1], 0)


def test_inputs_that_are_not_finite_break_their_token_alone():
    qkv, layer = make("float32")
    q, stored = append(qkv, layer)
    inputs = qkv.inputs.at[2, 0].set(jnp.nan)
    broken_q, broken = append(dataclasses.replace(qkv, inputs=inputs), layer)
    assert np.isnan(broken_q[2]).all()
    np.testing.assert_array_equal(np.delete(broken_q, 2, 0), np.delete(q, 2, 0))
    np.testing.assert_array_equal(broken.k, stored.k.at[2, :, 3].set(0))
    np.testing.assert_array_equal(broken.v, stored.v.at[2, :, 3].set(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_writing_rows_follows_the_same_rule(value):
    _, layer = make("bfloat16")
    rng = np.random.default_rng(1)
    k, v = jnp.asarray(rng.normal(size=(2, QUERIES, KV_HEADS, WIDTH)), jnp.float32)
    expected = write(layer, PAGE, SLOT, k, v)
    written = write(layer, PAGE, SLOT, k, v.at[3, 0, 5].set(value))
    np.testing.assert_array_equal(written.k, expected.k.at[3, 0, 2].set(0))
    np.testing.assert_array_equal(written.v, expected.v.at[3, 0, 2].set(0))
