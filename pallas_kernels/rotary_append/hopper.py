"""Scales and rotates a step's queries and keys and stores its KV, in one kernel.

XLA needs one kernel for each of the three, and a decode step has one of each per layer:
with so few tokens, starting kernels is all that they cost.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..mosaic.compat import COMPILER_PARAMS
from ..mosaic.rows import VECTOR, WARPS
from .mosaic_heads import PAIRS, copy_heads, rotate_heads

I32 = jnp.int32


def takes(inputs: jax.Array, heads: jax.Array, k_pages: jax.Array) -> bool:
    """Whether the kernel is made for arrays of these shapes and dtypes."""
    fits = inputs.shape[1] % VECTOR == 0 and heads.shape[2] % (2 * PAIRS) == 0
    dtypes = {x.dtype for x in (inputs, heads, k_pages)}
    return fits and dtypes == {jnp.dtype(jnp.bfloat16)}


def rotary_append(
    inputs: jax.Array,
    heads: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    page: jax.Array,
    slot: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    *,
    eps: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Equivalent to `rotary_append_reference`; the pages are written in place.

    Args:
        inputs: [Q, E] bfloat16, what the heads were projected from; they are divided
            by the root mean square of its rows.
        heads: [Q, H + 2 K, D] bfloat16, query, key and value heads of each query token,
            before scaling and rotation.
        cos: [Q, D / 2] float32, of the tokens' rotary angles.
        sin: [Q, D / 2] float32.
        page: [Q] int32, page of each token, M or more for those that are not stored.
        slot: [Q] int32, slot within the page.
        k_pages: [M, K, P, D], of the dtype of `heads`; donated for writing in place.
        v_pages: [M, K, P, D].
        eps: added to the mean square.

    Returns:
        [Q, H, D] rotated queries, and the pages with the tokens' keys and values.
    """
    num_queries, num_heads, head_dim = heads.shape
    num_kv_heads = k_pages.shape[1]
    num_q_heads = num_heads - 2 * num_kv_heads
    block = math.gcd(num_q_heads, num_kv_heads)
    kernel = plgpu.kernel(
        functools.partial(_kernel, block, eps),
        out_type=jax.ShapeDtypeStruct(
            (num_queries, num_q_heads, head_dim), heads.dtype
        ),
        grid=(num_queries, num_heads // block),
        grid_names=("query", "block"),
        scratch_types=[plgpu.SMEM((WARPS,), jnp.float32)],
        kernel_name="rotary_append",
        compiler_params=COMPILER_PARAMS,
    )
    k_ref, v_ref = jax.new_ref(k_pages), jax.new_ref(v_pages)
    q = kernel(inputs, heads, cos, sin, page, slot, k_ref, v_ref)
    return q, k_ref[...], v_ref[...]


def _kernel(
    block,
    eps,
    inputs_ref,
    heads_ref,
    cos_ref,
    sin_ref,
    page_ref,
    slot_ref,
    k_ref,
    v_ref,
    q_ref,
    scratch,
):
    query, first = lax.axis_index("query"), lax.axis_index("block") * block
    num_pages, num_kv_heads, _, _ = k_ref.shape
    num_q_heads = q_ref.shape[1]
    page, slot = page_ref[query], slot_ref[query]
    stored = page < num_pages
    first_k, first_v = I32(num_q_heads), I32(num_q_heads + num_kv_heads)
    is_q, is_v = first < first_k, first >= first_v
    source = inputs_ref.at[query], scratch, heads_ref.at[query], first
    of = {"count": block, "eps": eps}
    angles = cos_ref.at[query], sin_ref.at[query]

    @pl.when(is_q)
    def _():
        rotate_heads(*source, *angles, q_ref.at[query], first, **of)

    @pl.when(stored & jnp.logical_not(is_q | is_v))
    def _():
        target = k_ref.at[page, :, slot]
        rotate_heads(*source, *angles, target, first - first_k, **of)

    @pl.when(stored & is_v)
    def _():
        copy_heads(*source, v_ref.at[page, :, slot], first - first_v, **of)
