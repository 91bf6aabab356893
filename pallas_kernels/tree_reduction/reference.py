"""The float32 oracle of the merge of partial attention results."""

import jax
import jax.numpy as jnp


def tree_reduction_reference(
    out: jax.Array, lse: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merge partial results over S disjoint sets of tokens (DeFT section 3.2).

    Args:
        out: [S, ..., D], partial outputs, each normalised over its own tokens.
        lse: [S, ...], their natural log-sum-exp; -inf where a partial saw nothing,
            whose output plays no role, be it NaN.

    Returns:
        out [..., D] float32 and lse [...] float32 over all tokens; zeros and -inf where
        no partial saw any.
    """
    out, lse = out.astype(jnp.float32), lse.astype(jnp.float32)
    total = jax.nn.logsumexp(lse, axis=0)
    blind = jnp.isneginf(total)[None]
    weights = jnp.where(blind, 0.0, jax.nn.softmax(lse, axis=0))
    weights = weights[..., None]
    return jnp.sum(jnp.where(weights == 0.0, 0.0, weights * out), axis=0), total
