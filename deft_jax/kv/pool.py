"""The KV pool: one page of one head is one contiguous block."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerKV:
    """Keys and values of one layer, written in place and never moved.

    Attributes:
        k: [M, K, P, D], keys with rotary positions applied.
        v: [M, K, P, D], values.
    """

    k: jax.Array
    v: jax.Array


def create_pool(
    num_layers: int,
    num_pages: int,
    num_kv_heads: int,
    page_size: int,
    head_dim: int,
    dtype: jnp.dtype,
) -> tuple[LayerKV, ...]:
    """An empty pool, one `LayerKV` per layer."""
    shape = (num_pages, num_kv_heads, page_size, head_dim)
    return tuple(
        LayerKV(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))
        for _ in range(num_layers)
    )


def write(
    layer: LayerKV, page: jax.Array, slot: jax.Array, k: jax.Array, v: jax.Array
) -> LayerKV:
    """Write the KV of the query tokens.

    Args:
        layer: the pool of one layer; donated by the step, so this is in place.
        page: [Q] int32, M for idle rows, which are dropped.
        slot: [Q] int32.
        k: [Q, K, D], cast to the pool's dtype.
        v: [Q, K, D].
    """

    def put(pool, rows):
        rows = rows.astype(pool.dtype)
        return pool.at[page, :, slot].set(rows, mode="drop", unique_indices=True)

    return LayerKV(k=put(layer.k, k), v=put(layer.v, v))
