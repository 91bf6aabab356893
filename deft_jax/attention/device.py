"""What the choice of a kernel depends on: the device that arrays lie on."""

import re
from typing import Protocol

import jax
from jax.core import Tracer

HOPPER = (9, 0)
"""Compute capability of the GPUs that the measured kernels are made for."""


class Device(Protocol):
    """A `jax.Device`, which type checkers do not know: jaxlib has no stub of it."""

    @property
    def id(self) -> int:
        """Its number among the devices of its platform."""
        ...

    @property
    def platform(self) -> str:
        """Its platform, "gpu" for NVIDIA GPUs."""
        ...

    @property
    def device_kind(self) -> str:
        """Its kind, such as "NVIDIA H100 80GB HBM3"."""
        ...


def default_device() -> Device:
    """Return the device where JAX puts new arrays, as `jax_default_device` says."""
    chosen = jax.config.jax_default_device
    if chosen is None:
        return jax.devices()[0]
    return jax.devices(chosen)[0] if isinstance(chosen, str) else chosen


def device_of(*arrays: object) -> Device:
    """Return the device of the first array that lies on one, else the default device.

    While a function is traced nothing says where its arguments will lie: wrap the call
    in `jax.default_device` where that is not the default.
    """
    for array in arrays:
        if isinstance(array, jax.Array) and not isinstance(array, Tracer):
            return min(array.devices(), key=lambda device: device.id)
    return default_device()


def compute_capability(device: Device | None = None) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU, (9, 0) for Hopper.

    Args:
        device: the device to ask, by default the default device.

    Returns:
        The major and minor number, or None if the device is no NVIDIA GPU.
    """
    device = device or default_device()
    if device.platform != "gpu":
        return None
    version = getattr(device, "compute_capability", None)
    numbers = re.fullmatch(r"(\d+)\.(\d+)", str(version))
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def is_hopper(device: Device | None = None) -> bool:
    """Say whether a device (by default the default one) runs the Hopper kernels."""
    return compute_capability(device) == HOPPER


def has_bulk_copies(device: Device | None = None) -> bool:
    """Say whether a device (by default the default one) has bulk copies.

    Hopper and newer GPUs do.
    """
    capability = compute_capability(device)
    return capability is not None and capability >= HOPPER


def num_multiprocessors(device: Device | None = None) -> int | None:
    """Return the multiprocessors of a device (by default the default one).

    Returns:
        Their number, or None if the device does not say.
    """
    return getattr(device or default_device(), "core_count", None)


def gpu_kind(device: Device | None = None) -> str | None:
    """Return the kind of a GPU, such as "NVIDIA H100 80GB HBM3".

    Args:
        device: the device to ask, by default the default device.

    Returns:
        Its kind, or None if the device is no GPU.
    """
    device = device or default_device()
    return device.device_kind if device.platform == "gpu" else None
