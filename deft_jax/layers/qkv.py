"""What a layer projects for a step's tokens: queries, keys and values, not yet rotated.

The network hands them over in one piece, so that rotating and storing them can be one
kernel.
"""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.attention.backend import Backend, choose_backend
from deft_jax.kv.pool import LayerKV, write
from deft_jax.pallas_kernels.rms_scale import rms_scaled
from deft_jax.pallas_kernels.rotary_append.hopper import rotary_append, takes
from deft_jax.pallas_kernels.rotary_append.reference import rotate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QKV:
    """Heads of a step's query tokens in one layer, behind an RMSNorm.

    Attributes:
        inputs: [Q, E] of the weights' dtype, what was projected; its rows' root mean
            square is still to be divided by.
        heads: [Q, H + 2 K, D] of that dtype or float32, query, key and value heads side
            by side.
        cos: [Q, D / 2] float32, of the tokens' rotary angles.
        sin: [Q, D / 2] float32.
        num_kv_heads: static, `K`.
        eps: static, added to the mean square.
    """

    inputs: jax.Array
    heads: jax.Array
    cos: jax.Array
    sin: jax.Array
    num_kv_heads: int = dataclasses.field(metadata={"static": True})
    eps: float = dataclasses.field(metadata={"static": True})

    def rotated(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query [Q, H, D] and keys [Q, K, D], rotated, and values [Q, K, D]."""
        num_kv = self.num_kv_heads
        num_q = self.heads.shape[1] - 2 * num_kv
        heads = rms_scaled(self.heads, self.inputs, self.eps)
        q, k, v = jnp.split(heads, (num_q, num_q + num_kv), axis=1)
        q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
        dtype = self.inputs.dtype
        return q.astype(dtype), k.astype(dtype), v.astype(dtype)

    def append(
        self,
        layer: LayerKV,
        page: jax.Array,
        slot: jax.Array,
        implementation: str | None = None,
    ) -> tuple[jax.Array, LayerKV]:
        """Rotates the queries and stores the keys and values.

        Args:
            layer: pages of the layer; donated by the step, so written in place.
            page: [Q] int32, page of each token, M or more for those that are not
                stored.
            slot: [Q] int32.
            implementation: of the attention that follows; the kernels' store is used
                where they are.

        Returns:
            [Q, H, D] rotated queries, and the layer with the tokens' KV.
        """
        q = jax.ShapeDtypeStruct(self._q_shape, self.inputs.dtype)
        backend = choose_backend(implementation, q, layer.k)
        fits = takes(self.inputs, self.heads, layer.k)
        if not (backend is Backend.HOPPER and fits):
            q, k, v = self.rotated()
            return q, write(layer, page, slot, k, v)
        args = page, slot, layer.k, layer.v
        rows = self.inputs, self.heads, self.cos, self.sin
        q, k_pages, v_pages = rotary_append(*rows, *args, eps=self.eps)
        return q, LayerKV(k=k_pages, v=v_pages)

    @property
    def _q_shape(self) -> tuple[int, int, int]:
        num_queries, num_heads, head_dim = self.heads.shape
        return num_queries, num_heads - 2 * self.num_kv_heads, head_dim
