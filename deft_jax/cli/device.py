"""What the command line asks about the machine."""

import jax


def default_dtype() -> str:
    """Return the dtype of weights and KV that suits the default device."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
