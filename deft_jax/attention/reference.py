"""The float32 oracle over pages: `implementation="reference"`."""

import jax

from deft_jax.attention.grouping import Grouping
from deft_jax.attention.spec import Logits
from deft_jax.pallas_kernels.grouped_partial_attention.reference import (
    grouped_partial_attention_reference,
)


def tree_attention_reference(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    grouping: Grouping,
    spec: Logits,
) -> tuple[jax.Array, jax.Array]:
    """Attend in float32 over all slots of the pool at once.

    Args:
        q: [Q, H, D], queries in rank order.
        k_pages: [M, K, P, D], keys.
        v_pages: [M, K, P, D], values.
        grouping: what each query sees.
        spec: scale, window and soft cap of the logits.

    Returns:
        out: [Q, H, D] in q's dtype; zeros for queries that see nothing.
        lse: [Q, H] float32, natural log of the sum of exponentials; -inf there.
    """

    def tokens(pages):
        heads, width = pages.shape[1], pages.shape[3]
        return pages.transpose(0, 2, 1, 3).reshape(-1, heads, width)

    out, lse = grouped_partial_attention_reference(
        q,
        tokens(k_pages),
        tokens(v_pages),
        grouping.slot_first.ravel(),
        grouping.slot_end.ravel(),
        grouping.query_position,
        grouping.slot_position.ravel(),
        scale=spec.scale,
        window=spec.window,
        soft_cap=spec.soft_cap,
    )
    return out.astype(q.dtype), lse
