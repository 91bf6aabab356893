"""Static sizes of one compiled kernel."""

import dataclasses

import jax.numpy as jnp

TILE_ROWS = 64
"""Rows of the matrix tile of one warpgroup."""

COPY_BYTES = 128
"""Bytes that every copy of Mosaic GPU is a multiple of."""

MAX_QUERIES = 65535
"""Most queries of a step: ranks are packed in 16 bits."""

SHARED_BYTES = 227 * 1024
"""Bytes of shared memory that a block of threads may use on Hopper."""

SHARED_ALIGNMENT = 1024
"""Bytes to a multiple of which Pallas rounds every allocation of shared memory."""

SHARED_SCRATCH = 2048
"""Bytes of shared memory that Pallas keeps for reductions."""


FUSED_PIECES = 3
"""Pieces per tile up to which the attention kernel merges them; see bench/NOTES.md."""

TURNS = 2
"""Warps that copy partial results in turn: the one of the keys, then of the values."""


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """What may be tuned without changing results beyond rounding.

    Attributes:
        unit_tokens: `U`, tokens that one copy moves; divides the page size, at least
            16. Smaller units leave fewer empty slots of half-filled pages to be read.
        block_tokens: tokens per step of the online softmax, a multiple of the units; on
            Hopper of 64.
        stages: blocks of KV in flight in shared memory.
    """

    unit_tokens: int = 16
    block_tokens: int = 64
    stages: int = 4


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """Everything a kernel is compiled for.

    Attributes:
        num_queries: `Q`, query tokens of a step.
        num_kv_heads: KV heads, `K` times `head_chunks`.
        group: query heads per KV head, `G` over `head_chunks`.
        head_dim: `D`, elements of a head.
        page_size: `P`, tokens of a page.
        half_queries: queries whose rows fill one warpgroup's tile.
        halves: warpgroups that compute, each with a half of a tile's queries.
        num_workers: blocks of threads, one per multiprocessor.
        dtype: name of the dtype of q, k, v and out.
        scale: factor of the logits.
        window: number of positions, its own counted, that a query sees; None for all.
        soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`; None for none.
        head_chunks: chunks that the query heads of a KV head are divided into, for
            groups of more than 64; each counts as a KV head of its own.
        config: sizes that were tuned.
    """

    num_queries: int
    num_kv_heads: int
    group: int
    head_dim: int
    page_size: int
    half_queries: int
    halves: int
    num_workers: int
    dtype: str
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    head_chunks: int = 1
    config: KernelConfig = KernelConfig()

    @property
    def tile_queries(self) -> int:
        """Queries per tile."""
        return self.half_queries * self.halves

    @property
    def num_tiles(self) -> int:
        """Number of tiles, `T`."""
        return -(-self.num_queries // self.tile_queries)

    @property
    def num_pairs(self) -> int:
        """Pairs of a head and a tile."""
        return self.num_kv_heads * self.num_tiles

    @property
    def fused(self) -> bool:
        """Whether the attention kernel merges the partial results itself.

        Where tiles are in many pieces one block of threads per tile would merge them
        one after the other; a kernel of its own has all of them work. How many pieces
        there are is judged by the capacity: if little of it is in use there are more,
        and merging takes longer than it need.
        """
        return self.num_workers <= FUSED_PIECES * self.num_pairs

    @property
    def num_slots(self) -> int:
        """Room of the portable kernels for a partial result per piece.

        It is at `worker + pair`, which is unique, as each new piece starts a new pair
        or a new worker: pieces of workers 0 0 1 1 and pairs 0 1 1 2 are at 0 1 2 3.
        """
        return self.num_workers + self.num_pairs

    @property
    def room_queries(self) -> int:
        """Queries of shared memory whose rows cover a warpgroup's tile."""
        return -(-TILE_ROWS // self.group)

    @property
    def partial_rows(self) -> int:
        """Rows of a partial result: those in use, in groups of 8."""
        return min(TILE_ROWS, -(-self.half_queries * self.group // 8) * 8)

    @property
    def units_per_block(self) -> int:
        """Units that a block of keys is made of."""
        return self.config.block_tokens // self.config.unit_tokens

    @property
    def copies_per_block(self) -> int:
        """Copies per block of keys or values; partial results take two at least."""
        return max(self.units_per_block, 2)

    @property
    def copy_tokens(self) -> int:
        """Tokens of each of these copies."""
        return self.config.block_tokens // self.copies_per_block

    @property
    def units_per_page(self) -> int:
        """Units of a page."""
        return self.page_size // self.config.unit_tokens

    @property
    def mask_fields(self) -> int:
        """Ranges of ranks, and positions if a window needs them.

        A copy moves at least 128 bytes, so units of 16 tokens carry both anyway.
        """
        return 2 if self.window is not None or self.config.unit_tokens < 32 else 1

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory of the attention kernel."""
        config, itemsize = self.config, jnp.dtype(self.dtype).itemsize
        row = self.head_dim * itemsize
        queries = self.room_queries * self.group * row
        barriers = 3 * 2 * config.stages + 2
        tokens = config.stages * config.block_tokens
        parts = [
            self.halves * queries,
            *[queries] * self.halves,
            self.halves * TILE_ROWS * 4,
            TURNS * config.stages * TILE_ROWS * 4,
            *[tokens * row] * 2,
            tokens * self.mask_fields * 4,
        ]
        return sum(map(_aligned, parts)) + SHARED_SCRATCH + 8 * barriers


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // SHARED_ALIGNMENT) * SHARED_ALIGNMENT
