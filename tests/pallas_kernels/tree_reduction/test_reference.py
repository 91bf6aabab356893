"""Partial attention over any split of the tokens merges to attention over them all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.pallas_kernels.grouped_partial_attention.reference import (
    grouped_partial_attention_reference,
)
from deft_jax.pallas_kernels.tree_reduction.reference import tree_reduction_reference
from tests.support.tolerances import assert_attention_close

NUM_QUERIES, NUM_TOKENS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 48, 6, 2, 16
NUM_PARTS = 5
SEEDS = st.integers(0, 2**32 - 1)

merge = jax.jit(tree_reduction_reference)


@jax.jit
def attend(q, k, v, first, end):
    """Attend as the oracle does, to one set of tokens."""
    none = jnp.zeros(NUM_QUERIES, jnp.int32), jnp.zeros(NUM_TOKENS, jnp.int32)
    return grouped_partial_attention_reference(q, k, v, first, end, *none, scale=0.5)


@jax.jit
def attend_parts(q, k, v, first, end, part):
    """Attend to each part alone: the others' tokens have empty ranges."""
    parts = jnp.arange(NUM_PARTS)[:, None]
    ends = jnp.where(part[None] == parts, end[None], 0)
    return jax.vmap(attend, in_axes=(None, None, None, None, 0))(q, k, v, first, ends)


def random_arguments(rng: np.random.Generator) -> list[jax.Array]:
    """q, k, v and ranges of ranks; the last query sees nothing."""
    arrays = [
        rng.normal(size=(NUM_QUERIES, NUM_HEADS, HEAD_DIM)).astype(np.float32),
        rng.normal(size=(NUM_TOKENS, NUM_KV_HEADS, HEAD_DIM)).astype(np.float32),
        rng.normal(size=(NUM_TOKENS, NUM_KV_HEADS, HEAD_DIM)).astype(np.float32),
        rng.integers(0, NUM_QUERIES, NUM_TOKENS, np.int32),
        rng.integers(0, NUM_QUERIES, NUM_TOKENS, np.int32),
    ]
    return [jnp.asarray(array) for array in arrays]


@given(SEEDS, st.integers(1, NUM_PARTS))
def test_a_split_of_the_tokens_merges_to_the_whole(seed: int, parts_in_use: int):
    rng = np.random.default_rng(seed)
    arguments = random_arguments(rng)
    part = rng.choice(NUM_PARTS, parts_in_use)[
        rng.integers(0, parts_in_use, NUM_TOKENS)
    ]
    whole = attend(*arguments)
    assert np.isneginf(whole[1][-1]).all()
    merged = merge(*attend_parts(*arguments, jnp.asarray(part, jnp.int32)))
    assert_attention_close(merged, whole)


@given(SEEDS)
def test_the_order_of_the_parts_does_not_matter(seed: int):
    rng = np.random.default_rng(seed)
    part = jnp.asarray(rng.integers(0, NUM_PARTS, NUM_TOKENS, np.int32))
    out, lse = attend_parts(*random_arguments(rng), part)
    order = rng.permutation(NUM_PARTS)
    assert_attention_close(merge(out[order], lse[order]), merge(out, lse))


@given(SEEDS)
def test_merging_in_two_stages_is_merging_at_once(seed: int):
    rng = np.random.default_rng(seed)
    part = jnp.asarray(rng.integers(0, NUM_PARTS, NUM_TOKENS, np.int32))
    out, lse = attend_parts(*random_arguments(rng), part)
    halves = [merge(out[:2], lse[:2]), merge(out[2:], lse[2:])]
    staged = merge(*(jnp.stack(x) for x in zip(*halves, strict=True)))
    assert_attention_close(staged, merge(out, lse))


def test_parts_that_saw_nothing_merge_to_nothing():
    out, lse = merge(jnp.zeros((3, 2, 4)), jnp.full((3, 2), -jnp.inf))
    np.testing.assert_array_equal(out, np.zeros((2, 4)))
    np.testing.assert_array_equal(lse, np.full(2, -np.inf))


def test_what_a_part_holds_that_saw_nothing_does_not_matter():
    """A kernel writes no output for such rows."""
    rng = np.random.default_rng(0)
    part = jnp.asarray(rng.integers(0, NUM_PARTS, NUM_TOKENS, np.int32))
    out, lse = attend_parts(*random_arguments(rng), part)
    blind = jnp.isneginf(lse)
    assert blind[:, :-1].any()
    spoilt = jnp.where(blind[..., None], jnp.nan, out)
    for x, y in zip(merge(spoilt, lse), merge(out, lse), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_part_alone_comes_back_bit_for_bit():
    out, lse = jnp.full((1, 2, 4), 0.3), jnp.array([[3.0, -200.0]])
    merged = merge(out, lse)
    np.testing.assert_array_equal(merged[0], out[0])
    np.testing.assert_array_equal(merged[1], lse[0])


@pytest.mark.parametrize("level", [-1e4, 0.0, 1e4])
def test_large_logs_neither_overflow_nor_vanish(level: float):
    out, lse = jnp.array([[1.0], [3.0]]), jnp.full(2, level)
    merged, total = merge(out, lse)
    np.testing.assert_allclose(merged, [2.0], rtol=1e-6)
    np.testing.assert_allclose(total, level + np.log(2), rtol=1e-6)


def test_narrow_partials_are_merged_in_float32():
    out, lse = jnp.ones((2, 4), jnp.bfloat16), jnp.zeros(2, jnp.bfloat16)
    assert [x.dtype for x in merge(out, lse)] == ["float32", "float32"]
