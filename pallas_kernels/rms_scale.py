"""The scale of RMSNorm, which a product of weights lets pass (arXiv 1910.07467).

`rms_norm(x) @ W` is `x @ W'` divided by the root mean square of `x`, where row `i` of
`W'` is that of `W` times weight `i` of the norm: nothing needs to read and write `x`
before the product.
"""

import jax
import jax.numpy as jnp
from jax import lax


def rms_scaled(rows: jax.Array, inputs: jax.Array, eps: float) -> jax.Array:
    """Divide what was projected from inputs by their root mean square.

    Args:
        rows: [Q, ...] any float dtype, projections of the tokens.
        inputs: [Q, E] any float dtype, what they were projected from.
        eps: added to the mean square.

    Returns:
        [Q, ...] float32.
    """
    wide = inputs.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1) + eps)
    return rows.astype(jnp.float32) * jnp.expand_dims(scale, range(1, rows.ndim))
