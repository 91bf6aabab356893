"""The gate of a layer's MLP, by the best way for the device."""

import jax

from deft_jax.attention.device import is_hopper
from deft_jax.pallas_kernels.swiglu import hopper
from deft_jax.pallas_kernels.swiglu.reference import swiglu_reference


def swiglu(inputs: jax.Array, hidden: jax.Array, eps: float) -> jax.Array:
    """silu(gate) * up of projections behind an RMSNorm whose scale is still missing.

    Args:
        inputs: [Q, E], what was projected.
        hidden: [Q, 2 F], gate and up projections side by side; float32 or the dtype of
            `inputs`.
        eps: of the norm.

    Returns:
        [Q, F], of the dtype of `inputs`.
    """
    if is_hopper() and hopper.takes(inputs, hidden):
        return hopper.swiglu(inputs, hidden, eps=eps)
    return swiglu_reference(inputs, hidden, eps=eps)
