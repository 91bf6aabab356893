"""Query, key and value heads of a step's tokens in one layer, not yet rotated.

A network hands them over in one piece, so that rotating and storing them can be one
kernel.
"""

import dataclasses
from collections.abc import Callable

import jax

from deft_jax.attention.backend import Backend, choose_backend
from deft_jax.kv.pool import LayerKV
from deft_jax.pallas_kernels.rotary_append.reference import (
    finite_projections,
    rotary_append_reference,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QKV:
    """Heads of a step's query tokens in one layer, behind an RMSNorm.

    No key or value that is not finite is stored: `finite_projections` says what takes
    its place, and that the token's own queries become NaN.

    Attributes:
        inputs: [Q, E] of the weights' dtype, what was projected; its rows' root mean
            square is still to be divided by.
        heads: [Q, H + 2 K, D] of that dtype or float32, query, key and value heads side
            by side.
        cos: [Q, D / 2] float32, cosines of the tokens' rotary angles.
        sin: [Q, D / 2] float32, sines of them.
        num_kv_heads: static, `K`, key heads and value heads in `heads`.
        eps: static, added to the mean square.
    """

    inputs: jax.Array
    heads: jax.Array
    cos: jax.Array
    sin: jax.Array
    num_kv_heads: int = dataclasses.field(metadata={"static": True})
    eps: float = dataclasses.field(metadata={"static": True})

    def rotated(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return queries [Q, H, D] and keys [Q, K, D], rotated, and values [Q, K, D].

        Keys and values are finite, ready to be stored.
        """
        rows = self.inputs, self.heads, self.cos, self.sin
        return finite_projections(*rows, num_kv_heads=self.num_kv_heads, eps=self.eps)

    def append(
        self,
        layer: LayerKV,
        page: jax.Array,
        slot: jax.Array,
        implementation: str | None = None,
    ) -> tuple[jax.Array, LayerKV]:
        """Rotate the queries and store the keys and values.

        Args:
            layer: pages of the layer; donated by the step, so written in place.
            page: [Q] int32, page of each token, M or more for those that are not
                stored.
            slot: [Q] int32, slot within the page.
            implementation: what the attention that follows was asked to run; the
                store is a kernel where that is one for Hopper.

        Returns:
            [Q, H, D] rotated queries of the dtype of `inputs`, and the layer with the
            tokens' KV in its own dtype.
        """
        num_queries, num_heads, head_dim = self.heads.shape
        shape = num_queries, num_heads - 2 * self.num_kv_heads, head_dim
        q = jax.ShapeDtypeStruct(shape, self.inputs.dtype)
        backend = choose_backend(implementation, q, layer.k)
        store: Callable = rotary_append_reference
        if backend is Backend.HOPPER:
            # Imported where it runs: Mosaic takes long to import, and no CPU needs it.
            from deft_jax.pallas_kernels.rotary_append import hopper

            if hopper.takes(self.inputs, self.heads, layer.k):
                store = hopper.rotary_append
        rows = self.inputs, self.heads, self.cos, self.sin
        q, k, v = store(*rows, page, slot, layer.k, layer.v, eps=self.eps)
        return q, dataclasses.replace(layer, k=k, v=v)
