"""Scales and rotates a step's queries and keys and stores its KV, in one kernel.

XLA needs one kernel for each of the three, and a decode step has one of each per layer:
with so few tokens, starting kernels is all that they cost.

A block of threads has some KV heads of a token together with the query heads that read
them, so that it alone can tell those queries of a key or value that is not finite.
Where one KV head has so many query heads that several blocks divide them, each of these
checks the key and value, and the first stores them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..mosaic.compat import COMPILER_PARAMS
from ..mosaic.instructions import WARPGROUP_THREADS
from ..mosaic.vectors import VECTOR, WARPS
from .mosaic_heads import PAIRS, append_heads

I32 = jnp.int32
MOST_KV_HEADS = 32
"""KV heads of a block: each has a bit of an int32."""


def takes(inputs: jax.Array, heads: jax.Array, k_pages: jax.Array) -> bool:
    """Return whether the kernel is made for arrays of these shapes and dtypes."""
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
    """Do what `rotary_append_reference` does, and write the pages in place.

    Args:
        inputs: [Q, E] bfloat16, what the heads were projected from; they are divided
            by the root mean square of its rows.
        heads: [Q, H + 2 K, D] bfloat16, query, key and value heads of each query token,
            before scaling and rotation.
        cos: [Q, D / 2] float32, cosines of the tokens' rotary angles.
        sin: [Q, D / 2] float32, sines of them.
        page: [Q] int32, page of each token, M or more for those that are not stored.
        slot: [Q] int32, slot within the page.
        k_pages: [M, K, P, D] bfloat16, keys; donated for writing in place.
        v_pages: [M, K, P, D] bfloat16, values; likewise donated.
        eps: added to the mean square.

    Returns:
        [Q, H, D] rotated queries, and the pages with the tokens' keys and values.
    """
    num_queries, num_heads, head_dim = heads.shape
    num_kv_heads = k_pages.shape[1]
    num_q_heads = num_heads - 2 * num_kv_heads
    group = num_q_heads // num_kv_heads
    counts = divide_heads(num_kv_heads, group, head_dim)
    kernel = plgpu.kernel(
        functools.partial(_kernel, counts, eps),
        out_type=jax.ShapeDtypeStruct(
            (num_queries, num_q_heads, head_dim), heads.dtype
        ),
        grid=(num_queries, num_kv_heads // counts[0], group // counts[1]),
        grid_names=("query", "kv", "part"),
        scratch_types=[
            plgpu.SMEM((WARPS,), jnp.float32),
            plgpu.SMEM((WARPS,), jnp.int32),
        ],
        kernel_name="rotary_append",
        compiler_params=COMPILER_PARAMS,
    )
    k_ref, v_ref = jax.new_ref(k_pages), jax.new_ref(v_pages)
    q = kernel(inputs, heads, cos, sin, page, slot, k_ref, v_ref)
    return q, k_ref[...], v_ref[...]


def divide_heads(num_kv_heads: int, group: int, head_dim: int) -> tuple[int, int]:
    """Return the KV heads of a block of threads, and the query heads for each of them.

    The most that leave every thread at most one part of a query head:

        K   G   D     parts of a head    KV heads, query heads of each
        8   4   128   16                 2, 4: 128 parts
        3   3   64    8                  3, 3: 72 parts
        1   8   256   32                 1, 4: 128 parts, two blocks
    """
    parts = head_dim // (2 * PAIRS)

    def fits(kv_heads: int, q_heads: int) -> bool:
        few = kv_heads * q_heads * parts <= WARPGROUP_THREADS
        return few and kv_heads <= MOST_KV_HEADS

    if fits(1, group):
        divisors = (n for n in range(num_kv_heads, 0, -1) if num_kv_heads % n == 0)
        return next(n for n in divisors if fits(n, group)), group
    divisors = (n for n in range(group, 0, -1) if group % n == 0)
    return 1, next((n for n in divisors if fits(1, n)), 1)


def _kernel(
    counts,
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
    bits_scratch,
):
    query, part = lax.axis_index("query"), lax.axis_index("part")
    first_kv = lax.axis_index("kv") * counts[0]
    group = q_ref.shape[1] // k_ref.shape[1]
    page, slot = page_ref[query], slot_ref[query]
    stored = jnp.where((page < k_ref.shape[0]) & (part == 0), I32(1), I32(0))
    append_heads(
        inputs_ref.at[query],
        (scratch, bits_scratch),
        heads_ref.at[query],
        (cos_ref.at[query], sin_ref.at[query]),
        (q_ref.at[query], k_ref.at[page, :, slot], v_ref.at[page, :, slot]),
        first_kv * group + part * counts[1],
        first_kv,
        stored,
        counts=counts,
        eps=eps,
    )
