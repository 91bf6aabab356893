"""The one place that chooses what runs, of attention and of what stands beside it.

People name an *implementation*; what it means on a device is a *backend*. The op, the
store of a layer's keys and values and the gate of its MLP all ask here, so that one
name chooses all of them.
"""

import enum
import functools
import warnings

import jax

from deft_jax.attention import device as devices
from deft_jax.attention.device import HOPPER, Device, device_of
from deft_jax.attention.hopper import unsupported
from deft_jax.attention.names import IMPLEMENTATIONS
from deft_jax.errors import DeftError

Shaped = jax.Array | jax.ShapeDtypeStruct
"""What has a shape and a dtype."""


class Backend(enum.Enum):
    """What runs a layer.

    Attributes:
        HOPPER: Pallas kernels for compute capability 9.0.
        PORTABLE: Pallas kernels for other NVIDIA GPUs.
        XLA: plain XLA operations.
        REFERENCE: the float32 oracle, in plain XLA operations too.
    """

    HOPPER = "hopper"
    PORTABLE = "portable"
    XLA = "xla"
    REFERENCE = "reference"

    @property
    def implementation(self) -> str:
        """The name by which people ask for it."""
        kernels = self in (Backend.HOPPER, Backend.PORTABLE)
        return "mosaic_gpu" if kernels else self.value


def device_backend(implementation: str | None, device: Device | None = None) -> Backend:
    """Return what an implementation means on a device, whatever the arrays.

    Args:
        implementation: one of `IMPLEMENTATIONS`, or None for the best one.
        device: the device, by default the default one.

    Raises:
        DeftError: no implementation has that name, or the device cannot run it.
    """
    if implementation is None:
        return Backend.HOPPER if devices.is_hopper(device) else Backend.XLA
    if implementation not in IMPLEMENTATIONS:
        raise DeftError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)} or None, "
            f"got {implementation!r}"
        )
    if implementation != "mosaic_gpu":
        return Backend(implementation)
    capability = devices.compute_capability(device)
    if capability is None:
        platform = (device or devices.default_device()).platform
        raise DeftError(
            f"implementation 'mosaic_gpu' needs an NVIDIA GPU, got {platform}; use "
            "'xla'"
        )
    return Backend.HOPPER if capability == HOPPER else Backend.PORTABLE


def choose_backend(
    implementation: str | None,
    q: Shaped,
    k_pages: Shaped,
    device: Device | None = None,
) -> Backend:
    """Return what runs attention over these arrays, where they lie.

    An implementation that is named is never replaced. The best one is: by "xla", with
    one warning, on other NVIDIA GPUs and for arrays that the kernels do not take.

    Args:
        implementation: one of `IMPLEMENTATIONS`, or None for the best one.
        q: [Q, H, D], the queries.
        k_pages: [M, K, P, D], the keys.
        device: where it runs, by default where the arrays lie.

    Raises:
        DeftError: no implementation has that name, or it cannot take these arrays.
    """
    device = device or device_of(q, k_pages)
    backend = device_backend(implementation, device)
    if backend is Backend.HOPPER or backend is Backend.PORTABLE:
        reason = unsupported(q, k_pages) or _too_short(q, k_pages, device)
        if reason and implementation is None:
            return _use_xla(reason)
        if reason:
            raise DeftError(
                f"implementation 'mosaic_gpu' does not take these arrays: {reason}; "
                "use 'xla'"
            )
    capability = devices.compute_capability(device)
    if implementation is None and backend is Backend.XLA and capability is not None:
        have = ".".join(map(str, capability))
        return _use_xla(
            f"the kernels are measured on compute capability 9.0, this is {have}"
        )
    return backend


def _too_short(q: Shaped, k_pages: Shaped, device: Device) -> str | None:
    """Say why the pages are too short for a device without bulk copies, if they are.

    It moves 80 elements of 32 tokens at a time.
    """
    page_size = k_pages.shape[2]
    if q.shape[2] == 80 and page_size % 32 and not devices.has_bulk_copies(device):
        return f"page size {page_size} is no multiple of 32, which head_dim 80 needs"
    return None


@functools.cache
def _use_xla(reason: str) -> Backend:
    """Warn once that the kernels are not used, and return what is."""
    warnings.warn(
        f"tree_attention uses 'xla' instead of 'mosaic_gpu': {reason}", stacklevel=2
    )
    return Backend.XLA
