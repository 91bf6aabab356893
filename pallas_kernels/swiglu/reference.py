"""SwiGLU behind an RMSNorm in plain JAX."""

import jax
import jax.numpy as jnp

from ..rms_scale import rms_scaled


def swiglu_reference(inputs: jax.Array, hidden: jax.Array, *, eps: float) -> jax.Array:
    """What `swiglu` computes; any dtype, see there for the arguments."""
    gate, up = jnp.split(rms_scaled(hidden, inputs, eps), 2, axis=1)
    return (jax.nn.silu(gate) * up).astype(inputs.dtype)
