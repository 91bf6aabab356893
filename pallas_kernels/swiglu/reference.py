"""SwiGLU behind an RMSNorm in plain JAX."""

import jax
import jax.numpy as jnp

from ..rms_scale import rms_scaled


def swiglu_reference(inputs: jax.Array, hidden: jax.Array, *, eps: float) -> jax.Array:
    """Scale both projections, and gate one by the other.

    Args:
        inputs: [Q, E] any float dtype, what `hidden` was projected from; it is divided
            by the root mean square of the rows.
        hidden: [Q, 2 F] that dtype or float32, gate and up projections side by side.
        eps: added to the mean square.

    Returns:
        [Q, F] silu(gate) * up, of the dtype of `inputs`.
    """
    gate, up = jnp.split(rms_scaled(hidden, inputs, eps), 2, axis=1)
    return (jax.nn.silu(gate) * up).astype(inputs.dtype)
