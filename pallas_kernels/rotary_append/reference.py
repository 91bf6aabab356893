"""Scaling, rotation and storage of a step's heads in plain JAX."""

import jax
import jax.numpy as jnp

from ..rms_scale import rms_scaled


def rotary_append_reference(
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
    """What `rotary_append` computes; any dtype, see there for the arguments."""
    num_kv_heads = k_pages.shape[1]
    num_q_heads = heads.shape[1] - 2 * num_kv_heads
    heads = rms_scaled(heads, inputs, eps)
    q, k, v = jnp.split(heads, (num_q_heads, num_q_heads + num_kv_heads), axis=1)

    def put(pages, rows):
        rows = rows.astype(pages.dtype)
        return pages.at[page, :, slot].set(rows, mode="drop", unique_indices=True)

    q = rotate(q, cos, sin).astype(inputs.dtype)
    return q, put(k_pages, rotate(k, cos, sin)), put(v_pages, v)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding of x [Q, heads, D], whose halves are the pairs' two parts.

    Args:
        x: [Q, heads, D].
        cos: [Q, D / 2] float32.
        sin: [Q, D / 2] float32.
    """
    cos, sin = cos[:, None], sin[:, None]
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    return turned.astype(x.dtype)
