"""Which implementation of tree attention runs where."""

import functools
import warnings

import jax

from deft_jax.attention import device
from deft_jax.attention.hopper import unsupported
from deft_jax.attention.names import IMPLEMENTATIONS

Shaped = jax.Array | jax.ShapeDtypeStruct
"""What has a shape and a dtype."""


def default_implementation() -> str:
    """The implementation that `implementation=None` picks on the default device."""
    return "mosaic_gpu" if device.is_hopper() else "xla"


def pick_implementation(name: str | None, q: Shaped, k_pages: Shaped) -> str:
    """The implementation for these arrays: the one named, or the best there is.

    Args:
        name: one of `IMPLEMENTATIONS`, or None.
        q: [Q, H, D].
        k_pages: [M, K, P, D].

    Raises:
        ValueError: there is none of that name, or it cannot take these arrays here.
    """
    if name is None:
        return _best(unsupported(q, k_pages))
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, "
            f"got {name!r}"
        )
    if name == "mosaic_gpu":
        if device.compute_capability() is None:
            raise ValueError(
                "implementation 'mosaic_gpu' needs an NVIDIA GPU, got "
                f"{jax.default_backend()}; use 'xla'"
            )
        if reason := unsupported(q, k_pages) or _too_short(q, k_pages):
            raise ValueError(
                f"implementation 'mosaic_gpu' does not take these arrays: {reason}; "
                "use 'xla'"
            )
    return name


def _too_short(q: Shaped, k_pages: Shaped) -> str | None:
    """Devices without bulk copies move 80 elements of 32 tokens at a time."""
    page_size = k_pages.shape[2]
    if q.shape[2] == 80 and page_size % 32 and not device.has_bulk_copies():
        return f"page size {page_size} is no multiple of 32, which head_dim 80 needs"
    return None


def _best(unsupported_reason: str | None) -> str:
    capability = device.compute_capability()
    if capability is None:
        return "xla"
    if capability != device.HOPPER:
        have = ".".join(map(str, capability))
        _warn_once(
            f"the kernels are measured on compute capability 9.0, this is {have}"
        )
        return "xla"
    if unsupported_reason:
        _warn_once(unsupported_reason)
        return "xla"
    return "mosaic_gpu"


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"tree_attention uses 'xla' instead of 'mosaic_gpu': {reason}", stacklevel=2
    )
