"""The float32 oracle of attention under interval masks; the specification of the op."""

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


def grouped_partial_attention_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    token_first: jax.Array,
    token_end: jax.Array,
    query_position: jax.Array,
    token_position: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attend with each query to the tokens whose range holds its rank.

    Tokens that no query sees and queries that see nothing do not matter, whatever they
    hold: 0 times NaN is NaN, so they are left out by selection, in gradients too.

    Args:
        q: [Q, H, D], queries in rank order, any float dtype.
        k: [T, K, D], keys.
        v: [T, K, D], values.
        token_first: [T] int32, first rank that sees the token.
        token_end: [T] int32, one past the last.
        query_position: [Q] int32, position along the path.
        token_position: [T] int32, position along the path.
        scale: factor of the logits.
        window: a query sees only tokens less than this many positions back.
        soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`.

    Returns:
        out [Q, H, D] float32 and lse [Q, H] float32, the natural log of the sum of
        exponentials; zeros and -inf for queries that see nothing.
    """
    rank = jnp.arange(q.shape[0])[:, None]
    seen = (token_first[None] <= rank) & (rank < token_end[None])
    if window is not None:
        seen &= query_position[:, None] - token_position[None] < window
    sees, is_seen = seen.any(axis=1)[:, None, None], seen.any(axis=0)[:, None, None]
    group = q.shape[1] // k.shape[1]
    q, k, v = (
        jnp.where(used, x.astype(jnp.float32), 0.0)
        for used, x in ((sees, q), (is_seen, k), (is_seen, v))
    )
    k, v = (jnp.repeat(x, group, axis=1) for x in (k, v))
    logits = jnp.einsum("qhd,thd->qht", q, k, precision=HIGHEST) * scale
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    # A softmax over nothing has no gradient: such queries keep their logits of 0.
    logits = jnp.where(seen[:, None] | ~sees, logits, -jnp.inf)
    lse = jnp.where(sees[:, 0], jax.nn.logsumexp(logits, axis=-1), -jnp.inf)
    weights = jnp.where(seen[:, None], jax.nn.softmax(logits, axis=-1), 0.0)
    return jnp.einsum("qht,thd->qhd", weights, v, precision=HIGHEST), lse
