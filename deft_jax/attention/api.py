"""The op: attention of every query token of a forest over the KV it sees."""

import math

import jax
import jax.numpy as jnp

from deft_jax.attention.device import has_bulk_copies, is_hopper, num_multiprocessors
from deft_jax.attention.grouping import Grouping
from deft_jax.attention.hopper import tree_attention_mosaic
from deft_jax.attention.implementations import pick_implementation
from deft_jax.attention.portable import tree_attention_mma
from deft_jax.attention.spec import AttentionSpec
from deft_jax.attention.xla import tree_attention_xla
from deft_jax.pallas_kernels.grouped_partial_attention.reference import (
    grouped_partial_attention_reference,
)


def tree_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    grouping: Grouping,
    *,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention over a forest that reads the KV of shared prefixes once.

    Equivalent to `grouped_partial_attention_reference` over all slots of the pool, see
    there for the formula (DeFT, arXiv 2404.00242, section 3).

    Args:
        q: [Q, H, D], queries in rank order (row `grouping.order[r]` at rank `r`).
        k_pages: [M, K, P, D], keys, the step's own tokens written; H is a multiple
            of K. Same dtype as q: float32, bfloat16 or float16.
        v_pages: [M, K, P, D], values.
        grouping: of the forest after the step's tokens were appended.
        scale: factor of the logits, above 0; `D ** -0.5` by default.
        window: a query sees only tokens less than this many positions back along its
            path, itself counted.
        soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`.
        implementation: "mosaic_gpu" (Pallas kernels for NVIDIA GPUs: bfloat16 or
            float16, head_dim 64, 80, 96, 128 or 256, pages of a multiple of 16), "xla"
            (any device), "reference" (the float32 oracle), or None for the best: the
            kernels on compute capability 9.0 where they take the arrays, else "xla".
            Asked for by name, they also serve 8.0 to 10.0, where they are compiled in
            tests and have not been run.

    Returns:
        out: [Q, H, D] in q's dtype; zeros for queries that see nothing.
        lse: [Q, H] float32, natural log of the sum of exponentials; -inf there.

    Raises:
        ValueError: shapes, dtypes or options do not fit each other.
    """
    _check(q, k_pages, v_pages, grouping, scale, window, soft_cap)
    scale = scale if scale is not None else 1.0 / math.sqrt(q.shape[-1])
    name = pick_implementation(implementation, q, k_pages)
    logits = AttentionSpec(scale=scale, window=window, soft_cap=soft_cap)
    if name == "mosaic_gpu":
        args = q, k_pages, v_pages, grouping, logits
        workers = num_multiprocessors()
        if is_hopper():
            return tree_attention_mosaic(*args, num_workers=workers)
        bulk = has_bulk_copies()
        return tree_attention_mma(*args, bulk=bulk, num_workers=workers)
    if name == "xla":
        return tree_attention_xla(q, k_pages, v_pages, grouping, logits)
    out, lse = _reference(q, k_pages, v_pages, grouping, scale, window, soft_cap)
    return out.astype(q.dtype), lse


def _reference(q, k_pages, v_pages, grouping, scale, window, soft_cap):
    def tokens(pages):
        heads, width = pages.shape[1], pages.shape[3]
        return pages.transpose(0, 2, 1, 3).reshape(-1, heads, width)

    return grouped_partial_attention_reference(
        q,
        tokens(k_pages),
        tokens(v_pages),
        grouping.slot_first.ravel(),
        grouping.slot_end.ravel(),
        grouping.query_position,
        grouping.slot_position.ravel(),
        scale=scale,
        window=window,
        soft_cap=soft_cap,
    )


def _check(q, k_pages, v_pages, grouping, scale, window, soft_cap):
    if q.ndim != 3 or k_pages.ndim != 4:
        raise ValueError(
            "q must be [queries, heads, head_dim] and k_pages [pages, heads, "
            f"page_size, head_dim], got {q.shape} and {k_pages.shape}"
        )
    if k_pages.shape != v_pages.shape:
        raise ValueError(
            f"k_pages and v_pages must have one shape, got {k_pages.shape} and "
            f"{v_pages.shape}"
        )
    if q.shape[2] != k_pages.shape[3] or q.shape[1] % k_pages.shape[1]:
        raise ValueError(
            "q must have the pages' head_dim and a multiple of their heads "
            f"({k_pages.shape[3]} and {k_pages.shape[1]}), got {q.shape[2]} and "
            f"{q.shape[1]}"
        )
    slots = (k_pages.shape[0], k_pages.shape[2])
    if grouping.num_queries != q.shape[0] or grouping.slot_first.shape != slots:
        raise ValueError(
            f"grouping is for {grouping.num_queries} queries and pages of "
            f"{grouping.slot_first.shape}, got {q.shape[0]} queries and {slots}"
        )
    if not (q.dtype == k_pages.dtype == v_pages.dtype):
        raise ValueError(
            f"q, k_pages and v_pages must share a dtype, got {q.dtype}, "
            f"{k_pages.dtype} and {v_pages.dtype}"
        )
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"q must be of a floating dtype, got {q.dtype}")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 token, got {window}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap must be above 0, got {soft_cap}")
