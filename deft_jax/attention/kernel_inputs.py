"""From a grouping to the arrays that the Pallas kernels read.

They depend on the grouping alone. Under `jit` XLA finds that all layers of a step ask
for the same and computes them once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from deft_jax.attention.grouping import Grouping
from deft_jax.attention.schedule import Schedule, Tiling, make_schedule, query_positions
from deft_jax.pallas_kernels.kernel_spec import TILE_ROWS, KernelSpec

Inputs = tuple[jax.Array, jax.Array, jax.Array, Schedule]


def prepare(
    grouping: Grouping,
    spec: KernelSpec,
    rows: int = TILE_ROWS,
    schedule: Schedule | None = None,
) -> Inputs:
    """What the kernels need to know of a step, for all layers of these sizes.

    Args:
        grouping: of the step.
        spec: static sizes.
        rows: of a tile's half.
        schedule: the work lists, by default those of `make_schedule`.

    Returns:
        masks [M * P // U + 1, mask_fields, U], row positions [T, halves, rows] and live
        queries [1], all int32, as in `grouped_partial_attention`, and the schedule.
    """
    tiling = tiling_of(spec)
    schedule = schedule or make_schedule(grouping, tiling, window=spec.window)
    positions = _row_positions(grouping, spec, tiling, rows)
    return _masks(grouping, spec), positions, grouping.num_live[None], schedule


def tiling_of(spec: KernelSpec) -> Tiling:
    """The sizes that work lists depend on."""
    return Tiling(
        half_queries=spec.half_queries,
        halves=spec.halves,
        unit_tokens=spec.config.unit_tokens,
        block_tokens=spec.config.block_tokens,
        num_kv_heads=spec.num_kv_heads,
        num_workers=spec.num_workers,
    )


def _masks(grouping: Grouping, spec: KernelSpec) -> jax.Array:
    ranks = grouping.slot_first | (grouping.slot_end << 16)
    fields = (ranks, grouping.slot_position)[: spec.mask_fields]
    units = [x.reshape(-1, spec.config.unit_tokens) for x in fields]
    return jnp.pad(jnp.stack(units, axis=1), ((0, 1), (0, 0), (0, 0)))


def _row_positions(grouping: Grouping, spec: KernelSpec, tiling: Tiling, rows: int):
    shape = spec.num_tiles, spec.halves, rows
    if spec.window is None:
        return jnp.zeros(shape, jnp.int32)
    each = jnp.repeat(query_positions(grouping, tiling), spec.group, axis=1)
    return jnp.pad(each, ((0, 0), (0, rows - each.shape[1]))).reshape(shape)


def head_chunks(
    group: int, rows: int, queries: Callable[[int], int] = lambda heads: 1
) -> int:
    """Least number of equal parts of a group's query heads that fit a tile's rows.

    Args:
        group: `G`.
        rows: of a tile.
        queries: from the heads of a part to the least queries of a tile.
    """
    parts = (c for c in range(1, group + 1) if group % c == 0)
    return next(c for c in parts if group // c * queries(group // c) <= rows)


def partial_bytes(spec: KernelSpec, schedule: Schedule) -> jax.Array:
    """[] int32: bytes of partial results that the Hopper kernels write."""
    pieces = schedule.pieces[:, 1]
    # Where the attention kernel merges, the first piece of a tile stays in registers.
    kept = 1 if spec.fused else 0
    written = jnp.sum(jnp.where(pieces > 1, pieces - kept, 0))
    row = spec.head_dim * jnp.dtype(spec.dtype).itemsize
    return written * spec.halves * (spec.partial_rows * row + TILE_ROWS * 4)
