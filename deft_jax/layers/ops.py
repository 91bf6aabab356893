"""What a decoder hands to a network: the operations of a layer besides products."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from deft_jax.layers.qkv import QKV
from deft_jax.pallas_kernels.swiglu.reference import swiglu_reference

Attend = Callable[[QKV, Any], tuple[jax.Array, Any]]
"""Stores a step's keys and values and attends: from a layer's heads and its cache, any
pytree, to the attention output [Q, H, D] and the new cache."""


def _plain_swiglu(inputs: jax.Array, hidden: jax.Array, eps: float) -> jax.Array:
    return swiglu_reference(inputs, hidden, eps=eps)


@dataclasses.dataclass(frozen=True)
class LayerOps:
    """The operations of a layer, chosen by the decoder and not by the network.

    A network that calls nothing else runs what the decoder's implementation names,
    whatever the device. One object serves all layers; it is static where a layer is
    compiled, so it must be hashable.

    Attributes:
        attend: from the heads of the query tokens, not yet rotated, and the layer's
            cache to the attention output [Q, H, D] and the new cache.
        swiglu: from inputs [Q, E], projections [Q, 2 F] and the norm's epsilon to the
            gated [Q, F]; plain JAX by default.
    """

    attend: Attend
    swiglu: Callable[[jax.Array, jax.Array, float], jax.Array] = _plain_swiglu
