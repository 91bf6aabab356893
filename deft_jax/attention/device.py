"""What the default device is, as far as the choice of a kernel depends on it."""

import jax

HOPPER = (9, 0)
"""Compute capability of the GPUs that the measured kernels are made for."""


def compute_capability() -> tuple[int, int] | None:
    """Of the default device, (9, 0) for Hopper; None if it is no NVIDIA GPU."""
    version = getattr(jax.devices()[0], "compute_capability", None)
    if jax.default_backend() != "gpu" or version is None:
        return None
    major, minor = str(version).split(".")
    return int(major), int(minor)


def is_hopper() -> bool:
    """Whether the default device runs the kernels that are made for Hopper."""
    return compute_capability() == HOPPER


def has_bulk_copies() -> bool:
    """Whether the default device has bulk copies, as Hopper and newer do."""
    capability = compute_capability()
    return capability is not None and capability >= HOPPER


def num_multiprocessors() -> int | None:
    """Of the default device; None if it does not say."""
    return getattr(jax.devices()[0], "core_count", None)
