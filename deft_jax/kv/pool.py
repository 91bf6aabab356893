"""The KV pool: one page of one head is one contiguous block."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerKV:
    """Keys and values of one layer, written in place and never moved.

    Their dtype is their own: rows are cast when they are written, and attention reads
    them back in the dtype of its queries. Whoever changes the arrays does it by
    `dataclasses.replace`, so that what a layer has besides them stays.

    Attributes:
        k: [M, K, P, D], keys with rotary positions applied.
        v: [M, K, P, D], values.
    """

    k: jax.Array
    v: jax.Array

    @property
    def dtype(self) -> jnp.dtype:
        """Type that keys and values are stored in."""
        return self.k.dtype


def create_pool(
    num_layers: int,
    num_pages: int,
    num_kv_heads: int,
    page_size: int,
    head_dim: int,
    dtype: jnp.dtype,
) -> tuple[LayerKV, ...]:
    """Return an empty pool, one `LayerKV` per layer.

    Args:
        num_layers: `L`.
        num_pages: `M`.
        num_kv_heads: `K`.
        page_size: `P`.
        head_dim: `D`.
        dtype: that keys and values are stored in; need not be the activations'.
    """
    shape = (num_pages, num_kv_heads, page_size, head_dim)
    return tuple(
        LayerKV(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))
        for _ in range(num_layers)
    )


def write(
    layer: LayerKV, page: jax.Array, slot: jax.Array, k: jax.Array, v: jax.Array
) -> LayerKV:
    """Write the KV of the query tokens, all of it finite.

    Attention weighs what a query does not see by 0, and 0 times NaN is NaN: a key or
    value that is not finite would reach the queries that share a tile with those which
    see it. So where a token's key or value of one head is not finite once it is cast,
    zeros are stored for both. Nothing else tells of it: a loop that wants to know asks
    `jnp.isfinite` of `k` and `v`.

    Args:
        layer: the pool of one layer; donated by the step, so this is in place.
        page: [Q] int32, page of each token; M for idle rows, which are dropped.
        slot: [Q] int32, slot within the page.
        k: [Q, K, D], keys, cast to the pool's dtype.
        v: [Q, K, D], values, cast to it too.

    Returns:
        The pool with the tokens' keys and values.

    Raises:
        ValueError: `page` or `slot` holds no integers, or `k` and `v` do not fit the
            pool.
    """
    _check(layer, page, slot, k, v)
    k, v = k.astype(layer.dtype), v.astype(layer.dtype)
    finite = (jnp.isfinite(k) & jnp.isfinite(v)).all(axis=-1, keepdims=True)

    def put(pool, rows):
        rows = jnp.where(finite, rows, 0)
        return pool.at[page, :, slot].set(rows, mode="drop", unique_indices=True)

    return dataclasses.replace(layer, k=put(layer.k, k), v=put(layer.v, v))


def _check(layer: LayerKV, page, slot, k, v) -> None:
    """Check that rows fit the pool they are written to.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    for name, index in (("page", page), ("slot", slot)):
        if not jnp.issubdtype(index.dtype, jnp.integer):
            raise ValueError(f"{name} must hold integers, got {index.dtype}")
    rows = (*page.shape, layer.k.shape[1], layer.k.shape[3])
    if not (slot.shape == page.shape and k.shape == v.shape == rows):
        raise ValueError(
            f"k and v must be {rows} and slot {page.shape} for this pool and page, got "
            f"{k.shape}, {v.shape} and {slot.shape}"
        )
