"""Sizes that an IO account depends on, apart from the tree's."""

from dataclasses import dataclass, fields

import jax.numpy as jnp

from deft_jax.errors import DeftError
from deft_jax.pallas_kernels.kernel_spec import KernelSpec
from deft_jax.runtime.forward import Model


@dataclass(frozen=True, kw_only=True)
class AttentionSizes:
    """Sizes of a model's attention.

    Attributes:
        num_q_heads: `H`.
        num_kv_heads: `K`.
        head_dim: `D`.
        itemsize: bytes of a number of queries, keys, values and outputs.
        num_layers: `L`.
        kv_per_query_head: count KV once per query head, as the paper does; kernels for
            grouped queries read it once per KV head, the default.
    """

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    itemsize: int
    num_layers: int = 1
    kv_per_query_head: bool = False

    @classmethod
    def of(cls, model: Model) -> "AttentionSizes":
        """Return the sizes of a network's attention, in all its layers."""
        return cls(
            num_q_heads=model.config.num_q_heads,
            num_kv_heads=model.config.num_kv_heads,
            head_dim=model.config.head_dim,
            itemsize=jnp.dtype(model.dtype).itemsize,
            num_layers=model.config.num_layers,
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of one head of a query, key, value or output."""
        return self.head_dim * self.itemsize

    @property
    def group(self) -> int:
        """`G`, query heads per KV head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of a token's keys and values in one layer, as they are counted."""
        heads = self.num_q_heads if self.kv_per_query_head else self.num_kv_heads
        return 2 * heads * self.row_bytes

    def check(self) -> None:
        """Check the sizes.

        Raises:
            DeftError: one is not positive, or query heads cannot share KV heads evenly.
        """
        _check_positive(self)
        if self.num_q_heads % self.num_kv_heads:
            raise DeftError(
                f"expected num_q_heads a multiple of num_kv_heads {self.num_kv_heads},"
                f" got {self.num_q_heads}; give every KV head as many query heads"
            )


@dataclass(frozen=True, kw_only=True)
class KernelSizes:
    """Parameters of the methods' kernels; each method looks at its own.

    Attributes:
        num_splits: equal parts that `flash_decoding` and `radix` cut a sequence into.
        chunk_tokens: most tokens of a chunk of `deft_node_chunk`.
        tile_queries: most queries that share a read of KV in the `deft_` methods; None
            for no limit.
        halves: warpgroups that `deft_flatten` divides a tile's queries among.
        block_tokens: tokens of the blocks that `deft_flatten` shares out.
        num_workers: equal shares that `deft_flatten` cuts the work into.
        mask_bytes_per_token: bytes of `deft_flatten`'s mask of a cached token: 64 bits
            in the paper's release; two int32 in our kernels.
    """

    num_splits: int = 1
    chunk_tokens: int = 512
    tile_queries: int | None = None
    halves: int = 1
    block_tokens: int = 128
    num_workers: int = 1
    mask_bytes_per_token: int = 8

    @classmethod
    def of(cls, spec: KernelSpec) -> "KernelSizes":
        """Return the parameters of our Hopper kernels.

        Where a spec has `head_chunks`, its `num_kv_heads` counts each chunk, which
        reads the KV anew: give `AttentionSizes` that number.
        """
        return cls(
            tile_queries=spec.tile_queries,
            halves=spec.halves,
            block_tokens=spec.config.block_tokens,
            num_workers=spec.num_workers,
            mask_bytes_per_token=4 * spec.mask_fields,
        )

    def check(self) -> None:
        """Check the parameters.

        Raises:
            DeftError: one is not positive.
        """
        _check_positive(self)


def kv_bytes(num_tokens: int, sizes: AttentionSizes) -> int:
    """Return the bytes of reading so many tokens' keys and values in every layer."""
    return num_tokens * sizes.kv_token_bytes * sizes.num_layers


def _check_positive(sizes: AttentionSizes | KernelSizes) -> None:
    for field in fields(sizes):
        value = getattr(sizes, field.name)
        if value is not None and not isinstance(value, bool) and value < 1:
            raise DeftError(
                f"expected {field.name} of at least 1, got {value}; give its true size"
            )
