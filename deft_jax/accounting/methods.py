"""Bytes that attention over a tree moves, by method: arithmetic, nothing is measured.

The methods are those that the DeFT paper compares (arXiv 2404.00242, section 4). What
kernels ask the memory for is counted; caches may serve some of it.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np

from deft_jax.accounting.sizes import AttentionSizes, KernelSizes
from deft_jax.accounting.tree_steps import TreeSteps
from deft_jax.errors import DeftError
from deft_jax.pallas_kernels.kernel_spec import FUSED_PIECES, TILE_ROWS

Method = Literal[
    "flash_decoding",
    "radix",
    "medusa",
    "deft_node",
    "deft_node_chunk",
    "deft_flatten",
]
"""`flash_decoding` and `radix` read the KV of each sequence; they differ in whether a
shared prefix is stored once, not in what attention reads. `medusa` is dense attention
over the whole tree. The others share reads: by node, by chunk of a node, or evenly over
the flattened tree, as our kernels do."""

METHODS: tuple[Method, ...] = get_args(Method)

FLOAT32_BYTES = 4
"""Bytes of a log-sum-exp, and of an element of a softmax in float32."""

ROW_GROUP = 8
"""Rows of a tile's partial result are written in groups of so many."""


@dataclass(frozen=True, kw_only=True)
class IOAccount:
    """Bytes moved, by what they are; accounts of steps and trees add up.

    Attributes:
        kv_bytes: keys and values read.
        query_output_bytes: queries read, by every group that they are in, and outputs
            written.
        mask_bytes: masks read, once for all heads.
        intermediate_bytes: logits, masked logits and softmax that go through memory.
        partial_bytes: partial outputs of split KV and their log-sum-exps, written and
            read. The paper's table leaves them out.
    """

    kv_bytes: int = 0
    query_output_bytes: int = 0
    mask_bytes: int = 0
    intermediate_bytes: int = 0
    partial_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Sum of all columns."""
        return sum(asdict(self).values())

    def __add__(self, other: "IOAccount") -> "IOAccount":
        mine, its = asdict(self), asdict(other)
        return IOAccount(**{name: mine[name] + its[name] for name in mine})


def total(accounts: Iterable[IOAccount]) -> IOAccount:
    """Add up accounts, such as those of the stretches of a run."""
    return sum(accounts, IOAccount())


def count_io(
    method: Method,
    steps: TreeSteps,
    sizes: AttentionSizes,
    kernel: KernelSizes | None = None,
) -> IOAccount:
    """Count the bytes that a method's attention moves in all layers and steps.

    Args:
        method: one of `METHODS`.
        steps: the tree, step by step.
        sizes: sizes of the model's attention.
        kernel: parameters of the method's kernel.

    Raises:
        DeftError: the method is unknown, a size is not positive, or query heads cannot
            share KV heads evenly.
    """
    kernel = kernel or KernelSizes()
    if method not in _METHODS:
        raise DeftError(f"expected one of {', '.join(METHODS)}, got {method!r}")
    sizes.check()
    kernel.check()
    if not steps.num_queries:
        return IOAccount()
    layer = asdict(_METHODS[method](steps, sizes, kernel))
    return IOAccount(**{name: sizes.num_layers * n for name, n in layer.items()})


def _per_sequence(
    steps: TreeSteps, sizes: AttentionSizes, kernel: KernelSizes
) -> IOAccount:
    """Count reads of paths: a node with queries is a sequence, which they share."""
    paths = steps.along_path(steps.tokens)[:, steps.queries > 0]
    splits = kernel.num_splits
    rows = steps.num_steps * steps.num_queries * sizes.num_q_heads
    return IOAccount(
        kv_bytes=int(paths.sum()) * sizes.kv_token_bytes,
        query_output_bytes=rows * (splits + 1) * sizes.row_bytes,
        partial_bytes=_partials(rows * splits, sizes) if splits > 1 else 0,
    )


def _medusa(steps: TreeSteps, sizes: AttentionSizes, kernel: KernelSizes) -> IOAccount:
    """Count dense attention with a mask, one operation after the other.

    Every query head writes and reads the logits, writes and reads the masked logits,
    and writes the softmax in float32, then writes and reads it as the values' type: 16
    bytes a logit with 2-byte numbers. The mask is of that type too and read once for
    all heads. The counters of the paper's release have 4 bytes more, for a scaled copy
    of the logits; the five figures of the paper fit 16 bytes, however split, and not
    20.
    """
    tokens = _shared_tokens(steps)
    logits = tokens * steps.num_queries
    rows = steps.num_steps * steps.num_queries * sizes.num_q_heads
    logit_bytes = 6 * sizes.itemsize + FLOAT32_BYTES
    return IOAccount(
        kv_bytes=tokens * sizes.kv_token_bytes,
        query_output_bytes=2 * rows * sizes.row_bytes,
        mask_bytes=logits * sizes.itemsize,
        intermediate_bytes=logits * sizes.num_q_heads * logit_bytes,
    )


def _shared_tokens(steps: TreeSteps) -> int:
    """Return the tokens that some query sees, over all steps."""
    return int(steps.tokens[:, steps.queries_below > 0].sum())


def _deft_node(
    steps: TreeSteps, sizes: AttentionSizes, kernel: KernelSizes
) -> IOAccount:
    """Count a group per node (the paper's section 3.3)."""
    return _by_node(steps, sizes, kernel, (steps.tokens > 0).astype(np.int64))


def _deft_node_chunk(
    steps: TreeSteps, sizes: AttentionSizes, kernel: KernelSizes
) -> IOAccount:
    """Count a group per chunk of a node."""
    return _by_node(steps, sizes, kernel, -(-steps.tokens // kernel.chunk_tokens))


def _by_node(
    steps: TreeSteps, sizes: AttentionSizes, kernel: KernelSizes, groups: np.ndarray
) -> IOAccount:
    """Count a partial result per query and group on its path, if there are several.

    Args:
        steps: the tree, step by step.
        sizes: sizes of the model's attention.
        kernel: parameters of the kernel.
        groups: [S, N] int64, groups that each node's tokens are in.
    """
    tile = kernel.tile_queries or steps.num_queries
    reads = steps.tokens.sum(axis=0) @ -(-steps.queries_below // tile)
    pieces = steps.along_path(groups)
    partials = (np.where(pieces > 1, pieces, 0) @ steps.queries).sum()
    rows = int((pieces @ steps.queries).sum()) + steps.num_steps * steps.num_queries
    return IOAccount(
        kv_bytes=int(reads) * sizes.kv_token_bytes,
        query_output_bytes=rows * sizes.num_q_heads * sizes.row_bytes,
        partial_bytes=_partials(int(partials) * sizes.num_q_heads, sizes),
    )


def _partials(rows: int, sizes: AttentionSizes) -> int:
    """Return the bytes of partial outputs with a log-sum-exp, written and read."""
    return 2 * rows * (sizes.row_bytes + FLOAT32_BYTES)


def _deft_flatten(
    steps: TreeSteps, sizes: AttentionSizes, kernel: KernelSizes
) -> IOAccount:
    """Count equal shares of the flattened tree, as `attention.schedule` cuts them.

    Where a share ends within a tile, another piece of it begins. How many do is an
    estimate: the tokens that a tile sees are taken to fill its blocks, where a schedule
    also has half-empty units and begins a new block for every class of units, and
    siblings to be in the order of their numbers. An end may then meet the border of two
    tiles here but not in the schedule, or the other way around, so where every worker
    has a block at most `min(workers, tiles of all heads) - 1` cuts are missed or added.

    Masks are counted for every token, though our kernels read none for blocks that all
    queries of a tile see.
    """
    tile = kernel.tile_queries or steps.num_queries
    tokens = steps.tile_tokens(tile)
    num_tiles = tokens.shape[1]
    blocks = np.maximum(-(-tokens // kernel.block_tokens), 1)
    blocks = np.tile(blocks, sizes.num_kv_heads)
    cuts, cut_tiles = _share_ends(blocks, kernel.num_workers)
    # A kernel that merges keeps the first piece of a tile in registers.
    fused = kernel.num_workers <= FUSED_PIECES * blocks.shape[1]
    pieces = cuts if fused else cuts + cut_tiles
    rows = 2 * steps.num_steps * steps.num_queries * sizes.num_q_heads
    rows += cuts * -(-steps.num_queries // num_tiles) * sizes.group
    return IOAccount(
        kv_bytes=int(tokens.sum()) * sizes.kv_token_bytes,
        query_output_bytes=rows * sizes.row_bytes,
        mask_bytes=int(tokens.sum()) * kernel.mask_bytes_per_token,
        partial_bytes=2 * pieces * _piece_bytes(tile, sizes, kernel),
    )


def _share_ends(blocks: np.ndarray, workers: int) -> tuple[int, int]:
    """Count the ends of shares within tiles, and the tiles that have any.

    3 and 3 blocks, 4 workers:  x x|x  x|x|x  ->  3, 2

    Args:
        blocks: [S, K * T] int64, blocks of each head's tiles in each step.
        workers: shares; the first ones are a block longer if they are not equal.
    """
    upto = np.pad(np.cumsum(blocks, axis=1), ((0, 0), (1, 0)))
    each, rest = np.divmod(upto[:, -1:], workers)
    worker = np.arange(1, workers)
    end = worker * each + np.minimum(worker, rest)
    # One line for all steps, so that one search finds the tile of every end.
    line = np.arange(len(blocks))[:, None] * (upto.max() + 1)
    at = np.searchsorted((upto + line).ravel(), (end + line).ravel(), side="right") - 1
    within = end + line > (upto + line).ravel()[at].reshape(end.shape)
    tile = np.where(within, at.reshape(end.shape), -1)
    begins = within & (np.diff(tile, axis=1, prepend=-1) != 0)
    return int(within.sum()), int(begins.sum())


def _piece_bytes(tile: int, sizes: AttentionSizes, kernel: KernelSizes) -> int:
    """Return the bytes of a piece's partial result, as `schedule` lays it out."""
    half_rows = -(-tile // kernel.halves) * sizes.group
    rows = -(-half_rows // ROW_GROUP) * ROW_GROUP
    lse_bytes = max(rows, TILE_ROWS) * FLOAT32_BYTES
    return kernel.halves * (rows * sizes.row_bytes + lse_bytes)


_METHODS: dict[str, Callable[[TreeSteps, AttentionSizes, KernelSizes], IOAccount]] = {
    "flash_decoding": _per_sequence,
    "radix": _per_sequence,
    "medusa": _medusa,
    "deft_node": _deft_node,
    "deft_node_chunk": _deft_node_chunk,
    "deft_flatten": _deft_flatten,
}
