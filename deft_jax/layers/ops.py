"""What a decoder hands to a network: the operations of a layer besides products."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax

from deft_jax.layers.qkv import QKV
from deft_jax.pallas_kernels.swiglu.reference import swiglu_reference

FULL = "full_attention"
"""Kind of the layers that see their whole path; of all, if a network names none."""


class Attend(Protocol):
    """Stores a step's keys and values and attends."""

    def __call__(
        self, heads: QKV, cache: Any, kind: str = FULL, /
    ) -> tuple[jax.Array, Any]:
        """Return the attention output [Q, H, D] and the layer's new cache.

        Args:
            heads: heads of the query tokens, not yet rotated.
            cache: the layer's, any pytree.
            kind: the layer's, by the name that the network's `attention_specs` has.
        """
        ...


def _plain_swiglu(inputs: jax.Array, hidden: jax.Array, eps: float) -> jax.Array:
    return swiglu_reference(inputs, hidden, eps=eps)


@dataclasses.dataclass(frozen=True)
class LayerOps:
    """The operations of a layer, chosen by the decoder and not by the network.

    A network that calls nothing else runs what the decoder's implementation names,
    whatever the device. One object serves all layers; it is static where a layer is
    compiled, so it must be hashable.

    Attributes:
        attend: from the heads of the query tokens, not yet rotated, the layer's cache
            and its kind to the attention output [Q, H, D] and the new cache.
        swiglu: from inputs [Q, E], projections [Q, 2 F] and the norm's epsilon to the
            gated [Q, F]; plain JAX by default.
    """

    attend: Attend
    swiglu: Callable[[jax.Array, jax.Array, float], jax.Array] = _plain_swiglu
