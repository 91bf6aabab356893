"""The gate of a layer's MLP."""

import jax

from deft_jax.attention.backend import Backend, device_backend
from deft_jax.attention.device import device_of
from deft_jax.pallas_kernels.swiglu.reference import swiglu_reference


def swiglu(
    inputs: jax.Array,
    hidden: jax.Array,
    eps: float,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Return silu(gate) * up of projections behind an RMSNorm.

    The scale of the norm is applied here: `hidden` does not have it yet.

    Args:
        inputs: [Q, E], what was projected.
        hidden: [Q, 2 F], gate and up projections side by side; float32 or the dtype of
            `inputs`.
        eps: added to the mean square of the norm.
        implementation: the attention's; the kernel is used where its kernels are.

    Returns:
        [Q, F], in the dtype of `inputs`.

    Raises:
        ValueError: there is no such implementation, or the device cannot run it.
    """
    backend = device_backend(implementation, device_of(inputs, hidden))
    if backend is Backend.HOPPER:
        # Imported where it runs: Mosaic takes long to import, and no CPU needs it.
        from deft_jax.pallas_kernels.swiglu import hopper

        if hopper.takes(inputs, hidden):
            return hopper.swiglu(inputs, hidden, eps=eps)
    return swiglu_reference(inputs, hidden, eps=eps)
