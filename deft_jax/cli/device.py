"""What the command line asks about the machine."""

import jax

from deft_jax.attention.device import compute_capability
from deft_jax.errors import DeftError


def start_backend() -> str:
    """Start JAX on its default device; return the name of the platform.

    Raises:
        DeftError: the platform that the user asked for does not exist here.
    """
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # "cuda" without its plugin asserts
        raise DeftError(
            f"JAX cannot start with JAX_PLATFORMS={jax.config.jax_platforms or ''}:"
            f" {str(error) or 'there is no such device'}; unset it to take what there"
            " is"
        ) from None


def default_dtype() -> str:
    """Return the dtype of weights and KV that suits the default device."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def check_implementation(name: str | None) -> None:
    """Refuse an implementation that the default device has not.

    Raises:
        DeftError: the kernels were asked for without an NVIDIA GPU.
    """
    if name == "mosaic_gpu" and compute_capability() is None:
        raise DeftError(
            "--implementation mosaic_gpu needs an NVIDIA GPU, got"
            f" {jax.default_backend()}; use xla"
        )
