"""What attention computes, and the sizes of its heads and work lists."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """What the attention of one kind of layer computes.

    Attributes:
        scale: factor of the products of queries and keys.
        window: a query sees only tokens less than this many positions back along its
            path, itself counted; None for all.
        soft_cap: bound of `soft_cap * tanh(logits / soft_cap)`, or None for no bound.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None

    @classmethod
    def plain(cls, head_dim: int) -> "AttentionSpec":
        """Return softmax attention with the usual scale: no window and no cap."""
        return cls(scale=1 / math.sqrt(head_dim))

    def __call__(self, products: jax.Array) -> jax.Array:
        """Return the logits of float32 products of queries and keys, any shape."""
        logits = products * self.scale
        if self.soft_cap is not None:
            logits = self.soft_cap * jnp.tanh(logits / self.soft_cap)
        return logits


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Static sizes of a schedule: the part of a `KernelSpec` that work lists depend on.

    Attributes:
        half_queries: queries per half of a tile.
        halves: 2 if different warpgroups own the halves of a tile, 1 if it has none.
        unit_tokens: `U`, tokens of a unit; divides the page size.
        block_tokens: tokens of a block, a multiple of `unit_tokens`.
        num_kv_heads: `K`.
        num_workers: `W`, workers that divide the work among them.
    """

    half_queries: int
    halves: int
    unit_tokens: int
    block_tokens: int
    num_kv_heads: int
    num_workers: int

    @property
    def tile_queries(self) -> int:
        """Queries per tile."""
        return self.half_queries * self.halves


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads of one attention layer.

    Attributes:
        num_q: `H`, query heads.
        num_kv: `K`, KV heads.
        head_dim: `D`.
    """

    num_q: int
    num_kv: int
    head_dim: int

    @property
    def group(self) -> int:
        """`G`, query heads that share a KV head."""
        return self.num_q // self.num_kv


HEADS = {
    "smollm2_135m": Heads(9, 3, 64),
    "phi2": Heads(32, 32, 80),
    "phi3_mini": Heads(32, 32, 96),
    "llama3_8b": Heads(32, 8, 128),
    "qwen3_235b_a22b": Heads(64, 4, 128),
    "gemma_2b": Heads(8, 1, 256),
}
