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
    """Rotate a step's queries and store its keys and values, all of them finite.

    Args:
        inputs: [Q, E] any float dtype, what the heads were projected from; they are
            divided by the root mean square of its rows.
        heads: [Q, H + 2 K, D] that dtype or float32, query, key and value heads of each
            query token, before scaling and rotation.
        cos: [Q, D / 2] float32, cosines of the tokens' rotary angles.
        sin: [Q, D / 2] float32, sines of them.
        page: [Q] int32, page of each token, M or more for those that are not stored.
        slot: [Q] int32, slot within the page.
        k_pages: [M, K, P, D] any float dtype, keys.
        v_pages: [M, K, P, D] that dtype, values.
        eps: added to the mean square.

    Returns:
        [Q, H, D] rotated queries of the dtype of `inputs`, and both pools with the
        tokens' keys and values, as `finite_projections` has them.
    """
    q, k, v = finite_projections(
        inputs,
        heads,
        cos,
        sin,
        num_kv_heads=k_pages.shape[1],
        eps=eps,
        stored_dtype=k_pages.dtype,
    )

    def put(pages, rows):
        return pages.at[page, :, slot].set(rows, mode="drop", unique_indices=True)

    return q, put(k_pages, k), put(v_pages, v)


def finite_projections(
    inputs: jax.Array,
    heads: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    *,
    num_kv_heads: int,
    eps: float,
    stored_dtype: jax.typing.DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scale and rotate a step's heads, with keys and values that are safe to store.

    Attention weighs a token that a query does not see by 0, and 0 times NaN is NaN: a
    key or value that is not finite would reach the neighbours of those who see it. So
    where a token's key or value of one KV head has an element that is not finite once
    it is cast, both become zeros, and NaN takes the place of the token's queries that
    read this KV head: its own hidden state tells that something is wrong.

        G = 2, query heads 0 1 2 3 read KV heads 0 0 1 1
        a NaN in value 1 of a token: its key 1 and value 1 are 0, its queries 2 3 NaN

    Args:
        inputs: [Q, E] any float dtype, what the heads were projected from.
        heads: [Q, H + 2 K, D] that dtype or float32, query, key and value heads side by
            side, before scaling and rotation.
        cos: [Q, D / 2] float32, cosines of the tokens' rotary angles.
        sin: [Q, D / 2] float32, sines of them.
        num_kv_heads: `K`.
        eps: added to the mean square of `inputs`.
        stored_dtype: dtype of the pool, which must be able to hold the keys and values;
            None for that of `inputs`.

    Returns:
        Queries [Q, H, D] of the dtype of `inputs`, rotated; keys [Q, K, D], rotated,
        and values [Q, K, D], both of `stored_dtype` and finite.
    """
    num_q_heads = heads.shape[1] - 2 * num_kv_heads
    scaled = rms_scaled(heads, inputs, eps)
    q, k, v = jnp.split(scaled, (num_q_heads, num_q_heads + num_kv_heads), axis=1)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q, k, v = (x.astype(inputs.dtype) for x in (q, k, v))
    if stored_dtype is not None:
        k, v = k.astype(stored_dtype), v.astype(stored_dtype)
    fine = (jnp.isfinite(k) & jnp.isfinite(v)).all(axis=-1, keepdims=True)
    k, v = jnp.where(fine, k, 0), jnp.where(fine, v, 0)
    group = num_q_heads // num_kv_heads
    return jnp.where(jnp.repeat(fine, group, axis=1), q, jnp.nan), k, v


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate heads whose two halves are the two parts of the rotary pairs.

    Args:
        x: [Q, heads, D] any float dtype.
        cos: [Q, D / 2] float32, cosines of the rotary angles.
        sin: [Q, D / 2] float32, sines of them.

    Returns:
        [Q, heads, D] of the dtype of `x`, computed in float32.
    """
    cos, sin = cos[:, None], sin[:, None]
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    return turned.astype(x.dtype)
