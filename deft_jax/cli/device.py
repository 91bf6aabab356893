"""What the command line asks about the machine."""

import jax
import jax.numpy as jnp

from deft_jax.attention.backend import choose_backend
from deft_jax.attention.device import compute_capability
from deft_jax.errors import DeftError
from deft_jax.models.config.config import LlamaConfig


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


def check_arrays(
    name: str | None, config: LlamaConfig, dtype: jnp.dtype, page_size: int
) -> None:
    """Refuse an implementation that does not take the arrays of a model.

    Args:
        name: the implementation that was asked for, None for the best one.
        config: shape of the network.
        dtype: type of queries and KV.
        page_size: tokens per KV page.

    Raises:
        DeftError: the kernels were asked for, and do not take these arrays.
    """
    if name is None:
        return
    head_dim = config.head_dim
    q = jax.ShapeDtypeStruct((1, config.num_q_heads, head_dim), dtype)
    pages = 1, config.num_kv_heads, page_size, head_dim
    choose_backend(name, q, jax.ShapeDtypeStruct(pages, dtype))
